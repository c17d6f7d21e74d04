"""What controls are made from: the commonest answer, shuffled labels, prompts of other tasks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit, sample
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Task


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
                fits = fit(other, model.tokenizer, settings.template)
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
