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
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.measuring import Measured
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks.related import are_related
from taskvec_jax.tasks.task import Task
from taskvec_jax.vectors.sweep import sweep_several

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
    queries = scorer.model.tokenizer.encode_all([prompt.zero_shot() for prompt in dev])
    everywhere = [np.broadcast_to(theta, (len(dev), *theta.shape)) for theta in lent.values()]
    wanted = scorer.wanted(dev, settings.seed)  # for the program that the other sweeps use
    swept = sweep_several(scorer.model, queries, everywhere, settings.batch_size, wanted)
    tokens = [answers.tokens[:, 1:] for answers in swept]
    layers = [best_layer(scorer.by_first_token(dev, said).mean(axis=0)) for said in tokens]
    said_there = [said[:, layer] for said, layer in zip(tokens, layers, strict=True)]
    right = _are_right(scorer, dev, queries, list(lent.values()), layers, said_there, settings.rule)
    task = scorer.fitted.task
    return [
        Other(name, theta, said, layer, accuracy, name in known and are_related(task, known[name]))
        for (name, theta), said, layer, accuracy in zip(
            lent.items(), tokens, layers, right, strict=True
        )
    ]


def _are_right(
    scorer: Scorer,
    dev: Sequence[Prompt],
    queries: Sequence[Sequence[int]],
    thetas: Sequence[np.ndarray],
    layers: Sequence[int],
    said: Sequence[np.ndarray],
    rule: str,
) -> list[float]:
    """Dev accuracy of each of these thetas [L, D], written after its layer, where it says the
    tokens int [N]."""
    if rule == "paper":
        return [float(scorer.by_first_token(dev, tokens).mean()) for tokens in said]
    may = [np.flatnonzero(scorer.may_be_right(dev, tokens)).tolist() for tokens in said]
    jobs = [
        Job(dev[i].query, queries[i], (int(tokens[i]),), layer, theta[layer])
        for theta, layer, tokens, rows in zip(thetas, layers, said, may, strict=True)
        for i in rows
    ]
    whole = iter(complete(scorer, jobs) if jobs else ())
    return [sum(next(whole).right for _ in rows) / len(dev) for rows in may]
