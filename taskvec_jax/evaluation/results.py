# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""What decides the numbers of a run, and what is measured on one task."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any, get_args

from taskvec_jax.errors import TaskVecError, short_repr
from taskvec_jax.evaluation.records import Result
from taskvec_jax.evaluation.scoring import RuleName
from taskvec_jax.evaluation.statistics import Accuracy
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FILTERS
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.tasks.task import check_task

WORDS: Mapping[str, tuple[str, ...]] = {"rule": get_args(RuleName), "filter": FILTERS}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run.

    Attributes:
      num_prompts: prompts of each of dev and test (the paper: 50).
      num_demonstrations: shown in each prompt (the paper: 5).
      num_dummy_queries: theta is averaged over this many (the paper: 2).
      seed: of the draw of prompts.
      batch_size: most rows a compiled call works on; changes no number beyond float noise.
      template: how prompts are written; a `Template`, or a text that `Template.of` takes.
      rule: when an answer is right: "full", a whole answer, or "paper", its first token as the
        paper scores it (see scoring.py). Layers are chosen by it. With "paper" the queries are
        drawn as the paper does; else dev and test ask for different pairs where there are enough.
      filter: which pairs are kept: "single_token", answers of one token outside knowledge, or
        "none", longer ones too.
    """

    num_prompts: int = 50
    num_demonstrations: int = 5
    num_dummy_queries: int = 2
    seed: int = 0
    batch_size: int = 50
    template: Template = PAPER
    rule: str = "full"
    filter: str = "single_token"

    def __post_init__(self) -> None:
        if isinstance(self.template, str):
            object.__setattr__(self, "template", Template.of(self.template))
        if not isinstance(self.template, Template):
            raise TaskVecError(f"template is {short_repr(self.template)}; it must be a Template")
        for field in dataclasses.fields(self):
            if field.name == "template":
                continue
            got = getattr(self, field.name)
            if field.name in WORDS:
                if got not in WORDS[field.name]:
                    allowed = ", ".join(WORDS[field.name])
                    raise TaskVecError(f"{field.name} is {short_repr(got)}; allowed: {allowed}")
                continue
            if not isinstance(got, numbers.Integral) or isinstance(got, bool):
                raise TaskVecError(f"{field.name} is {short_repr(got)}; it must be a whole number")
            object.__setattr__(self, field.name, int(got))  # NumPy's numbers are not JSON's
            if got < 1 and field.name != "seed":
                raise TaskVecError(f"{field.name} is {got}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Everything measured on one task.

    Attributes:
      category: of the task.
      match: how the task is scored (`Task.match`).
      rule: the rule in force; scores are by it where nothing else is said.
      baseline: zero-shot, no injection, on the test queries.
      icl: demonstrations and query, on test.
      task_vector: theta of each test prompt injected at `best_layer`, on test.
      random: control; a random vector with theta's covariance and size, at its own best layer.
      best_layer: chosen on dev.
      dev_accuracy: of the task vector at `best_layer` on dev.
      dev_accuracy_by_layer: [L], by the rule `paper`, which needs no generation.
      dev_graded_by_layer: [L] each, means over dev prompts of the right answer's `logprob` (nats)
        and `logit_difference`.
      dev_icl, dev_baseline: shares right on dev.
      icl_able: whether ICL does the task (`statistics.icl_able`), from the dev prompts.
      num_pairs: pairs the tokenizer filter kept, of `num_all_pairs`.
      leading_space: the task was posed as ` x` -> ` y`.
      shared_queries: dev and test may ask for the same pairs; too few are left to keep them apart,
        or the rule is `paper`.
      outcomes: every answer to every test prompt (`columns.record`).
      warnings: what a reader should know before believing the numbers.
    """

    category: str
    match: str
    rule: str
    baseline: Accuracy
    icl: Accuracy
    task_vector: Accuracy
    random: Accuracy
    best_layer: int
    dev_accuracy: float
    dev_accuracy_by_layer: list[float]
    dev_graded_by_layer: dict[str, list[float]]
    dev_icl: float
    dev_baseline: float
    icl_able: bool
    num_pairs: int
    num_all_pairs: int
    leading_space: bool
    shared_queries: bool
    outcomes: dict[str, Any]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dataclasses.asdict(self)

    def records(self, of: str | None = None) -> list[dict[str, Any]]:
        """Flat records (see records.py): one of all scores, or one for each item of a list, such
        as "dev_accuracy_by_layer"."""
        return Result(self.to_dict()).records(of)


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
