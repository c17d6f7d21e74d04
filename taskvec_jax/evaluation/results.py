"""What decides the numbers of a run, and what is measured on one task."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError, short_repr
from taskvec_jax.evaluation.judging import Accuracy
from taskvec_jax.evaluation.records import Result
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.tasks.task import Match, check_task


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run.

    Attributes:
      num_prompts: prompts of each of dev and test (the paper: 50).
      num_demonstrations: shown in each prompt (the paper: 5).
      num_dummy_queries: theta is averaged over this many (the paper: 2).
      seed: of the draw of prompts.
      batch_size: rows a compiled call works on; changes no number beyond float noise.
      template: how prompts are written; a `Template`, or a text that `Template.of` takes.
    """

    num_prompts: int = 50
    num_demonstrations: int = 5
    num_dummy_queries: int = 2
    seed: int = 0
    batch_size: int = 50
    template: Template = PAPER

    def __post_init__(self) -> None:
        if isinstance(self.template, str):
            object.__setattr__(self, "template", Template.of(self.template))
        if not isinstance(self.template, Template):
            raise TaskVecError(f"template is {short_repr(self.template)}; it must be a Template")
        for field in dataclasses.fields(self):
            if field.name == "template":
                continue
            got = getattr(self, field.name)
            if not isinstance(got, int | np.integer) or isinstance(got, bool):
                raise TaskVecError(f"{field.name} is {short_repr(got)}; it must be a whole number")
            object.__setattr__(self, field.name, int(got))  # NumPy's numbers are not JSON's
            if got < 1 and field.name != "seed":
                raise TaskVecError(f"{field.name} is {got}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Example:
    """One test prompt, its answer, and the predicted tokens as text: of ICL and of the vector."""

    query: str
    answer: str
    icl: str
    task_vector: str


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Everything measured on one task.

    Attributes:
      category: of the task.
      baseline: zero-shot, no injection, on the queries of dev and test.
      icl: demonstrations and query, on test.
      task_vector: theta of each test prompt injected at `best_layer`, on test.
      random_vector: control; a random direction of theta's norm injected at the same place.
      icl_strict, task_vector_strict: by the rule "the first token of the answer".
      best_layer: argmax of dev accuracy, ties to the lowest.
      dev_accuracy_by_layer: [L].
      num_pairs: pairs the tokenizer filter kept, of `num_all_pairs`.
      leading_space: the task was posed as ` x` -> ` y`.
      examples: all test prompts.
      warnings: what a reader should know before believing the numbers.
      match: the rule by which answers were judged (`Task.match`).
    """

    category: str
    baseline: Accuracy
    icl: Accuracy
    task_vector: Accuracy
    random_vector: Accuracy
    icl_strict: Accuracy
    task_vector_strict: Accuracy
    best_layer: int
    dev_accuracy_by_layer: list[float]
    num_pairs: int
    num_all_pairs: int
    leading_space: bool
    examples: list[Example]
    warnings: list[str]
    match: Match

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    def records(self, of: str | None = None) -> list[dict[str, Any]]:
        """Flat records (see records.py): one of all scores, or one for each item of a list, such
        as "examples" (the test prompts) or "dev_accuracy_by_layer"."""
        return Result(self.to_dict()).records(of)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskResult:
        """Reads what `to_dict` wrote."""
        read = {k: Accuracy(**v) if isinstance(v, dict) else v for k, v in values.items()}
        return cls(**{**read, "examples": [Example(**example) for example in values["examples"]]})


def check_arguments(model: Any, task: Any, settings: Any) -> None:
    """Refuses what is no model, no task or no settings, before anything is computed.

    Raises:
      TaskVecError: it says which, what was given and how to get the right one.
    """
    if not isinstance(model, Model):
        raise TaskVecError(f"model is {short_repr(model)}; it must be what load_model gives")
    check_task(task)
    if not isinstance(settings, Settings):
        raise TaskVecError(
            f"settings is {short_repr(settings)}; it must be Settings, such as"
            " Settings(num_prompts=10)"
        )
