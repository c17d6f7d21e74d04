"""The layer after which a vector is written, chosen on dev prompts by the rule in force.

Shapes: N prompts, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.evaluation.answers import Job, Scorer, complete
from taskvec_jax.prompting.prompts import Prompt

AT_ONCE = 2  # layers whose answers are generated together


class Chosen(NamedTuple):
    """A layer chosen on dev.

    Attributes:
      layer: the best one by the rule in force, ties to the lowest.
      accuracy: dev accuracy there, by that rule.
    """

    layer: int
    accuracy: float


def best_layer(dev_accuracy: Sequence[float] | np.ndarray) -> int:
    """The layer of the highest dev accuracy, ties to the lowest."""
    return int(np.argmax(dev_accuracy))


def layer_of_dev(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    queries: Sequence[Sequence[int]],
    vectors: np.ndarray,
    tokens: np.ndarray,
    rule: str,
) -> Chosen:
    """The layer after which vectors do best on dev.

    Under `full` answers are generated at the layers that can still be the best, most promising
    ones first: no layer scores more than its answers whose first token may be right, so once that
    many are fewer than the best score found, the rest of the layers need no generation. The result
    is that of generating at every layer.

    Args:
      queries: token ids of the zero-shot prompts.
      vectors: [N, L, D], what was written after each layer.
      tokens: int [N, L], the token predicted with it.
      rule: "paper" or "full".
    """
    if rule == "paper":
        curve = scorer.by_first_token(prompts, tokens).mean(axis=0)
        return Chosen(best_layer(curve), float(curve.max()))
    may = scorer.may_be_right(prompts, tokens)  # [N, L]
    bound = may.sum(axis=0).tolist()
    order = sorted(range(len(bound)), key=lambda layer: (-bound[layer], layer))
    best = (-1, 0)  # right answers, minus the layer
    while order and (bound[order[0]], -order[0]) > best:
        layers, order = order[:AT_ONCE], order[AT_ONCE:]
        jobs = {
            layer: [
                Job(
                    prompts[i].query, queries[i], (int(tokens[i, layer]),), layer, vectors[i, layer]
                )
                for i in np.flatnonzero(may[:, layer]).tolist()
            ]
            for layer in layers
        }
        said = iter(complete(scorer, [job for several in jobs.values() for job in several]))
        for layer, several in jobs.items():
            right = sum(next(said).right for _ in several)
            best = max(best, (right, -layer))
    return Chosen(-best[1], best[0] / len(prompts))
