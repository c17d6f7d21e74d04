"""The layer after which a vector is written, chosen on dev prompts by the rule in force.

Shapes: N prompts, L layers, D width.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.evaluation.answers import Job, Scorer, complete
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.vectors.continuing import MOST_ROWS

AT_ONCE = MOST_ROWS  # answers that are generated together at most
AT_LEAST = 4  # of each layer


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

    Under `full` few answers need to be generated: no layer scores more than its answers whose first
    token may be right. All those of the most promising layer are generated (the one where the first
    token alone is most often a whole answer), and of every other layer only until so many are wrong
    that it can no longer win, those first that were wrong after other layers, or are only the
    beginning of an answer so far. The result is that of generating all answers.

    Args:
      queries: token ids of the zero-shot prompts.
      vectors: [N, L, D], what was written after each layer.
      tokens: int [N, L], the token predicted with it.
      rule: "paper" or "full".
    """
    if rule == "paper":
        curve = scorer.by_first_token(prompts, tokens).mean(axis=0)
        return Chosen(best_layer(curve), float(curve.max()))
    may = scorer.may_be_right(prompts, tokens)
    answers = _Answers(may, may & scorer.is_whole(prompts, tokens), tokens)
    if may.any():
        scorer.beginnings.read([query[:-1] for query in queries])
    while asked := answers.next_cells():
        jobs = [
            Job(prompts[i].query, queries[i], (int(tokens[i, layer]),), layer, vectors[i, layer])
            for i, layer in asked
        ]
        answers.enter(asked, [said.right for said in complete(scorer, jobs)])
    right, minus_layer = answers.best()
    return Chosen(-minus_layer, right / len(prompts))


Cell = tuple[int, int]  # a prompt and a layer


class _Answers:
    """Which answers [N, L] may be right, as far as it is known."""

    def __init__(self, may: np.ndarray, likely: np.ndarray, tokens: np.ndarray) -> None:
        self._likely = likely
        self._may = may.copy()  # those found wrong leave it
        self._open = may.copy()  # not known yet
        self._tokens = tokens
        # (prompt, first token) -> how often it was wrong after other layers, less how often right
        self._wrong: collections.Counter[tuple[int, int]] = collections.Counter()

    def best(self) -> tuple[int, int]:
        """Right answers of the best layer of which all are known, and minus that layer."""
        known = np.flatnonzero(~self._open.any(axis=0)).tolist()
        return max(((int(self._may[:, layer].sum()), -layer) for layer in known), default=(-1, 0))

    def next_cells(self) -> list[Cell]:
        """The answers to be generated next; none if the best layer is found."""
        bound = self._may.sum(axis=0).tolist()
        best = self.best()
        left = [layer for layer in range(len(bound)) if (bound[layer], -layer) > best]
        nothing_yet = best[0] <= 0  # that other layers could be held against
        if nothing_yet:
            likely = self._likely.sum(axis=0).tolist()
            left.sort(key=lambda layer: (-likely[layer], -bound[layer], layer))
        else:
            left.sort(key=lambda layer: (-bound[layer], layer))
        cells: list[Cell] = []
        while left and len(cells) < AT_ONCE:
            layer = left.pop(0)
            rows = np.flatnonzero(self._open[:, layer]).tolist()
            rows.sort(key=lambda row: self._promise(row, layer))
            if not nothing_yet:  # with so many wrong ones more, this layer loses
                rows = rows[: max(bound[layer] - best[0] + (-layer > best[1]), AT_LEAST)]
            cells += [(row, layer) for row in rows]
        return cells[:AT_ONCE]

    def _promise(self, row: int, layer: int) -> tuple[int, bool]:
        """A sort key: answers that are probably wrong come first."""
        return -self._wrong[row, int(self._tokens[row, layer])], bool(self._likely[row, layer])

    def enter(self, cells: Sequence[Cell], right: Sequence[bool]) -> None:
        """Notes which of these answers are right."""
        for (row, layer), one in zip(cells, right, strict=True):
            self._open[row, layer] = False
            self._may[row, layer] = one
            self._wrong[row, int(self._tokens[row, layer])] += -1 if one else 1
