"""Conditions compared each at its own layer: chosen on dev, scored on test.

A condition that is tried at a layer chosen for another one says nothing about the two. Here every
condition is a set of vectors for all layers, of dev and of test prompts.

Shapes: N prompts of each split, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskvec_jax.evaluation.answers import Scorer
from taskvec_jax.evaluation.columns import Predicted, score_columns
from taskvec_jax.evaluation.measuring import sweep_dev_of_each
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import accuracy
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.vectors.sweep import inject_vectors


class Condition(NamedTuple):
    """Vectors to be written after any one layer, float32 [N, L, D] each."""

    dev: np.ndarray
    test: np.ndarray


class Asked(NamedTuple):
    """The prompts of both splits, and their zero-shot queries as token ids."""

    dev: Sequence[Prompt]
    test: Sequence[Prompt]
    dev_queries: Sequence[Sequence[int]]
    test_queries: Sequence[Sequence[int]]


def asked(scorer: Scorer, dev: Sequence[Prompt], test: Sequence[Prompt]) -> Asked:
    """Prompts with the queries as the main experiment writes them."""
    encode = scorer.model.tokenizer.encode_all
    return Asked(dev, test, *(encode([p.zero_shot() for p in part]) for part in (dev, test)))


def score_tuned(
    scorer: Scorer, prompts: Asked, *, conditions: Mapping[str, Condition], settings: Settings
) -> dict[str, dict[str, Any]]:
    """Accuracy on test of each condition at its own layer, and of zero-shot as `baseline`.

    Returns:
      For each condition `accuracy`, `low`, `high`, `n`, `queries`; `layer`, chosen on dev;
      `dev_accuracy` there; and `correct`, [N] of 0 or 1.
    """
    vectors = [condition.dev for condition in conditions.values()]
    swept = sweep_dev_of_each(scorer, prompts.dev, vectors, settings, prompts.dev_queries)
    chosen = dict(zip(conditions, swept, strict=True))
    layers = np.array([found.layer for found in swept])
    written = np.stack(
        [c.test[:, layer] for c, layer in zip(conditions.values(), layers, strict=True)], axis=1
    )
    answers = inject_vectors(
        scorer.model, prompts.test_queries, written, layers, settings.batch_size
    )
    columns = {}
    for i, name in enumerate(("baseline", *conditions)):
        begun = [(token,) for token in answers.tokens[:, i].tolist()]
        where = (int(layers[i - 1]), written[:, i - 1]) if i else (None, None)
        columns[name] = Predicted(begun, prompts.test_queries, None, *where)
    scored = score_columns(scorer, prompts.test, columns=columns, rule=settings.rule)
    queries = [prompt.query.input for prompt in prompts.test]
    found = {}
    for name, column in scored.items():
        found[name] = {
            **vars(accuracy(column["correct"], queries)),
            "layer": column["layer"],
            "dev_accuracy": chosen[name].accuracy if name in chosen else None,
            "correct": column["correct"],
        }
    return found
