"""What every experiment shares: flags, the compilation cache, results on disk."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from convert import cli as command
from convert.cli import FLAGS, console, define_list, progress_bar
from experiments.run import identity
from experiments.run.writing import write_whole
from taskvec_jax.distributed.plan import (
    GB,
    PLANNED_BATCH,
    RowSizes,
    largest_batch,
    memory_to_use,
    plan_lines,
    share_bytes,
)
from taskvec_jax.distributed.processes import all_or_none, is_first_process, least
from taskvec_jax.distributed.sharding import shape_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.protocol import Settings, longest_rows
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import cache_directory, describe, from_hub_or_wheel, model_key
from taskvec_jax.tasks import Task, read_own_tasks, registry, select
from taskvec_jax.transformer.config import QUANTIZATIONS

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_scratch: list[tempfile.TemporaryDirectory[str]] = []  # lives as long as the process
__all__ = ["FLAGS", "console", "define_list", "progress_bar"]  # of all commands


def define_model_flags() -> None:
    """--model, --revision, --dtype, --quantization, --plan, --mesh and those of several processes."""
    command.define_model_flags("float32")
    command.define_mesh_flags()
    flags.DEFINE_enum(
        "quantization",
        "none",
        list(QUANTIZATIONS),
        "int8 keeps the kernels of linear maps in one byte a number; --dtype is then that of all"
        " else and of products",
    )
    flags.DEFINE_bool("plan", False, "say what the model needs and where it fits, and do nothing")


def define_prompt_flags() -> None:
    """The flags of `Settings`, and the choice of tasks."""
    defaults = Settings()
    flags.DEFINE_integer("num_prompts", defaults.num_prompts, "dev prompts, and test prompts")
    flags.DEFINE_integer(
        "num_demonstrations", defaults.num_demonstrations, "demonstrations in each prompt"
    )
    flags.DEFINE_integer(
        "num_dummy_queries", defaults.num_dummy_queries, "dummy queries theta is averaged over"
    )
    flags.DEFINE_integer("seed", defaults.seed, "of the draw of prompts")
    flags.DEFINE_integer(
        "batch_size", defaults.batch_size, "prompts a compiled call works on; changes no result"
    )
    flags.DEFINE_float(
        "memory_gb",
        None,
        "most memory to use, that of this machine when left out; fewer prompts a call are taken"
        " to stay below it",
    )
    flags.DEFINE_list("tasks", None, "names, separated by commas; all when left out")
    define_task_flags()


def define_task_flags() -> None:
    """Where tasks come from."""
    flags.DEFINE_string(
        "task_data", None, "directory of category/name.json files to use instead of our own"
    )
    flags.DEFINE_string("task_file", None, "JSON or Python file of tasks that join the others")


def settings_from_flags() -> Settings:
    """The settings the flags ask for.

    Raises:
      TaskVecError: one of them, or --memory_gb, cannot be meant.
    """
    if FLAGS.memory_gb is not None and not FLAGS.memory_gb > 0:  # nan is not either
        raise TaskVecError(f"--memory_gb={FLAGS.memory_gb:g}; it must be above 0")
    return Settings(
        num_prompts=FLAGS.num_prompts,
        num_demonstrations=FLAGS.num_demonstrations,
        num_dummy_queries=FLAGS.num_dummy_queries,
        seed=FLAGS.seed,
        batch_size=FLAGS.batch_size,
    )


def within_memory(settings: Settings, model: Model, tasks: Sequence[Task]) -> Settings:
    """The settings with the largest batch, at most the one asked for, that fits.

    What fits is counted by `plan.sweep_bytes` for the longest prompts of these tasks under these
    settings, and held against --memory_gb, or the memory of this machine without it.

    Raises:
      TaskVecError: --memory_gb is not above 0, or not even one prompt at a time fits in it.
    """
    config, mesh = model.config, shape_of(model.mesh)
    sizes = RowSizes(*longest_rows(model, tasks, settings))
    if FLAGS.memory_gb is not None:
        if not FLAGS.memory_gb > 0:  # nan is not either
            raise TaskVecError(f"--memory_gb={FLAGS.memory_gb:g}; it must be above 0")
        limit, why = FLAGS.memory_gb * GB, f"--memory_gb={FLAGS.memory_gb:g}"
        batch_size = largest_batch(config, limit, settings.batch_size, mesh, sizes)
    else:
        limit = memory_to_use(share_bytes(config, config.dtype, mesh.model))
        why = f"{limit / GB:.1f} GB to use here"
        try:
            batch_size = largest_batch(config, limit, settings.batch_size, mesh, sizes)
        except TaskVecError:
            batch_size = 1  # the count is an upper bound: one prompt may fit all the same
        batch_size = least(batch_size)  # of several processes, which must compile the same
    if batch_size < settings.batch_size:
        console.print(f"{why}: {batch_size} prompts a call")
    return dataclasses.replace(settings, batch_size=batch_size)


def tasks_from_flags(names: list[str] | None = None, model: str | None = None) -> list[Task]:
    """The named tasks, or those that --tasks names, or the model's own with those of --task_file,
    or all; from where --task_data and --task_file say.

    Args:
      model: whose own tasks count; that of --model when None.
    """
    data, own = _task_paths()
    added, default = _own_tasks(model)
    names = names or FLAGS.tasks
    if names is None and default and data is None:
        users = [task.name for task in read_own_tasks(own)] if own else []
        names = list(dict.fromkeys([*default, *users]))
    return select(names, data, own, added)


def available_tasks_from_flags(model: str | None = None) -> list[Task]:
    """All tasks the flags and the model make known, whether asked for or not."""
    return list(registry(*_task_paths(), _own_tasks(model)[0]).values())


def own_task_names() -> list[str]:
    """Names of the tasks that the model of --model was trained on."""
    return _own_tasks(None)[1]


def _own_tasks(model: str | None) -> tuple[list[Task], list[str]]:
    from experiments.run import own_tasks

    return own_tasks.own_tasks(model or FLAGS.model, FLAGS.revision if not model else None)


def _task_paths() -> tuple[Path | None, Path | None]:
    data, own = (Path(path) if path else None for path in (FLAGS.task_data, FLAGS.task_file))
    return data, own


def model_from_flags() -> Model:
    """Loads the model the flags ask for, behind a progress bar."""
    return command.reporting(
        lambda report: load_model(
            FLAGS.model,
            FLAGS.dtype,
            report,
            FLAGS.revision,
            command.mesh_from_flags(FLAGS.batch_size if "batch_size" in FLAGS else PLANNED_BATCH),
            FLAGS.quantization,
        )
    )


def enable_compilation_cache() -> None:
    """Keeps compiled programs in a directory only this user can read, from run to run."""
    try:
        directory = cache_directory() / "compiled"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, TaskVecError):
        return  # a home that cannot be written costs a compilation a run, nothing else
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def run(main: Callable[[], None]) -> None:
    """Runs an experiment, or with --plan says what its model needs instead."""

    def planned() -> None:
        if "plan" in FLAGS and FLAGS.plan:
            for line in plan_lines(*describe(FLAGS.model, FLAGS.revision)):
                console.print(line, markup=False)
            return
        enable_compilation_cache()
        try:
            main()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise TaskVecError(
                f"{error.filename or 'a file'}: cannot be written ({error.strerror}); make room, or"
                " choose another --out"
            ) from None

    command.run(planned)


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
    """Everything needed to run again: versions, device, dtype, hashes, command, seconds."""
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
        "matmul_precision": matmul_precision(),
        "seed": seed,
        "weights_sha256": model.weights_sha256,
        "tokenizer_sha256": model.tokenizer.sha256,
        "command": shlex.join(["python", "-m", _module_name(), *sys.argv[1:]]),
        "seconds": round(seconds, 3),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from its source tree


def matmul_precision() -> str:
    """What --jax_default_matmul_precision, or the environment, asks for."""
    return str(jax.config.values["jax_default_matmul_precision"] or "default")


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem
