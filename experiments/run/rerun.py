"""A run again, from its result file alone: model, settings and the tasks' pairs are in it.

    python -m experiments.main_results --rerun=results/RUN/main_results.json --out=again

The pairs are taken from the file, so that neither --task_data nor --task_file, nor the word lists
of another version, are needed. The weights have to be those of the file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from absl import flags

from convert.cli import FLAGS
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Pair, Task

OF_MODEL = ("model", "revision", "dtype", "quantization", "matmul_precision")
OF_RUN = tuple(
    f.name for f in dataclasses.fields(Settings) if f.name not in ("batch_size", "template")
)
OF_TEMPLATE = {"template": "pair", "separator": "separator", "header": "header"}  # flag -> part
NOT_BESIDE = (*OF_MODEL, *OF_RUN, *OF_TEMPLATE, "tasks", "task_data", "task_file")


def define_flag() -> None:
    """--rerun."""
    flags.DEFINE_string(
        "rerun",
        None,
        "A layer_sweep.json or main_results.json: the same model, settings and pairs again. Flags"
        " of these cannot be given beside it; --out can, and has to be another directory.",
    )


def asked() -> Path | None:
    """The file of --rerun."""
    return Path(FLAGS.rerun) if "rerun" in FLAGS and FLAGS.rerun else None


def task_record(task: Task) -> dict[str, Any]:
    """A task as plain values, for a result file; `task_of` reads it."""
    record = dataclasses.asdict(task)
    record["pairs"] = [
        [pair.input, pair.output, *([list(pair.accepted)] if pair.accepted else [])]
        for pair in task.pairs
    ]
    return record | {"related": list(task.related)}


def task_of(record: dict[str, Any]) -> Task:
    """The task of a record."""
    pairs = tuple(Pair(p[0], p[1], tuple(p[2]) if len(p) > 2 else ()) for p in record["pairs"])
    return Task(**{**record, "pairs": pairs, "related": tuple(record["related"])})


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: result[name] for name in (*OF_MODEL, "weights_sha256")}
        kept |= {name: result["run"][name] for name in OF_RUN}
        template = result["settings"]["template"]
        kept |= {flag: template[part] for flag, part in OF_TEMPLATE.items()}
        kept["tasks"] = list(result["tasks"])
        kept["data"] = {name: task_of(record) for name, record in result["data"].items()}
        return kept
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskVecError(
            f"--rerun={path}: no result that can be run again ({type(error).__name__}: {error});"
            " give a layer_sweep.json or main_results.json of this version"
        ) from None


def apply() -> None:
    """Sets the flags that the file of --rerun decides.

    Raises:
      TaskVecError: it cannot be read, or one of these flags is given beside it.
    """
    path = asked()
    if path is None:
        return
    kept = _read(path)
    given = [name for name in NOT_BESIDE if name in FLAGS and FLAGS[name].present]
    if given:
        raise TaskVecError(
            f"--rerun={path} runs what the file says; leave out --{', --'.join(given)}, or give"
            " flags without --rerun"
        )
    for name in (*OF_MODEL, *OF_RUN, *OF_TEMPLATE):
        if name in FLAGS:
            FLAGS[name].value = kept[name]


def tasks() -> list[Task] | None:
    """The tasks to run, from the file; None without --rerun."""
    path = asked()
    return None if path is None else [_read(path)["data"][name] for name in _read(path)["tasks"]]


def available() -> list[Task] | None:
    """All tasks that were known to the run, from the file; None without --rerun."""
    path = asked()
    return None if path is None else list(_read(path)["data"].values())


def check_weights(model: Model) -> None:
    """Refuses other weights than those of the file.

    Raises:
      TaskVecError: it gives both hashes.
    """
    path = asked()
    if path is not None and _read(path)["weights_sha256"] != model.weights_sha256:
        raise TaskVecError(
            f"--rerun={path} was run on weights {_read(path)['weights_sha256'][:12]}, and"
            f" {model.name} has {model.weights_sha256[:12]} now; convert the revision of the file,"
            " or run without --rerun"
        )
