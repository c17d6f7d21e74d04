"""Which run a result is of, so that results of two runs are never taken for those of one.

A run is told from another by its model, revision, dtype, quantization, precision of products,
weights, tokenizer, and the settings of its command line. The batch size, the mesh and the choice of
tasks are not among them: the first two change no number, and a task is evaluated alone. Every
result file holds

    model, revision, dtype, quantization, matmul_precision, weights_sha256    at the top
    run            the settings, and a key that stands for the model (`names.model_key`)

and a directory holds the results of one run. A run that finds those of another one there is
refused before it computes anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import model_key
from taskvec_jax.models.origin import path_key

Identity = dict[str, Any]

OF_MODEL = (
    "model",
    "revision",
    "dtype",
    "quantization",
    "matmul_precision",
    "weights_sha256",
)
SHORT_HASH = 8  # characters of a hash, for people


def quantization(weights: str) -> str:
    """ "none" or "int8", what result files say, for `DecoderConfig.weights`."""
    return "none" if weights == "whole" else weights


def of_settings(
    settings: Settings,
    short_demonstrations: int | None = None,
    task_data: str | None = None,
    task_file: str | None = None,
) -> Identity:
    """The settings that tell a run from another.

    Args:
      settings: of the run, as its flags ask for them.
      short_demonstrations: of the experiments that show fewer; None: it has none of them.
      task_data, task_file: where tasks come from.
    """
    found = {k: v for k, v in dataclasses.asdict(settings).items() if k != "batch_size"}
    found["template"] = settings.template.label
    if short_demonstrations is not None:
        found["short_num_demonstrations"] = short_demonstrations
    paths = {"task_data": task_data, "task_file": task_file}
    return found | {name: path and str(Path(path).resolve()) for name, path in paths.items()}


def of_model(model: Model) -> Identity:
    """The part of a result file that says which model it is of."""
    return {
        "model": model.name,
        "revision": model.revision,
        "dtype": model.config.dtype,
        "quantization": quantization(model.config.quantization),
        "matmul_precision": model.config.matmul_precision,
        "weights_sha256": model.weights_sha256,
    }


def of_run(model: Model, settings: Identity) -> dict[str, Any]:
    """What every result file says of its run.

    Args:
      settings: as `of_settings` gives them.
    """
    key = model_key(model.name, model.revision)
    return {**of_model(model), "run": {"model_key": key, **settings}}


def read(result: Mapping[str, Any]) -> Identity:
    """The identity of the run that a result file is of, in one level.

    Files of earlier versions say less; what they do not say is not compared.

    Raises:
      KeyError: it names no model.
    """
    about = result.get("provenance") or {}
    found = {"model": result["model"]} | {key: result[key] for key in OF_MODEL if key in result}
    if "tokenizer_sha256" in about:
        found["tokenizer_sha256"] = about["tokenizer_sha256"]
    if "run" in result:
        return found | dict(result["run"])
    for key in ("dtype", "weights_sha256", "seed"):
        if key in about:
            found[key] = about[key]
    if "weights" in about:
        found["quantization"] = quantization(about["weights"])
    return found


def differences(one: Identity, other: Identity) -> list[str]:
    """The names of what both say, and say differently.

    Models are compared by their keys where both have one: a path may be written in several ways.
    """
    names = [name for name in one if name in other]
    if "model_key" in names:
        names = [name for name in names if name not in ("model", "revision")]
    hashes = [name for name in names if name.endswith("_sha256")]
    names = [  # what is of several models has several hashes, and is compared by its key
        name
        for name in names
        if name not in hashes or (isinstance(one[name], str) and isinstance(other[name], str))
    ]
    found = [name for name in names if one[name] != other[name]]
    if "model_key" in found:  # other weights follow from it
        found = [
            "model",
            *(name for name in found if name not in ("model_key", "model", *hashes)),
        ]
    return found


def say(name: str, identity: Identity) -> str:
    """One property of a run for people: `seed 1`, `bfloat16`, `default revision`."""
    value = identity.get(name)
    if name == "revision":
        return f"revision {value}" if value else "default revision"
    if name == "quantization":
        return "not quantized" if value == "none" else str(value)
    if name == "matmul_precision":
        return f"matmul precision {value}"
    if name in ("model", "dtype"):
        return str(value)
    if name.endswith("_sha256"):
        return f"{name.removesuffix('_sha256')} {str(value)[:SHORT_HASH]}"
    return f"{name} {value}"


def results_in(directory: Path) -> dict[str, Identity]:
    """The result files of a directory, by name, and the runs they are of.

    Files that are no results are passed over; a comparison of several runs is none of one.
    """
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(result, dict) and "model" in result and "provenance" in result:
            found[path.name] = read(result)
    return found


def check_directory(directory: Path, run: Identity) -> None:
    """Refuses to put the results of a run among those of another one.

    Args:
      run: as much of its identity as is known.

    Raises:
      TaskVecError: it says which file is of another run, what differs, and the way out.
    """
    for name, found in results_in(directory).items():
        if names := differences(run, found):
            raise TaskVecError(
                f"{directory / name} is of another run ({_said(names, found)}; now"
                f" {_said(names, run)}); choose another --out (left out, experiments name one after"
                " model, dtype and settings), or move that file away"
            )


def check_alike(directory: Path, runs: Mapping[str, Identity]) -> None:
    """Refuses result files of one directory that are of several runs.

    Args:
      runs: file name -> identity.

    Raises:
      TaskVecError: it names two files and what differs.
    """
    names = list(runs)
    for i, name in enumerate(names):
        for first in names[:i]:
            if found := differences(runs[first], runs[name]):
                raise TaskVecError(
                    f"{directory}: {first} and {name} are of two runs"
                    f" ({_said(found, runs[first])}; {_said(found, runs[name])}); put each run's"
                    " files into a directory of its own, or run one of the experiments again"
                )


def _said(names: Sequence[str], run: Identity) -> str:
    return ", ".join(say(name, run) for name in names)


def describe(run: Identity) -> str:
    """A run in one line, its model aside."""
    order = (
        "revision",
        "dtype",
        "quantization",
        "matmul_precision",
        "seed",
        "num_prompts",
        "num_demonstrations",
    )
    names = [name for name in order if name in run and (run[name] or name != "revision")]
    return _said(names, run)


def labels(runs: Sequence[Identity], places: Sequence[Path]) -> list[str]:
    """A name for each of several runs: the model, and everything in which the runs differ.

    Args:
      runs: identities.
      places: where their results lie; said where nothing else tells two runs apart.
    """
    known = {name for run in runs for name in run}
    hidden = {"model", "model_key", "short_num_demonstrations", "tokenizer_sha256"}
    names = [
        name
        for name in dict.fromkeys((*OF_MODEL, *sorted(known)))
        if name in known - hidden
        and name != "weights_sha256"
        and len({repr(run.get(name)) for run in runs}) > 1
    ]
    made = [_said(["model", *names], run) for run in runs]
    for more in ("weights_sha256", "tokenizer_sha256", "short_num_demonstrations"):
        doubled = [made.count(label) > 1 for label in made]
        groups = [
            {repr(run.get(more)) for run, label in zip(runs, made, strict=True) if label == own}
            for own in made
        ]
        made = [
            f"{label}, {say(more, run)}" if twice and len(group) > 1 else label
            for label, run, twice, group in zip(made, runs, doubled, groups, strict=True)
        ]
    return [
        f"{label} ({place})" if made.count(label) > 1 else label
        for label, place in zip(made, places, strict=True)
    ]


def directory_name(run: Identity, defaults: Identity) -> str:
    """The name of the directory for the results of a run, after all that tells it from others.

    The model's key, with its revision, and the dtype always; quantization, precision of products
    and settings where they are not the default: `smollm2-135m-instruct_float32`,
    `pythia-70m@step1000_bfloat16_int8_seed1`.

    Args:
      run: with "model_key".
      defaults: the settings of a run without flags.
    """
    parts = [run["model_key"], run["dtype"]]
    if run["quantization"] != "none":
        parts.append(run["quantization"])
    if run.get("matmul_precision", "highest") != "highest":
        parts.append(f"precision_{run['matmul_precision']}")
    for name, default in defaults.items():
        value = run.get(name, default)
        if value != default:
            is_path = name in ("task_data", "task_file")
            if name == "template":  # a text of any length
                value = f"-{hashlib.sha256(value.encode()).hexdigest()[:SHORT_HASH]}"
            parts.append(path_key(value) if is_path else f"{name}{value}")
    return "_".join(parts)
