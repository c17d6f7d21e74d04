"""Where results go, which run they are of, and where their numbers come from."""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import json
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from convert.cli import FLAGS, console
from experiments.run import identity, source
from experiments.run.flags import settings_from_flags
from experiments.run.writing import write_whole
from taskvec_jax.distributed.processes import all_or_none, is_first_process
from taskvec_jax.distributed.sharding import shape_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import from_hub_or_wheel, model_key

_scratch: list[tempfile.TemporaryDirectory[str]] = []  # lives as long as the process
FEWER_DEMONSTRATIONS = 4  # what the paper shows in conflicting tasks and geometry


def short_demonstrations() -> int:
    """Demonstrations of the experiments that show fewer, unless the user chose a number."""
    chosen = FLAGS["num_demonstrations"].present
    return FLAGS.num_demonstrations if chosen else FEWER_DEMONSTRATIONS


def run_from_flags(model: str | None = None) -> identity.Identity:
    """What the flags say of a run's identity, before any model is loaded.

    Args:
      model: another one than --model says, of no revision, or of many.
    """
    revision = None if model else FLAGS.revision
    return {
        "model": model or FLAGS.model,
        "model_key": model_key(model or FLAGS.model, revision),
        "revision": revision,
        "dtype": FLAGS.dtype,
        "quantization": identity.quantization(FLAGS.quantization),
        "matmul_precision": FLAGS.matmul_precision,
        **identity.of_settings(
            settings_from_flags(), short_demonstrations(), FLAGS.task_data, FLAGS.task_file
        ),
    }


def results_name(run: identity.Identity) -> str:
    """The default name of the directory that holds a run's results: `identity.directory_name`."""
    return identity.directory_name(run, identity.of_settings(Settings(), FEWER_DEMONSTRATIONS))


def results_directory(path: Path | None = None) -> Path:
    """Where the results of the run go, made: `path`, --out, or results/<name of the run>.

    Raises:
      TaskVecError: no such model (a misspelt name leaves nothing behind), the directory holds
        results of another run, or it cannot be written.
    """
    from_hub_or_wheel(FLAGS.model, FLAGS.revision)
    run = run_from_flags()
    return prepare_out(str(path or FLAGS.out or Path("results", results_name(run))), run)


def check_results(out: Path, model: Model) -> None:
    """Refuses a directory with results of other weights, or another tokenizer, of the same name.

    Raises:
      TaskVecError: it says which file they are in.
    """
    with all_or_none():  # of several processes only the first one has the directory
        loaded = {**identity.of_model(model), "tokenizer_sha256": model.tokenizer.sha256}
        key = {"model_key": model_key(model.name, model.revision)}
        identity.check_directory(out, loaded | key)


def prepare_out(path: str, run: identity.Identity | None = None) -> Path:
    """Creates the directory results go to, and proves that it can be written.

    Of several processes only the first has it; each other has one of its own, gone when it ends.
    A run that writes nothing there, because its input is bad, leaves no directory behind.

    Args:
      run: whose results they will be; None: the directory may hold those of several.

    Raises:
      TaskVecError: it cannot be written, or it holds results of another run.
    """
    with all_or_none():
        if not is_first_process():
            _scratch.append(tempfile.TemporaryDirectory())
            return Path(_scratch[-1].name)
        directory = Path(path)
        if run is not None and directory.is_dir():
            identity.check_directory(directory, run)
        try:
            missing = [p for p in (directory, *directory.parents) if not p.exists()]
            atexit.register(_remove_empty, missing)
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise TaskVecError(
                f"--out={path} cannot be written ({error.strerror}); choose another directory"
            ) from None
        return directory


def _remove_empty(directories: list[Path]) -> None:
    """Takes away those of the directories that are empty, each before the one that holds it."""
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; says so where it replaces one of other settings."""
    _say_replaced(path, value)
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _say_replaced(path: Path, value: Any) -> None:
    """One line where a result of other tasks, of other settings of its experiment, or a comparison
    of other models is replaced."""
    try:
        before, now = json.loads(path.read_text(encoding="utf-8")), value
        old, new = before.get("settings", {}), now.get("settings", {})
        names = [name for name in new if name != "batch_size" and old.get(name) != new[name]]
        if set(before.get("models", ())) != set(now.get("models", ())):
            names.append("models")
    except (OSError, ValueError, TypeError, AttributeError):
        return
    if names:
        console.print(f"{path}: replaces a result of other {', '.join(names)}", markup=False)


def provenance(model: Model, seed: int, seconds: float) -> dict[str, Any]:
    """All that is needed to run again: versions, device, dtype, hashes, commit, command, date."""
    packages = ("jax", "jaxlib", "flax", "numpy", "tokenizers")
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("taskvec-jax", *packages)},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "mesh": str(shape_of(model.mesh)),
            "processes": jax.process_count(),
        },
        "source": dict(model.source),
        "revision": model.revision,
        "dtype": model.config.dtype,
        "quantization": identity.quantization(model.config.quantization),
        "matmul_precision": model.config.matmul_precision,
        "seed": seed,
        "weights_sha256": model.weights_sha256,
        "tokenizer_sha256": model.tokenizer.sha256,
        "command": shlex.join(["python", "-m", _module_name(), *sys.argv[1:]]),
        "date": source.date(),
        "commit": source.commit(),
        "seconds": round(seconds, 3),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from its source tree


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem
