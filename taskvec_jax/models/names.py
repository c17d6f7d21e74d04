"""What a name or a path stands for: where its weights come from, and where they are kept.

A name is a key of `registry.NAMED_MODELS`, or ORG/NAME of the Hugging Face hub; everything else is
the path of a file or a directory. Nothing here reads weights.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from pathlib import Path
from urllib.parse import quote

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint, foreign, origin
from taskvec_jax.models.registry import NAMED_MODELS, Shipped
from taskvec_jax.transformer.config import DecoderConfig

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OF_FILES = (".gguf", ".pth", ".bin", ".safetensors", ".json", ".pt")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


def cache_directory() -> Path:
    """Where files are kept that can be made again: $TASKVEC_CACHE, or the user's own cache.

    The latter is taskvec_jax/ in $XDG_CACHE_HOME, or in ~/.cache where that is not set or, which
    its specification calls invalid, not an absolute path.

    Raises:
      TaskVecError: the user has no home directory.
    """
    if configured := os.environ.get("TASKVEC_CACHE"):
        return Path(configured)
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (root if root.is_absolute() else Path.home() / ".cache") / "taskvec_jax"
    except RuntimeError:
        raise TaskVecError(
            "there is no home directory to keep files in; set TASKVEC_CACHE to a directory, or"
            " TASKVEC_CHECKPOINTS for converted models alone"
        ) from None


def checkpoints_directory() -> Path:
    """Where converted models are kept.

    $TASKVEC_CHECKPOINTS where it is set; else checkpoints/ of a checkout of the project (also when
    it is installed with `pip install -e`), and of `cache_directory` for any other installation.

    Raises:
      TaskVecError: as of `cache_directory`.
    """
    if configured := os.environ.get("TASKVEC_CHECKPOINTS"):
        return Path(configured)
    return (foreign.PROJECT if _is_checkout(foreign.PROJECT) else cache_directory()) / "checkpoints"


def _is_checkout(directory: Path) -> bool:
    """Whether it holds this project's pyproject.toml; site-packages may hold that of another."""
    try:
        text = (directory / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return 'name = "taskvec-jax"' in text


def checkpoint_path(name: str, revision: str | None = None) -> Path:
    """Where the converted model of a known name, an ORG/NAME of the hub or a path is kept."""
    if name in NAMED_MODELS and isinstance(NAMED_MODELS[name].source, Shipped):
        return foreign.PROJECT / "checkpoints" / name
    return checkpoints_directory() / model_key(name, revision)


def model_key(name: str, revision: str | None = None) -> str:
    """A directory name that stands for a model, as it is asked for.

    A known name is its own key; ORG/NAME is ORG--NAME, both with @revision if there is one; a path
    has its last part and a hash of all of it, so that `runA/final` and `runB/final` are two models.
    """
    if name not in NAMED_MODELS and (Path(name).exists() or not HUB_NAME.fullmatch(name)):
        return origin.path_key(name)
    return name.replace("/", "--") + (f"@{quote(revision, safe='')}" if revision else "")


def from_hub_or_wheel(name: str, revision: str | None) -> bool:
    """Whether a model is fetched from somewhere (a known name, ORG/NAME), or lies at a path.

    Raises:
      TaskVecError: it is neither, or a revision is asked of what has none.
    """
    known = NAMED_MODELS.get(name)
    on_hub = (known is None and not Path(name).exists() and bool(HUB_NAME.fullmatch(name))) or (
        known is not None and isinstance(known.source, str)
    )
    if revision is not None and not (on_hub and _REVISION.fullmatch(revision)):
        raise TaskVecError(
            f"revision {revision!r} of {name!r}: allowed are a branch, tag or commit of a model"
            " of the Hugging Face hub"
        )
    if known is not None or on_hub:
        return True
    if not name or not Path(name).exists():
        raise TaskVecError(_not_there(name))
    return False


def _not_there(name: str) -> str:
    """What to say of what is no known name, no ORG/NAME and no path that exists."""
    path = Path(name)
    if name and (len(path.parts) > 1 or path.suffix in _OF_FILES or name[0] in ".~"):
        nearest = next(place for place in path.parents if place.exists())
        missing = path.relative_to(nearest).parts[0]
        there: list[str] = []
        with contextlib.suppress(OSError):  # not a directory, or not to be read
            there = [entry.name for entry in nearest.iterdir()]
        close = difflib.get_close_matches(missing, there, n=1, cutoff=0.7)
        hint = f" (did you mean {nearest / close[0]}?)" if close else ""
        tilde = "; the shell does not read ~ after =, write $HOME" if name[0] == "~" else ""
        return (
            f"model {name!r}: there is no such file or directory; {nearest.resolve()} has no"
            f" {missing}{hint}{tilde}"
        )
    close = difflib.get_close_matches(name, NAMED_MODELS, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"unknown model {name!r}{hint}; allowed: a name that `python -m convert` lists, such as"
        f" {', '.join([*NAMED_MODELS][:3])}; ORG/NAME of the Hugging Face hub; or the path of a"
        " Hugging Face directory, a .gguf file, Meta's consolidated.*.pth or a converted model"
    )


def describe(name_or_path: str, revision: str | None = None) -> tuple[str, DecoderConfig]:
    """Name and shapes of a model, without reading its weights.

    What the registry names, under its name or its repository's, needs no network; of another model
    of the hub the config alone is fetched.

    Args:
      name_or_path, revision: as for `loading.load_model`.

    Raises:
      TaskVecError: no such model, or its config is not here and cannot be fetched.
    """
    fetched = from_hub_or_wheel(name_or_path, revision)
    if fetched:
        for name, known in NAMED_MODELS.items():
            if name_or_path in (name, known.source):
                return name_or_path, known.config
        name, path = name_or_path, checkpoint_path(name_or_path, revision)
    else:
        name, path = Path(name_or_path).name, Path(name_or_path)
    if checkpoint.is_checkpoint(path):
        return name, checkpoint.read_config(path)
    source = foreign.fetch_config(name_or_path, revision) if fetched else path
    return name, foreign.read_config(source)
