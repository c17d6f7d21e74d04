"""Controls: what a task vector has to beat before it counts as carrying the task.

Every control is scored on the same test prompts, by the same rule, as the task vector. Each is one
entry of `CONTROLS`, with its name, its titles and how its answers are made; results, tables and the
verdict follow from the entry. The zero-shot baseline is held against the task vector with them.

Shapes: N test prompts, L layers, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskvec_jax.evaluation.control_prompts import (
    majority_answer,
    other_prompts,
    shuffle_labels,
)
from taskvec_jax.evaluation.judging import Accuracy, accuracy, is_correct
from taskvec_jax.evaluation.protocol import (
    Measured,
    measure,
    random_control,
    score_task,
)
from taskvec_jax.evaluation.reading import read_prompts
from taskvec_jax.evaluation.records import Result
from taskvec_jax.evaluation.results import Settings, TaskResult
from taskvec_jax.models.model import Model
from taskvec_jax.tasks.task import Task
from taskvec_jax.vectors.sweep import inject_vectors, sweep_layers


class Texts(NamedTuple):
    """Answers that are texts, one for each test prompt; no model is asked."""

    texts: list[str]


class Tokens(NamedTuple):
    """Answers that are predicted tokens, int [N]."""

    tokens: np.ndarray


class Vectors(NamedTuple):
    """Vectors [N, D], whose answers are predicted with them at the task's layer."""

    vectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class Materials:
    """What controls are made of.

    Attributes:
      measured: the task, its prompts, thetas and layer.
      settings: of the run.
      swept: int [N, 1 + L], predicted tokens of the test queries: untouched, then with each test
        prompt's own theta injected after every layer.
      shuffled: [N, D], theta at the task's layer from demonstrations with their outputs passed
        round.
      lent: [N, D], theta at that layer from prompts of other tasks; None if there is no other task.
    """

    measured: Measured
    settings: Settings
    swept: np.ndarray
    shuffled: np.ndarray
    lent: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
      phrase: what it is, inside a sentence.
      title: the same over a column of a table.
      make: its answers, or the vectors that give them; None where it cannot be made.
    """

    phrase: str
    title: str
    make: Callable[[Materials], Texts | Tokens | Vectors | None]


def _majority_class(m: Materials) -> Texts:
    """Always the most common output of the task's pairs."""
    return Texts([majority_answer(m.measured.judge.fitted)] * len(m.measured.test))


def _copy_input(m: Materials) -> Texts:
    """The query itself."""
    return Texts([prompt.query.input.strip() for prompt in m.measured.test])


def _last_layer_replay(m: Materials) -> Tokens:
    """Theta injected after the last block. Nothing is computed after it, so the model repeats its
    answer to the dummy queries: what a prompt leaks without any task applied to the query."""
    return Tokens(m.swept[:, -1])


def _other_task(m: Materials) -> Vectors | None:
    """Theta of other tasks, in turn."""
    return None if m.lent is None else Vectors(m.lent)


def _random_vector(m: Materials) -> Vectors:
    """A random direction of theta's norm."""
    return Vectors(random_control(m.measured, m.settings))


def _shuffled_labels(m: Materials) -> Vectors:
    """Theta from the same demonstrations with their outputs passed round."""
    return Vectors(m.shuffled)


CONTROLS: Mapping[str, Control] = {
    "majority_class": Control("the most common answer", "majority", _majority_class),
    "copy_input": Control("copying the input", "copy", _copy_input),
    "last_layer_replay": Control("last-layer replay", "replay", _last_layer_replay),
    "other_task": Control("theta of other tasks", "other θ", _other_task),
    "random_vector": Control("a random vector of the same norm", "random", _random_vector),
    "shuffled_labels": Control("theta from shuffled labels", "shuffled", _shuffled_labels),
}


@dataclasses.dataclass(frozen=True)
class ControlledResult:
    """A task's scores with its controls beside them.

    Attributes:
      result: baseline, ICL, task vector.
      controls: one score for each of `CONTROLS`; None where there is no other task to borrow from.
      icl_shuffled_labels: ICL with the shuffled demonstrations themselves.
      test_accuracy_by_layer: [L], each test prompt's own theta injected after every layer.
      majority_answer: what `majority_class` always says.
    """

    result: TaskResult
    controls: dict[str, Accuracy | None]
    icl_shuffled_labels: Accuracy
    test_accuracy_by_layer: list[float]
    majority_answer: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: the keys of `TaskResult`, and the controls."""
        rest = dataclasses.asdict(self)
        return {**rest.pop("result"), **rest}

    def records(self, of: str | None = None) -> list[dict[str, Any]]:
        """As of `TaskResult`, with the controls."""
        return Result(self.to_dict()).records(of)


def evaluate_with_controls(
    model: Model,
    task: Task,
    others: Sequence[Task],
    settings: Settings,
    progress: Callable[[int], None] = lambda prompts: None,
    measured: Measured | None = None,
) -> tuple[ControlledResult, Measured]:
    """Runs the paper's main experiment on one task, with every control.

    Args:
      others: the tasks whose thetas are borrowed for a control; this task among them is ignored.
      progress: called with the number of prompts just finished, 4 * num_prompts in all.
      measured: what `measure` gives for the same arguments; measured here when left out.

    Returns:
      The scores, and what they were taken from (the thetas of the test prompts among it).

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    m = measured or measure(model, task, settings, progress)
    judge, n = m.judge, len(m.test)
    queries = model.tokenizer.encode_all([prompt.zero_shot() for prompt in m.test])
    swept = sweep_layers(model, queries, m.theta, settings.batch_size).tokens  # [N, 1 + L]
    progress(n)

    shuffled = [shuffle_labels(p, settings.seed, task.name, i) for i, p in enumerate(m.test)]
    lent = other_prompts(model, task, others, settings)
    theta, icl = read_prompts(model, [*shuffled, *lent], settings.batch_size)
    theta = theta[:, m.layer]  # [N or 2N, D]
    progress(n)
    materials = Materials(m, settings, swept, theta[:n], theta[n:] if lent else None)
    answers = _answers(materials, queries)
    progress(n)

    controls = {name: _score(m, given) for name, given in answers.items()}
    random = controls["random_vector"]
    assert random is not None  # it needs nothing that could be absent
    curve = judge.correct(m.test, swept[:, 1:]).mean(axis=0)
    result = ControlledResult(
        result=score_task(m, swept[:, 0], swept[:, 1 + m.layer], random),
        controls=controls,
        icl_shuffled_labels=accuracy(judge.correct(m.test, icl[:n])),
        test_accuracy_by_layer=[float(share) for share in curve],
        majority_answer=majority_answer(judge.fitted),
    )
    return result, m


def _answers(
    materials: Materials, queries: Sequence[Sequence[int]]
) -> dict[str, Texts | Tokens | None]:
    """The answers of each control; those given with vectors are predicted, all in one call."""
    m, settings = materials.measured, materials.settings
    made = {name: control.make(materials) for name, control in CONTROLS.items()}
    vectors = {name: found.vectors for name, found in made.items() if isinstance(found, Vectors)}
    predicted: dict[str, Tokens] = {}
    if vectors:
        # For a control that cannot be made another's vectors are written, and what they give is
        # not used: the number of copies, and so the compiled program, is the same for all tasks.
        absent = [next(iter(vectors.values())) for found in made.values() if found is None]
        stacked = np.stack([*vectors.values(), *absent], axis=1)
        layers = np.full(stacked.shape[1], m.layer)
        tokens = inject_vectors(m.judge.model, queries, stacked, layers, settings.batch_size).tokens
        predicted = {name: Tokens(tokens[:, i]) for i, name in enumerate(vectors, start=1)}
    return {
        name: predicted[name] if isinstance(found, Vectors) else found
        for name, found in made.items()
    }


def _score(m: Measured, answers: Texts | Tokens | None) -> Accuracy | None:
    """Accuracy on the test prompts; None where the control could not be made."""
    if answers is None:
        return None
    if isinstance(answers, Tokens):
        return accuracy(m.judge.correct(m.test, answers.tokens))
    match = m.judge.fitted.task.match
    return accuracy(
        [is_correct(match, p.query, text) for p, text in zip(m.test, answers.texts, strict=True)]
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a task vector beats its controls.

    Attributes:
      beats: by the rule of `judge_controls`.
      best_control: the name of the highest control (`CONTROLS`, or "baseline").
      margin: the low end of the difference's interval, the smallest over controls.
      words: the same for a reader.
    """

    beats: bool
    best_control: str
    margin: float
    words: str


def difference_low(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """The low end of the 95 % interval of a - b (Newcombe 1998, from two Wilson intervals).

    Args:
      a, b: two shares, each with `accuracy`, `low`, `high`.
    """
    below, above = a["accuracy"] - a["low"], b["high"] - b["accuracy"]
    return a["accuracy"] - b["accuracy"] - math.hypot(below, above)


def judge_controls(task: Mapping[str, Any]) -> Verdict:
    """The rule: a task vector beats its controls when, for EVERY one of them and for the
    zero-shot baseline, the 95 % interval of the difference of the two scores is above zero.

    Args:
      task: what `ControlledResult.to_dict` wrote.
    """
    vector = task["task_vector"]
    scores = {name: value for name, value in task["controls"].items() if value}
    scores["baseline"] = task["baseline"]
    margins = {name: difference_low(vector, value) for name, value in scores.items()}
    best = max(scores, key=lambda name: scores[name]["accuracy"])
    closest = min(margins, key=lambda name: margins[name])
    names = {"baseline": "the zero-shot baseline"}
    names |= {name: control.phrase for name, control in CONTROLS.items()}
    height, margin = scores[best]["accuracy"], margins[closest]
    if margin > 0:
        words = f"beats its controls (best: {names[best]}, {height:.2f})"
    elif vector["accuracy"] > height:
        words = (
            f"not shown to beat its controls: above {names[closest]}"
            f" ({scores[closest]['accuracy']:.2f}), but the 95 % interval of the difference goes"
            f" down to {margin:+.2f}"
        )
    else:
        words = f"does not beat its controls: {names[best]} scores {height:.2f}, no less than it"
    return Verdict(margin > 0, best, margin, words)
