"""Controls: what a task vector has to beat before it counts as carrying the task.

Every control is scored on the same test prompts, by the same rule, as the task vector:

* majority_class: always answer the most common output of the task's pairs;
* copy_input: answer the query itself;
* last_layer_replay: theta injected after the last block. Nothing is computed after it, so the
  model repeats what it would have said to the dummy queries: what a prompt leaks without any task
  being applied to the query;
* other_task: theta of other tasks, in turn, at this task's layer;
* random_vector: a random direction of theta's norm at this task's layer;
* shuffled_labels: theta from the same demonstrations with their outputs passed round.

The zero-shot baseline is held against the task vector with them.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.judging import Accuracy, Judge, accuracy, is_correct
from taskvec_jax.evaluation.protocol import (
    Measured,
    Settings,
    TaskResult,
    measure,
    random_control,
    score_task,
)
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit, sample
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Task
from taskvec_jax.vectors.sweep import inject_vectors, read_texts, sweep_layers

CONTROLS: Mapping[str, str] = {
    "majority_class": "the most common answer",
    "copy_input": "copying the input",
    "last_layer_replay": "last-layer replay",
    "other_task": "theta of other tasks",
    "random_vector": "a random vector of the same norm",
    "shuffled_labels": "theta from shuffled labels",
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


def majority_answer(fitted: FittedTask) -> str:
    """The most common output of a task's pairs, stripped; ties to the earliest pair."""
    return collections.Counter(pair.output.strip() for pair in fitted.pairs).most_common(1)[0][0]


def shuffle_labels(prompt: Prompt, *seed: object) -> Prompt:
    """The same demonstrations with their outputs passed round, so that none keeps its own place.

    A lone demonstration takes the output of a dummy query.
    """
    shown = prompt.demonstrations
    if len(shown) == 1:
        outputs = [prompt.dummy_queries[0].output]
    else:
        order = draw(seeded("shuffled labels", *seed), range(len(shown)), len(shown))
        outputs = [""] * len(shown)
        for here, there in zip(order, order[1:] + order[:1], strict=True):
            outputs[here] = shown[there].output
    return dataclasses.replace(
        prompt,
        demonstrations=tuple(
            pair._replace(output=output, accepted=())
            for pair, output in zip(shown, outputs, strict=True)
        ),
    )


def other_prompts(
    model: Model, task: Task, others: Sequence[Task], settings: Settings
) -> list[Prompt]:
    """Prompts of other tasks, taken in turn: prompt i is of task i modulo their number.

    Tasks that this tokenizer or these settings rule out are passed over.
    """
    fitted = []
    for other in others:
        if other.name != task.name:
            try:
                fits = fit(other, model.tokenizer)
                _draw_one(fits, settings, 0)
            except TaskVecError:
                continue
            fitted.append(fits)
    return [
        _draw_one(fitted[i % len(fitted)], settings, i)
        for i in range(settings.num_prompts if fitted else 0)
    ]


def _draw_one(fitted: FittedTask, settings: Settings, i: int) -> Prompt:
    (prompt,) = sample(
        fitted,
        seed=settings.seed,
        split=f"lent/{i}",
        count=1,
        num_demonstrations=settings.num_demonstrations,
        num_dummy_queries=settings.num_dummy_queries,
    )
    return prompt


def evaluate_with_controls(
    model: Model,
    task: Task,
    others: Sequence[Task],
    settings: Settings,
    progress: Callable[[int], None] = lambda prompts: None,
) -> tuple[ControlledResult, Measured]:
    """Runs the paper's main experiment on one task, with every control.

    Args:
      others: the tasks whose thetas are borrowed for a control; this task among them is ignored.
      progress: called with the number of prompts just finished, 4 * num_prompts in all.

    Returns:
      The scores, and what they were taken from (the thetas of the test prompts among it).

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    m = measure(model, task, settings, progress)
    n, encode, judge = len(m.test), model.tokenizer.encode_all, m.judge
    queries = encode([prompt.zero_shot() for prompt in m.test])
    swept = sweep_layers(model, queries, m.theta, settings.batch_size).tokens  # [N, 1 + L]
    progress(n)

    shuffled = [shuffle_labels(p, settings.seed, task.name, i) for i, p in enumerate(m.test)]
    lent = other_prompts(model, task, others, settings)
    texts = [encode([*p.dummies(), p.icl()]) for p in [*shuffled, *lent]]
    residuals, read = read_texts(model, texts, settings.batch_size)
    theta = residuals[:, : settings.num_dummy_queries, m.layer].mean(axis=1)  # [N or 2N, D]
    progress(n)
    # Without another task the shuffled theta stands in its place, so that shapes stay few.
    vectors = [random_control(m, settings), theta[:n], theta[-n:]]
    injected = inject_vectors(
        model, queries, np.stack(vectors, axis=1), np.full(3, m.layer), settings.batch_size
    ).tokens
    progress(n)

    majority = majority_answer(judge.fitted)
    controls: dict[str, Accuracy | None] = {
        "majority_class": accuracy(_says(judge, m.test, [majority] * n)),
        "copy_input": accuracy(_says(judge, m.test, [p.query.input.strip() for p in m.test])),
        "last_layer_replay": accuracy(judge.correct(m.test, swept[:, -1])),
        "other_task": accuracy(judge.correct(m.test, injected[:, 3])) if lent else None,
        "random_vector": accuracy(judge.correct(m.test, injected[:, 1])),
        "shuffled_labels": accuracy(judge.correct(m.test, injected[:, 2])),
    }
    curve = judge.correct(m.test, swept[:, 1:]).mean(axis=0)
    result = ControlledResult(
        result=score_task(m, swept[:, 0], swept[:, 1 + m.layer], injected[:, 1]),
        controls=controls,
        icl_shuffled_labels=accuracy(judge.correct(m.test, read.tokens[:n, -1])),
        test_accuracy_by_layer=[float(share) for share in curve],
        majority_answer=majority,
    )
    return result, m


def _says(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[bool]:
    category = judge.fitted.task.category
    return [is_correct(category, p.query, said) for p, said in zip(prompts, answers, strict=True)]


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
    names = {"baseline": "the zero-shot baseline", **CONTROLS}
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
