"""When does in-context learning appear, when the task vector, and at which layer?

    python -m experiments.emergence --run=results/train_small
    python -m experiments.emergence --model=pythia-70m \\
        --revision=step0,step512,step4000,step143000 --tasks=knowledge_country_capital

The layer sweep of every task over the models of a training run: those that `train_small` kept
(--run), or the revisions of a model on the hub. Writes emergence.json and emergence.png/.svg under
--out: a heat map step x layer of the mean dev accuracy with theta injected, and ICL, task vector
and baseline by step. Finished steps and tasks are found in the journal, so a run that was stopped
goes on.

Expected for the run that `pythia-icl-small` is from: both appear together, between steps 64 and
120, after layers 1 and 2 of 0-5 (its training asks for a task vector after layer 2).
"""

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
from experiments.page.section import Section, Table, number, show, text
from experiments.run import flags as command
from experiments.run import identity
from experiments.run import study as studies
from experiments.run.flags import FLAGS, console
from experiments.run.own_tasks import tokenizer_of
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.protocol import check_injection, evaluate_task
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
    run = command.run_from_flags(FLAGS.run or FLAGS.model)
    del run["revision"]
    return command.prepare_out(FLAGS.out or f"results/{command.results_name(run)}_emergence", run)


def main() -> None:
    """Sweeps the models the flags ask for."""
    moments = moments_from_flags()
    settings = command.settings_from_flags()
    first = moments[0].model
    asked = command.tasks_from_flags(model=first)
    available = command.available_tasks_from_flags(model=first)
    if (tokenizer := tokenizer_of(first, moments[0].revision)) is not None:
        studies.fitting_tasks(tokenizer, asked, settings, must_fit=bool(FLAGS.tasks))
    out = results_directory()
    journal = studies.open_journal(out)
    started = time.monotonic()
    steps: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    hashes: dict[str, str] = {}
    study: Study | None = None
    mesh = mesh_from_flags(FLAGS.batch_size)
    try:
        for moment in moments:
            model = reporting(
                lambda report, moment=moment: load_model(
                    moment.model, FLAGS.dtype, report, moment.revision, mesh, FLAGS.quantization
                ),
                f"step {moment.step}",
            )
            if study is None:
                settings = command.within_memory(settings, model, asked)
                tasks, left_out = studies.fitting_tasks(
                    model.tokenizer, asked, settings, must_fit=bool(FLAGS.tasks)
                )
                studies.tell_left_out(left_out)
                study = Study(model, tasks, available, settings, settings, out, journal)
            study = _with_model(study, model)
            hashes[f"step{moment.step}"] = model.weights_sha256
            check_injection(model, settings.batch_size)
            with study.bar(f"step {moment.step}", len(study.tasks)) as begin:
                steps.append(mean_of(moment.step, sweep_moment(study, begin)))
            console.print(_line(steps[-1]), markup=False)
    finally:
        journal.close()
    assert study is not None  # there is a moment
    result = {
        "experiment": NAME,
        "model": FLAGS.run or FLAGS.model,
        "revision": None if FLAGS.run else FLAGS.revision,
        "dtype": FLAGS.dtype,
        "quantization": identity.quantization(FLAGS.quantization),
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
        "provenance": command.provenance(study.model, settings.seed, time.monotonic() - started),
        "steps": steps,
        "appears": {key: appearance(steps, key) for key in ("icl", "task_vector")},
    }
    command.write_json(out / f"{NAME}.json", result)
    from experiments.page import figures  # matplotlib is slow to import

    with figures.theme("light"):
        figures.save(draw(result), out / NAME)
    show(section(result))
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


def section(result: dict[str, Any]) -> Section:
    """The table of steps, and when things appeared."""

    def at(key: str) -> str:
        step = result["appears"][key]
        return "does not appear" if step is None else f"appears by step {step}"

    words = [
        f"In-context learning {at('icl')}, the task vector {at('task_vector')} (the first step"
        " from which on the score stays above half of its highest mean)."
    ]
    rows = [
        [
            text(f"step {step['step']}"),
            *(number(step[key]) for key in ("baseline", "icl", "task_vector")),
            number(step["best_layer"], 0),
        ]
        for step in result["steps"]
    ]
    columns = ["step", "baseline", "ICL", "task vector", "best layer"]
    caption = f"Mean of {len(result['settings']['tasks'])} tasks by step"
    return Section(
        "When does the task vector appear?",
        words,
        [Table(caption, columns, rows)],
        {NAME: "Left: mean dev accuracy with theta injected, step x layer. Right: by step."},
    )


def draw(result: dict[str, Any]) -> Any:
    """A heat map step x layer, and scores by step."""
    from experiments.page import figures

    steps = result["steps"]
    grid = [step["dev_accuracy_by_layer"] for step in steps]
    figure, axes = figures.canvas(11, 4.2, 1, 2)
    names = [str(step["step"]) for step in steps]
    layers = [str(layer) for layer in range(len(grid[0]))]
    wide = len(layers) > 12
    figures.heat_map(
        axes[0], grid, names, layers, label="dev accuracy", write="" if wide else ".2f"
    )
    axes[0].set(xlabel="layer after which θ is read and written", ylabel="training step")
    axes[0].set_title("task vector by step and layer")
    shown = (("icl", "in context"), ("task_vector", "task vector"), ("baseline", "zero-shot"))
    for colour, (key, label) in zip(figures.COLOURS, shown, strict=False):
        axes[1].plot(range(len(steps)), [s[key] for s in steps], "o-", color=colour, label=label)
    axes[1].set_xticks(range(len(steps)), names, rotation=45)
    axes[1].set(xlabel="training step", ylim=(-0.02, 1.02))
    axes[1].set_title(f"mean of {len(result['settings']['tasks'])} tasks")
    axes[1].legend(loc="upper left")
    return figure


if __name__ == "__main__":
    studies.define_flags()
    flags.DEFINE_string("run", None, "directory of a run of experiments.small_pythia.train")
    command.run(main)
