"""A study: one model, some tasks, settings, and the journal that finished units go to.

Experiments are functions of a study; what two of them need (a task's main scores, thetas) is a
method here, so that whichever runs first pays for it and the others find it.
"""

# Long because: what two experiments share is a method of the study.

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert.progress import Overall
from experiments.run import flags as command
from experiments.run import identity, rerun
from experiments.run.fingerprint import fingerprint
from experiments.run.journal import Journal
from experiments.run.results import provenance
from experiments.run.vectors import VectorFiles
from experiments.run.writing import WriteError
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.controlled import evaluate_with_controls
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.lending import mean_theta_of
from taskvec_jax.evaluation.measuring import (
    Measured,
    choose_layer,
    measure,
    measured_again,
    read_test_theta,
)
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.records import Result
from taskvec_jax.evaluation.results import Settings, TaskResult
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Task

# Whose versions are part of a unit's name: what they compute is in its value.
NUMERIC = ("flax", "jax", "jaxlib", "numpy", "optax", "scikit-learn", "tokenizers")


class UnsuitedError(TaskVecError):
    """A task cannot lend its theta: it does not suit the tokenizer or the settings."""


@dataclasses.dataclass
class Study:
    """What an experiment runs on.

    Attributes:
      model: in memory.
      tasks: those the run asks for.
      available: all tasks of the run's registry; controls borrow thetas from them.
      settings: of the main experiment.
      short_settings: the same with 4 demonstrations, unless the user chose a number.
      out: directory of results.
      journal: finished units.
      named: the tasks were named one by one, not taken because they are there.
      record: where the tasks come from and which were left out, for the result files.
      started: when the experiment under way began.
      advance: called with the number of prompts just finished, while a task is evaluated.
      overall: what the experiment is a piece of, for progress bars; None: it is run alone.
    """

    model: Model
    tasks: list[Task]
    available: list[Task]
    settings: Settings
    short_settings: Settings
    out: Path
    journal: Journal
    named: bool = False
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.monotonic)
    advance: Callable[[int], None] = lambda steps: None
    overall: Overall | None = None

    def what(
        self,
        experiment: str,
        task: Task | None,
        settings: Settings,
        compute: Callable[..., Any],
        **more: Any,
    ) -> Any:
        """The name of a unit: everything that decides its value.

        Neither the number of devices nor the batch, which follows from their memory, is part of
        it: a run goes on where another machine of the kind left off.

        Args:
          compute: what makes the value; its code is part of the name (see `fingerprint`).
          more: what else decides the value.
        """
        decisive = {k: v for k, v in dataclasses.asdict(settings).items() if k != "batch_size"}
        device = jax.devices()[0]
        return {
            "experiment": experiment,
            "code": fingerprint(compute),
            "versions": numeric_versions(),
            "model": self.model.weights_sha256,
            "tokenizer": self.model.tokenizer.sha256,
            "config": self.model.config.to_dict(),
            "device": [device.platform, device.device_kind],
            "task": task and {"name": task.name, "sha256": task_sha256(task)},
            "settings": decisive,
            **more,
        }

    def unit(
        self,
        experiment: str,
        task: Task | None,
        settings: Settings,
        compute: Callable[[], Any],
        **more: Any,
    ) -> Any:
        """A journalled value.

        Args:
          compute: makes the value; best a `functools.partial` of the function that does, because
            of a lambda all that the function around it does is part of the unit's name.
          more: what else decides the value.
        """
        return self.journal.unit(self.what(experiment, task, settings, compute, **more), compute)

    def measured(self, task: Task) -> Measured:
        """Theta, in-context answers and the dev sweep of a task: what several experiments share."""
        computed: list[Measured] = []

        def compute() -> dict[str, Any]:
            m = measure(self.model, task, self.settings, self.advance)
            computed.append(m)
            self.journal.keep_array(self._theta_unit(task, self.settings), m.theta)
            return m.to_dict()

        kept = self.journal.unit(self.what("measured", task, self.settings, measure), compute)
        if computed:
            return computed[0]
        return measured_again(
            self.model,
            task,
            self.settings,
            theta=self.theta(task, self.settings),
            kept=kept,
        )

    def sweep(self, task: Task) -> dict[str, Any]:
        """Baseline, ICL, task vector and a random vector of a task (`TaskResult.to_dict`); where
        `main` has found them they are not computed again."""
        found = self.journal.found(self._main_unit(task))
        if found is not None:
            return without_controls(found)

        def compute() -> dict[str, Any]:
            measured = self.measured(task)
            found = evaluate_task(self.model, task, self.settings, self.advance, measured)
            return found.to_dict()

        what = self.what("layer_sweep", task, self.settings, evaluate_task)
        return self.journal.unit(what, compute)

    def main(self, task: Task) -> dict[str, Any]:
        """Baseline, ICL, task vector and controls of a task (`ControlledResult.to_dict`)."""

        def compute() -> dict[str, Any]:
            result, _ = evaluate_with_controls(
                self.model,
                task,
                self.available,
                self.settings,
                self.advance,
                self.measured(task),
                self.lent(task),
            )
            return result.to_dict()

        return self.journal.unit(self._main_unit(task), compute)

    def _main_unit(self, task: Task) -> Any:
        lenders = [[other.name, task_sha256(other)] for other in self.available if other != task]
        return self.what("main", task, self.settings, evaluate_with_controls, lenders=lenders)

    def lent(self, task: Task) -> dict[str, np.ndarray]:
        """The mean thetas, [L, D], of the other tasks that can be posed, for controls of a task."""
        found: dict[str, np.ndarray] = {}
        for other in self.available:
            if other.name != task.name:
                with contextlib.suppress(UnsuitedError):
                    found[other.name] = self._mean_theta(other)
        return found

    def _mean_theta(self, task: Task) -> np.ndarray:
        what = self.what("mean theta", task, self.settings, mean_theta_of)

        def compute() -> np.ndarray:
            try:
                return mean_theta_of(self.model, task, self.settings)
            except WriteError:
                raise
            except TaskVecError as error:
                raise UnsuitedError(str(error)) from None

        return self.journal.array(what, compute)

    def theta(self, task: Task, settings: Settings) -> np.ndarray:
        """Theta of every test prompt: float32 [N, L, D]."""
        return self.journal.array(
            self._theta_unit(task, settings), lambda: read_test_theta(self.model, task, settings)
        )

    def layer(self, task: Task, settings: Settings) -> int:
        """The layer chosen on dev; found with `measured` when these settings are the run's."""
        if settings == self.settings:
            return self.measured(task).layer
        what = self.what("layer", task, settings, choose_layer)
        return int(self.journal.unit(what, lambda: choose_layer(self.model, task, settings)))

    def common_layer(self) -> int:
        """One layer for all tasks: argmax of the mean dev curve, ties to the lowest."""
        curves = [self.measured(task).curve for task in self.tasks]
        return best_layer(np.mean(curves, axis=0))

    def _theta_unit(self, task: Task, settings: Settings) -> Any:
        return self.what("theta", task, settings, read_test_theta)

    def data(self) -> dict[str, Any]:
        """The pairs of all tasks that were known to the run, for `--rerun`."""
        return {task.name: rerun.task_record(task) for task in (*self.available, *self.tasks)}

    @functools.cached_property
    def vectors(self) -> VectorFiles:
        """The vectors of the run as files with names."""
        return VectorFiles(self.out, self.model, self.journal, self.settings)

    def result(
        self,
        experiment: str,
        settings: Settings,
        payload: dict[str, Any],
        scored_by: str | None = None,
    ) -> Result:
        """The content of an experiment's JSON file; `records()` makes flat records of it.

        Args:
          scored_by: the rule of all its answers, where it knows only one; None: that of the run.
        """
        run = identity.of_settings(
            self.settings,
            self.short_settings.num_demonstrations,
            self.record.get("task_data"),
            self.record.get("task_file"),
        )
        content = {
            "experiment": experiment,
            **identity.of_run(self.model, run),
            "categories": {task.name: task.category for task in self.tasks},
            "settings": {
                **dataclasses.asdict(settings),
                "tasks": [task.name for task in self.tasks],
                **self.record,
            },
            "scored_by": scored_by or settings.rule,
            "provenance": provenance(self.model, settings.seed, time.monotonic() - self.started),
            "vectors": self.vectors.of_thetas(self.tasks, settings, self._theta_unit),
            **payload,
        }
        return Result(content)

    def each(
        self, title: str, tasks: Sequence[Task], measure: Callable[[Task], Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """What is measured of each task, by its name, and why others are left out.

        Raises:
          TaskVecError: none of them can be measured; it says why.
          WriteError: what was measured cannot be kept.
        """
        found: dict[str, Any] = {}
        notes: list[str] = []
        with self.bar(title, len(tasks)) as begin:
            for task in tasks:
                begin(task.name)
                try:
                    found[task.name] = measure(task)
                except WriteError:
                    raise
                except TaskVecError as error:
                    notes.append(str(error))
        if notes and not found:
            raise TaskVecError(f"{title}: no task can be measured: {'; '.join(notes)}")
        return found, notes

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        """A progress bar over units; what it yields is called with each unit's name, before it."""
        with command.progress_bar(self.overall) as bar:
            row = bar.add_task(title, total=total)
            begun = 0

            def begin(name: str) -> None:
                nonlocal begun
                bar.update(row, description=f"{title}: {name}", completed=begun)
                begun += 1

            yield begin


def without_controls(controlled: dict[str, Any]) -> dict[str, Any]:
    """Of a task's `ControlledResult.to_dict` what `TaskResult.to_dict` of a plain run has."""
    columns = {*controlled["controls"], "icl_wrong_labels"} - {"random"}
    outcomes = {k: v for k, v in controlled["outcomes"].items() if k not in columns}
    fields = [field.name for field in dataclasses.fields(TaskResult)]
    return {**{name: controlled[name] for name in fields}, "outcomes": outcomes}


@functools.cache
def numeric_versions() -> dict[str, str]:
    """Versions of the libraries that compute."""
    return {name: importlib.metadata.version(name) for name in NUMERIC}


def task_sha256(task: Task) -> str:
    """Hash of a task's content: its pairs, and how it is posed and scored."""
    rules = [task.match, task.leading_space, task.ignore_case, task.related]
    content = json.dumps([task.category, task.short_name, task.pairs, rules], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def chosen_tasks(study: Study, wanted: Sequence[str]) -> list[Task]:
    """The tasks for an experiment that is too slow for all: those named by --tasks, else few."""
    return study.tasks if study.named else some_of_each(study.tasks, wanted)


def some_of_each(tasks: Sequence[Task], wanted: Sequence[str]) -> list[Task]:
    """The tasks an experiment that is too slow for all of them runs on.

    Args:
      wanted: names; those that are not among the tasks give way to the first of each category.
    """
    chosen = [task for task in tasks if task.name in wanted]
    covered = {task.category for task in chosen}
    for task in tasks:
        if task.category not in covered:
            covered.add(task.category)
            chosen.append(task)
    return chosen
