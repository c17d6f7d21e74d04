"""What whole answers and graded scores add to the time of the default sweep.

    python -m experiments.bench.scoring
    python -m experiments.bench.scoring --tasks=linguistic_antonyms --without=graded --repeats=9

Each task is evaluated as `experiments.layer_sweep` does it, and again with that part left out:
without whole answers nothing is generated, no answer is assumed in the in-context prompt's pass and
the layer is chosen by first tokens; without graded scores the same programs give tokens alone. The
ways take turns in one process, after a turn of each that compiles, and the order is reversed from
turn to turn, so that other work on the machine slows both. What is added is told by task, and for
all tasks together as the median of the ratios of single turns, with the lowest and the highest.
Writes scoring.json under --out.

Time: 17 minutes with --repeats=1 (18 tasks, 2 cores with AVX-512, 2026-11-27), 8 more a turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
from absl import flags

from experiments.bench import turns
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import FLAGS, console
from experiments.run.results import prepare_out, provenance, write_json
from experiments.run.start import fitting_tasks, tell_left_out
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation import columns, measuring, protocol, reading
from taskvec_jax.evaluation.answers import Job, Said, Scorer
from taskvec_jax.evaluation.layers import Chosen, layers_of_dev
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import DEFAULT_MODEL
from taskvec_jax.tasks import Task
from taskvec_jax.vectors import sweep
from taskvec_jax.vectors.graded import Graded
from taskvec_jax.vectors.sweep import Answers


@contextlib.contextmanager
def without_whole_answers() -> Iterator[None]:
    """Evaluates by first tokens alone: nothing is generated, assumed or held against a layer."""

    def nothing_said(scorer: Scorer, jobs: Sequence[Job]) -> list[Said]:
        return [Said(scorer.text(job.begun), False) for job in jobs]

    def by_first_token(*args: Any, **more: Any) -> list[Chosen]:
        return layers_of_dev(*args, **{**more, "rule": "paper"})

    with (
        mock.patch.object(columns, "complete", nothing_said),
        mock.patch.object(measuring, "layers_of_dev", by_first_token),
        mock.patch.object(reading, "MOST_ASSUMED", 0),
    ):
        yield


@contextlib.contextmanager
def without_graded_scores() -> Iterator[None]:
    """Evaluates with programs that give tokens alone; zeros stand for the graded scores."""

    def ungraded(write: Callable[..., Answers]) -> Callable[..., Answers]:
        def tokens_alone(*args: Any, **more: Any) -> Answers:
            answers = write(*args, **more)
            shape = answers.tokens.shape
            nothing = np.zeros(shape, np.float32)
            return answers._replace(graded=Graded(nothing, np.zeros(shape, np.int32), nothing))

        return tokens_alone

    with (
        mock.patch.object(Scorer, "wanted", return_value=None),
        mock.patch.object(sweep, "sweep_layers", ungraded(sweep.sweep_layers)),
        mock.patch.object(protocol, "inject_vectors", ungraded(protocol.inject_vectors)),
    ):
        yield


WITHOUT: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "whole_answers": without_whole_answers,
    "graded": without_graded_scores,
}


def times(model: Model, task: Task, settings: Settings, without: str, repeats: int) -> Times:
    """Seconds of a task's evaluation with everything and without a part, in turns."""
    ways = {"with": contextlib.nullcontext, "without": WITHOUT[without]}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + repeats):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            with ways[name]():
                start = time.perf_counter()
                evaluate_task(model, task, settings)
                seconds = time.perf_counter() - start
            if turn:
                found[name].append(seconds)
    return Times(found["with"], found["without"])


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each timed turn with a part of the work and without it."""

    whole: list[float]
    without: list[float]

    def ratios(self) -> dict[str, float]:
        """With over without: the median of the turns' ratios, the lowest and the highest."""
        return turns.ratios(self.whole, self.without)


def together(several: Sequence[Times]) -> Times:
    """Turn by turn, the sums over tasks."""
    return Times(
        [sum(turn) for turn in zip(*(t.whole for t in several), strict=True)],
        [sum(turn) for turn in zip(*(t.without for t in several), strict=True)],
    )


def entry(found: Times) -> dict[str, Any]:
    """For the result file."""
    return {**dataclasses.asdict(found), "times": found.ratios()}


def line(name: str, found: Times) -> str:
    """A row of the table."""
    ratio = found.ratios()
    seconds = (statistics.median(found.without), statistics.median(found.whole))
    return (
        f"{name:<38} {seconds[0]:>9.2f} {seconds[1]:>9.2f}"
        f" {ratio['median']:>7.3f} ({ratio['lowest']:.3f} to {ratio['highest']:.3f})"
    )


def main() -> None:
    """Measures the tasks that the flags ask for and writes scoring.json."""
    if FLAGS.without not in WITHOUT:
        raise TaskVecError(f"--without={FLAGS.without!r}; allowed: {', '.join(WITHOUT)}")
    if FLAGS.repeats < 1:
        raise TaskVecError(f"--repeats={FLAGS.repeats}; it must be at least 1")
    settings = command.settings_from_flags()
    tasks = command.tasks_from_flags(model=FLAGS.model)
    run = {
        "without": FLAGS.without,
        "repeats": FLAGS.repeats,
        "dtype": FLAGS.dtype,
        **identity.of_settings(settings),
    }
    out = prepare_out(FLAGS.out, {"model": FLAGS.model, **run})
    started = time.monotonic()
    model = load_model(FLAGS.model, FLAGS.dtype)
    tasks, left_out = fitting_tasks(model.tokenizer, tasks, settings, must_fit=bool(FLAGS.tasks))
    tell_left_out(left_out)
    settings = command.within_memory(settings, model, tasks)
    console.print(f"[bold]{'task':<38} {'without s':>9} {'with s':>9} {'times':>7}[/bold]")
    found: dict[str, Times] = {}
    for task in tasks:
        found[task.name] = times(model, task, settings, FLAGS.without, FLAGS.repeats)
        console.print(line(task.name, found[task.name]), markup=False)
    every = together(list(found.values()))
    console.print(line("all of them", every), markup=False)
    result = {
        "model": FLAGS.model,
        "revision": None,
        "run": run,
        "settings": {**dataclasses.asdict(settings), "tasks": list(found)},
        "provenance": provenance(model, settings.seed, time.monotonic() - started),
        "tasks": {
            name: {**dataclasses.asdict(t), "times": t.ratios()} for name, t in found.items()
        },
        "all": {**dataclasses.asdict(every), "times": every.ratios()},
    }
    write_json(out / "scoring.json", result)
    console.print(f"wrote {out / 'scoring.json'}", markup=False)


if __name__ == "__main__":
    flags.DEFINE_string("model", DEFAULT_MODEL, "a known name or a path")
    flags.DEFINE_string("dtype", "float32", "of the parameters")
    flags.DEFINE_string("without", "whole_answers", "what is left out: whole_answers or graded")
    flags.DEFINE_integer("repeats", 2, "timed turns after the one that compiles")
    flags.DEFINE_string("out", "results/scoring", "directory for results")
    command.define_prompt_flags()
    command.run(main)
