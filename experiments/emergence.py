"""When does in-context learning appear, when the task vector, and at which layer?

    python -m experiments.emergence --run=results/train_small --rule=paper
    python -m experiments.emergence --model=pythia-70m \\
        --revision=step0,step512,step4000,step143000 --tasks=knowledge_country_capital

The layer sweep of every task over the models of a training run: those that `train_small` kept
(--run), or the revisions of a model on the hub. Writes emergence.json and emergence.png/.svg under
--out: a heat map step x layer of the mean dev accuracy with theta injected, and ICL, task vector
and baseline by step. Finished steps and tasks are found in the journal, so a run that was stopped
goes on.

The models of `train_small` learn answers and not to stop after them, so whole answers of theirs are
all wrong; --rule=paper scores first tokens.

Expected for the run that `pythia-icl-small` is from: both appear together, between steps 64 and
120, after layers 1 and 2 of 0-5 (its training asks for a task vector after layer 2).

Time: a layer sweep a step.
"""

# Long because: a run on disk and revisions of a hub are two sources of the same steps.

from __future__ import annotations

import dataclasses
import functools
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from convert.cli import mesh_from_flags, reporting
from convert.progress import Overall
from experiments.commands.registry import Experiment
from experiments.commands.runner import draw_all, show
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import FLAGS, console
from experiments.run.own_tasks import tokenizer_of
from experiments.run.results import (
    prepare_out,
    provenance,
    results_name,
    run_from_flags,
    write_json,
)
from experiments.run.start import define_flags, fitting_tasks, open_journal, tell_left_out
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.injection_check import check_injection
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.records import Result
from taskvec_jax.models import checkpoint
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import model_key
from taskvec_jax.tasks import Task

NAME = "emergence"
THRESHOLD = 0.5  # the share of the final score at which something is said to have appeared


@dataclasses.dataclass(frozen=True)
class Moment:
    """A model on its way.

    Attributes:
      step: of the training.
      model: what `load_model` takes.
      revision: on the hub; None: not there.
    """

    step: int
    model: str
    revision: str | None = None


EMERGENCE = Experiment(NAME, in_paper=False)


def step_of(name: str) -> int:
    """The number in `step1000`.

    Raises:
      TaskVecError: there is none.
    """
    found = re.fullmatch(r"step(\d+)", name)
    if not found:
        raise TaskVecError(f"{name!r} is no step of a training; expected step and a number")
    return int(found[1])


def moments_of_run(run: Path) -> list[Moment]:
    """The models that a run of `train_small` kept, in order of step.

    Raises:
      TaskVecError: there are none.
    """
    moments = [
        Moment(step_of(path.name), str(path))
        for path in run.glob("step*")
        if re.fullmatch(r"step\d+", path.name) and checkpoint.is_checkpoint(path)
    ]
    if not moments:
        raise TaskVecError(
            f"--run={run} holds no step<N>/ with a converted model;"
            " run experiments.small_pythia.train --out=DIRECTORY first"
        )
    return sorted(moments, key=lambda moment: moment.step)


def moments_of_hub(model: str, revisions: str) -> list[Moment]:
    """Revisions of a model, in order of step.

    Raises:
      TaskVecError: one that names no step, or one named twice.
    """
    moments = [Moment(step_of(name), model, name) for name in revisions.split(",")]
    if len({moment.step for moment in moments}) != len(moments):
        raise TaskVecError(f"--revision={revisions} names a step twice")
    return sorted(moments, key=lambda moment: moment.step)


def moments_from_flags() -> list[Moment]:
    """The models the flags ask for."""
    if FLAGS.run:
        return moments_of_run(Path(FLAGS.run))
    if FLAGS.revision:
        return moments_of_hub(FLAGS.model, FLAGS.revision)
    raise TaskVecError(
        "which steps? --run=DIRECTORY of experiments.small_pythia.train, or --model=pythia-70m with"
        " --revision=step0,step512,..."
    )


def sweep_moment(study: Study, progress: Any = lambda name: None) -> dict[str, Any]:
    """Scores of every task at one step: {task: {baseline, icl, task_vector, best_layer, curve}}."""
    found = {}
    for task in study.tasks:
        progress(task.name)
        found[task.name] = study.unit(
            NAME, task, study.settings, functools.partial(_scores, study, task)
        )
    return found


def _scores(study: Study, task: Task) -> dict[str, Any]:
    result = evaluate_task(study.model, task, study.settings)
    return {
        "baseline": result.baseline.accuracy,
        "icl": result.icl.accuracy,
        "task_vector": result.task_vector.accuracy,
        "best_layer": result.best_layer,
        "dev_accuracy_by_layer": result.dev_accuracy_by_layer,
    }


def mean_of(step: int, scores: dict[str, Any]) -> dict[str, Any]:
    """The mean over tasks at one step."""
    curve = np.mean([task["dev_accuracy_by_layer"] for task in scores.values()], axis=0)
    means = {
        key: float(np.mean([task[key] for task in scores.values()]))
        for key in ("baseline", "icl", "task_vector")
    }
    return {
        "step": step,
        **means,
        "best_layer": int(curve.argmax()),
        "dev_accuracy_by_layer": curve.tolist(),
        "tasks": scores,
    }


def appearance(steps: list[dict[str, Any]], key: str) -> int | None:
    """The first step at which a score is above `THRESHOLD` of its highest, and stays so; None if
    it never rises above the first step's."""
    values = [step[key] for step in steps]
    if max(values) <= values[0]:
        return None
    below = [i for i, value in enumerate(values) if value < THRESHOLD * max(values)]
    first = below[-1] + 1 if below else 0
    return steps[first]["step"] if first < len(steps) else None


def results_directory() -> Path:
    """Where the result goes, made: --out, or results/<name of the run>_emergence.

    The steps are not part of the name: more of them join those that are done.
    """
    run = run_from_flags(FLAGS.run or FLAGS.model)
    del run["revision"]
    return prepare_out(FLAGS.out or f"results/{results_name(run)}_emergence", run)


def main() -> None:
    """Sweeps the models the flags ask for."""
    moments = moments_from_flags()
    settings = command.settings_from_flags()
    first = moments[0].model
    asked = command.tasks_from_flags(model=first)
    available = command.available_tasks_from_flags(model=first)
    if (tokenizer := tokenizer_of(first, moments[0].revision)) is not None:
        fitting_tasks(tokenizer, asked, settings, must_fit=bool(FLAGS.tasks))
    out = results_directory()
    journal = open_journal(out)
    started = time.monotonic()
    steps: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    hashes: dict[str, str] = {}
    study: Study | None = None
    mesh = mesh_from_flags(FLAGS.batch_size)
    overall = Overall({f"step {moment.step}": 1.0 for moment in moments})
    with journal:
        for moment in moments:
            overall.begin(f"step {moment.step}")
            model = reporting(
                lambda report, moment=moment: load_model(
                    moment.model,
                    FLAGS.dtype,
                    report,
                    moment.revision,
                    mesh,
                    FLAGS.quantization,
                    FLAGS.matmul_precision,
                ),
                f"step {moment.step}",
            )
            if study is None:
                settings = command.within_memory(settings, model, asked)
                tasks, left_out = fitting_tasks(
                    model.tokenizer, asked, settings, must_fit=bool(FLAGS.tasks)
                )
                tell_left_out(left_out)
                study = Study(model, tasks, available, settings, settings, out, journal)
                study.overall = overall
            study = _with_model(study, model)
            hashes[f"step{moment.step}"] = model.weights_sha256
            check_injection(model, settings.batch_size)
            computed = journal.computed
            with study.bar(f"step {moment.step}", len(study.tasks)) as begin:
                steps.append(mean_of(moment.step, sweep_moment(study, begin)))
            overall.end(computed=journal.computed > computed)
            console.print(_line(steps[-1]), markup=False)
    assert study is not None  # there is a moment
    result = {
        "experiment": NAME,
        "model": FLAGS.run or FLAGS.model,
        "revision": None if FLAGS.run else FLAGS.revision,
        "dtype": FLAGS.dtype,
        "quantization": identity.quantization(FLAGS.quantization),
        "matmul_precision": FLAGS.matmul_precision,
        "weights_sha256": hashes,
        "run": {
            "model_key": model_key(FLAGS.run or FLAGS.model),
            **identity.of_settings(settings, None, FLAGS.task_data, FLAGS.task_file),
        },
        "settings": {
            **dataclasses.asdict(settings),
            "tasks": [task.name for task in study.tasks],
            "task_file": FLAGS.task_file,
            "left_out": left_out,
        },
        "provenance": provenance(study.model, settings.seed, time.monotonic() - started),
        "steps": steps,
        "appears": {key: appearance(steps, key) for key in ("icl", "task_vector")},
    }
    result = Result(result)
    write_json(out / f"{NAME}.json", result)
    draw_all(EMERGENCE, result, out)
    show(EMERGENCE.page.section(result))
    console.print(f"wrote {out / NAME}.json and .png")


def _with_model(study: Study, model: Model) -> Study:
    """The study of another step.

    Raises:
      TaskVecError: its model is of another shape, so that its layers are not the same ones.
    """
    if model.config != study.model.config:
        raise TaskVecError(
            f"{model.name} is of another shape than {study.model.name}; the models of one run have"
            " the same layers"
        )
    return dataclasses.replace(study, model=model)


def _line(step: dict[str, Any]) -> str:
    curve = " ".join(f"{share:.2f}" for share in step["dev_accuracy_by_layer"])
    return (
        f"step {step['step']:>7}  baseline {step['baseline']:.2f}  ICL {step['icl']:.2f}  task"
        f" vector {step['task_vector']:.2f}  by layer {curve}"
    )


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_string("run", None, "Directory of a run of experiments.small_pythia.train.")
    command.run(main)
