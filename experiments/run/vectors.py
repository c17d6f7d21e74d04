"""The vectors of a run as files with names: vectors/<task>/theta.safetensors.

A run's journal keeps arrays under hashes. Here what it has of a task is written as `TaskVector`s
that one can find, load and use, and the result file lists them:

    "vectors": {"<task>": {"theta": "vectors/<task>/theta.safetensors",
                           "theta_of_each_prompt": "arrays/<hash>.npy"}}

theta is the mean over the test prompts after every layer; `numpy.load` reads that of each prompt,
[N, L, D].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.run.journal import Journal
from experiments.run.writing import WriteError
from taskvec_jax.distributed.processes import is_first_process
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.provenance import Origin
from taskvec_jax.vectors.vector import TaskVector

DIRECTORY = "vectors"
Index = dict[str, dict[str, str]]  # task -> name -> file, relative to the directory of the run


class VectorFiles:
    """Writes the vectors that a journal has, each once.

    Attributes:
      index: what was written.
    """

    def __init__(self, out: Path, model: Model, journal: Journal, usual: Settings) -> None:
        self._out, self._model, self._journal = out, model, journal
        self._usual = usual  # the run's own settings
        self.index: Index = {}

    def keep(
        self,
        task: Task,
        name: str,
        what: Any,
        layers: Sequence[int],
        *,
        made: str,
        settings: dict[str, Any],
        prompts: int | None = None,
    ) -> None:
        """Writes an array of the journal, or its mean over prompts, as a file with a name.

        Nothing is written where the journal does not have it, in another process than the first,
        or of another shape: no `TaskVector` holds vectors at several positions.

        Args:
          name: of the file, without its ending.
          what: the array's unit; [n, D], one vector for each of n layers.
          made, settings: for the file.
          prompts: N, where the array is [N, n, D]: the mean over them is written.

        Raises:
          WriteError: it cannot be written.
        """
        of_task = self.index.setdefault(task.name, {})
        if name in of_task or not is_first_process():
            return
        kept = self._journal.kept_array(what)
        if kept is None:
            return
        path, array = kept
        lead = () if prompts is None else (prompts,)
        if array.shape[:-1] != (*lead, len(layers)):
            return
        mean = array if prompts is None else array.mean(axis=0)
        origin = Origin.of(self._model, task=task.name, settings=settings, made=made)
        relative = Path(DIRECTORY, task.name, f"{name}.safetensors")
        try:
            TaskVector(mean, tuple(layers), origin=origin).save(self._out / relative)
        except TaskVecError as error:
            raise WriteError(str(error)) from None
        of_task[name] = str(relative)
        if prompts is not None:
            of_task[f"{name}_of_each_prompt"] = str(path.relative_to(self._out))

    def of_thetas(
        self,
        tasks: Sequence[Task],
        settings: Settings,
        unit: Callable[[Task, Settings], Any],
    ) -> Index:
        """The index, once the thetas that the journal has under these settings are written.

        Args:
          settings: what differs from the run's own is in the name of the file.
          unit: the name in the journal of the thetas of a task.

        Raises:
          WriteError: one cannot be written.
        """
        for task in tasks:
            self.keep(
                task,
                f"theta{suffix(settings, self._usual)}",
                unit(task, settings),
                range(self._model.config.num_layers),
                prompts=settings.num_prompts,
                made=f"mean theta of {task.name} over {settings.num_prompts} test prompts",
                settings={
                    k: v for k, v in dataclasses.asdict(settings).items() if k != "batch_size"
                },
            )
        return {task: dict(files) for task, files in self.index.items() if files}


def suffix(settings: Settings, usual: Settings) -> str:
    """What tells a file of other settings than the run's: `_num_demonstrations4`, or nothing."""
    return "".join(
        f"_{field.name}{getattr(settings, field.name)}"
        for field in dataclasses.fields(settings)
        if field.name not in ("batch_size", "template")
        and getattr(settings, field.name) != getattr(usual, field.name)
    )
