"""What other tasks lend to a task: their thetas and their prompts.

Shapes: N prompts, L layers, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Job, Scorer, complete, scorer_of
from taskvec_jax.evaluation.layers import Swept, layers_of_dev
from taskvec_jax.evaluation.measuring import Measured, inject_on_dev, queries_of
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks.related import are_related
from taskvec_jax.tasks.task import Task

LENT_PROMPTS = 10  # prompts that the mean theta of another task is taken over, at most


class Other(NamedTuple):
    """The mean theta of another task, on this one's dev prompts.

    Attributes:
      name: of that task.
      theta: float32 [L, D].
      tokens: int [N, L], what is predicted with it on dev after each layer.
      layer: where its first tokens are most often right on dev.
      accuracy: there, by the rule in force.
      related: the two tasks are declared related.
    """

    name: str
    theta: np.ndarray
    tokens: np.ndarray
    layer: int
    accuracy: float
    related: bool


def mean_theta_of(model: Model, task: Task, settings: Settings) -> np.ndarray:
    """The mean theta of a task after every layer, to be lent to others: float32 [L, D].

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    few = dataclasses.replace(settings, num_prompts=min(LENT_PROMPTS, settings.num_prompts))
    prompts = draw_prompts(scorer_of(model, task, settings).fitted, few, "lent")
    return read_theta(model, prompts, settings.batch_size).mean(axis=0)


def prompts_of_others(
    model: Model, task: Task, others: Sequence[Task], settings: Settings
) -> list[Prompt]:
    """Prompts of other tasks, taken in turn: prompt i is of task i modulo their number.

    Tasks that this tokenizer or these settings rule out are passed over.
    """
    one = dataclasses.replace(settings, num_prompts=1)
    fitted = []
    for other in others:
        if other.name != task.name:
            try:
                fits = scorer_of(model, other, settings).fitted
                draw_prompts(fits, one, "lent")
            except TaskVecError:
                continue
            fitted.append(fits)
    return [
        draw_prompts(fitted[i % len(fitted)], one, "lent", i)[0]
        for i in range(settings.num_prompts if fitted else 0)
    ]


def lent_thetas(
    model: Model, task: Task, others: Sequence[Task], settings: Settings
) -> dict[str, np.ndarray]:
    """The mean thetas of the other tasks that this tokenizer and these settings allow."""
    lent = {}
    for other in others:
        if other.name != task.name:
            try:
                lent[other.name] = mean_theta_of(model, other, settings)
            except TaskVecError:
                continue
    return lent


def rank_lent(
    m: Measured,
    lent: Mapping[str, np.ndarray],
    known: Mapping[str, Task],
    settings: Settings,
) -> list[Other]:
    """Every lent theta on this task's dev prompts.

    By them the nearest task and the median one are found. So the layer follows from first tokens,
    which cost nothing more, and whole answers are generated at that layer alone; the tasks that are
    used as controls then get the layer where their whole answers do best, as every control does.
    """
    scorer, dev = m.scorer, m.dev
    queries = queries_of(scorer, dev)
    everywhere = [np.broadcast_to(theta, (len(dev), *theta.shape)) for theta in lent.values()]
    answers = inject_on_dev(scorer, dev, everywhere, settings, queries)
    swept = [
        Swept(theta, said.tokens[:, 1:]) for theta, said in zip(everywhere, answers, strict=True)
    ]
    chosen = layers_of_dev(scorer, dev, queries=queries, several=swept, rule="paper")
    accuracies = [accuracy for _, accuracy in chosen]
    if settings.rule == "full":
        accuracies = _whole_answers(scorer, dev, queries, swept, [layer for layer, _ in chosen])
    task = scorer.fitted.task
    return [
        Other(
            name,
            theta,
            of.tokens,
            layer,
            accuracy,
            name in known and are_related(task, known[name]),
        )
        for (name, theta), of, (layer, _), accuracy in zip(
            lent.items(), swept, chosen, accuracies, strict=True
        )
    ]


def _whole_answers(
    scorer: Scorer,
    dev: Sequence[Prompt],
    queries: Sequence[Sequence[int]],
    several: Sequence[Swept],
    layers: Sequence[int],
) -> list[float]:
    """Dev accuracy, by whole answers, of each set of vectors written after its own layer."""
    jobs: list[list[Job]] = []
    for swept, layer in zip(several, layers, strict=True):
        tokens = swept.tokens[:, layer]
        jobs.append(
            [
                Job(dev[i].query, queries[i], (int(tokens[i]),), layer, swept.vectors[i, layer])
                for i in np.flatnonzero(scorer.may_be_right(dev, tokens)).tolist()
            ]
        )
    said = iter(complete(scorer, [job for of_set in jobs for job in of_set]))
    return [sum(next(said).right for _ in of_set) / len(dev) for of_set in jobs]
