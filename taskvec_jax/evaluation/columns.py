"""The columns of a task's result: what each condition answered to the test prompts, and its scores.

A column is zero-shot, in-context learning, the task vector, or a control. All columns answer the
same prompts in the same order and are scored by the same rules; answers that a first token does not
settle are generated for all of them together.

Shapes: N prompts, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskvec_jax.evaluation.answers import Job, Scorer, accepted, complete
from taskvec_jax.evaluation.statistics import Outcomes
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.vectors.graded import Graded

DIGITS = 5  # of log-probabilities and differences in a result
COLUMN_KEYS = ("queries", "answers", "prompts")  # of `outcomes`, beside the columns


class Predicted(NamedTuple):
    """Answers of the model.

    Attributes:
      begun: the first tokens of each answer, at least one.
      prompts: token ids of each prompt.
      graded: of the first tokens, [N].
      layer, vectors: what is written over each prompt's last token, [N, D]; None: nothing.
    """

    begun: Sequence[tuple[int, ...]]
    prompts: Sequence[Sequence[int]]
    graded: Graded | None = None
    layer: int | None = None
    vectors: np.ndarray | None = None


class Given(NamedTuple):
    """Answers that are texts, for each rule one for each prompt; no model is asked."""

    paper: Sequence[str]
    full: Sequence[str]


Answered = Predicted | Given


def score_columns(
    scorer: Scorer, prompts: Sequence[Prompt], *, columns: Mapping[str, Answered], rule: str
) -> dict[str, dict[str, Any]]:
    """Scores columns on the same prompts by both rules.

    Args:
      rule: the one in force.

    Returns:
      For each column, lists with a value for each prompt: `correct`, 0 or 1 by the rule in force;
      `correct_paper`, `correct_full`; `predicted`, the answer as text, under `full` as far as it
      was needed to settle it; `logprob`, `rank`, `logit_difference`, graded scores of its first
      token (absent where no model was asked); and `layer`, where a vector was written.
    """
    predicted = {name: c for name, c in columns.items() if isinstance(c, Predicted)}
    jobs = [
        Job(
            prompts[i].query,
            column.prompts[i],
            column.begun[i],
            column.layer,
            None if column.vectors is None else column.vectors[i],
        )
        for column in predicted.values()
        for i in range(len(prompts))
    ]
    said = iter(complete(scorer, jobs))
    found: dict[str, dict[str, Any]] = {}
    for name, column in columns.items():
        if isinstance(column, Given):
            found[name] = _given(scorer, prompts, column, rule)
            continue
        firsts = np.array([ids[0] for ids in column.begun])
        paper = scorer.by_first_token(prompts, firsts)
        full = [next(said) for _ in prompts]
        words = scorer.words(firsts) if rule == "paper" else [answer.text for answer in full]
        found[name] = {
            **_correct(paper, [answer.right for answer in full], rule),
            "predicted": words,
            **_graded(column.graded),
            "layer": column.layer,
        }
    return found


def _given(scorer: Scorer, prompts: Sequence[Prompt], column: Given, rule: str) -> dict[str, Any]:
    right = {
        name: [
            scorer.rule(name).is_right(text, accepted(prompt.query))
            for text, prompt in zip(getattr(column, name), prompts, strict=True)
        ]
        for name in ("paper", "full")
    }
    return {
        **_correct(right["paper"], right["full"], rule),
        "predicted": list(getattr(column, rule)),
        "layer": None,
    }


def _correct(paper: Any, full: Any, rule: str) -> dict[str, list[int]]:
    of_rule = {"paper": [int(right) for right in paper], "full": [int(right) for right in full]}
    return {
        "correct": of_rule[rule],
        "correct_paper": of_rule["paper"],
        "correct_full": of_rule["full"],
    }


def _graded(graded: Graded | None) -> dict[str, list[Any]]:
    if graded is None:
        return {}
    return {
        "logprob": _rounded(graded.logprob),
        "rank": graded.rank.tolist(),
        "logit_difference": _rounded(graded.difference),
    }


def graded_means(graded: Graded) -> dict[str, list[float]]:
    """Means over prompts of graded scores [N, 1 + L], the untouched query's left out: [L] each."""
    return {
        name: _rounded(values[:, 1:].mean(axis=0))
        for name, values in (("logprob", graded.logprob), ("logit_difference", graded.difference))
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, DIGITS) for value in values.astype(float).tolist()]


def record(prompts: Sequence[Prompt], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The `outcomes` of a task: its test prompts, and each column of `score_columns`."""
    return {
        "queries": [prompt.query.input for prompt in prompts],
        "answers": [accepted(prompt.query) for prompt in prompts],
        "prompts": [prompt.icl() for prompt in prompts],
        **columns,
    }


def outcomes_of(recorded: Mapping[str, Any], key: str = "correct") -> Outcomes:
    """What `record` gave, for statistics.

    Args:
      key: "correct", "correct_paper" or "correct_full".
    """
    columns = {n: c[key] for n, c in recorded.items() if n not in COLUMN_KEYS and c is not None}
    return Outcomes(recorded["queries"], columns)
