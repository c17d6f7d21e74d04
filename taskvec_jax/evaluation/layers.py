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

AT_ONCE = MOST_ROWS  # answers of one set of vectors that are generated together at most
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


class Swept(NamedTuple):
    """Vectors that were written after each layer, and what was predicted with them.

    Attributes:
      vectors: [N, L, D].
      tokens: int [N, L].
    """

    vectors: np.ndarray
    tokens: np.ndarray


def layers_of_dev(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    queries: Sequence[Sequence[int]],
    several: Sequence[Swept],
    rule: str,
) -> list[Chosen]:
    """The layer after which vectors do best on dev, for each of several sets of them.

    Under `full` few answers need to be generated: no layer scores more than its answers whose first
    token may be right. All those of the most promising layer are generated (the one where the first
    token alone is most often a whole answer), and of every other layer only until so many are wrong
    that it can no longer win, those first that were wrong after other layers, or are only the
    beginning of an answer so far. The result is that of generating all answers. Answers of all sets
    are generated together.

    Args:
      queries: token ids of the zero-shot prompts.
      rule: "paper" or "full".
    """
    if rule == "paper":
        curves = [scorer.by_first_token(prompts, swept.tokens).mean(axis=0) for swept in several]
        return [Chosen(best_layer(curve), float(curve.max())) for curve in curves]
    of_sets: list[_Answers] = []
    for swept in several:
        may = scorer.may_be_right(prompts, swept.tokens)
        whole = may & scorer.is_whole(prompts, swept.tokens)
        of_sets.append(_Answers(may, whole, swept.tokens))
    if any(answers.any_left() for answers in of_sets):
        scorer.beginnings.read([query[:-1] for query in queries])
    going = list(zip(several, of_sets, strict=True))
    while going:
        share = max(1, AT_ONCE // len(going))
        asked = [(swept, answers, answers.next_cells(share)) for swept, answers in going]
        going = [(swept, answers) for swept, answers, cells in asked if cells]
        jobs = [
            Job(
                prompts[i].query,
                queries[i],
                (int(swept.tokens[i, layer]),),
                layer,
                swept.vectors[i, layer],
            )
            for swept, _, cells in asked
            for i, layer in cells
        ]
        said = iter(complete(scorer, jobs))
        for _, answers, cells in asked:
            answers.enter(cells, [next(said).right for _ in cells])
    found: list[Chosen] = []
    for answers in of_sets:
        right, minus_layer = answers.best()
        found.append(Chosen(-minus_layer, right / len(prompts)))
    return found


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

    def any_left(self) -> bool:
        """Whether some answer is not known yet."""
        return bool(self._open.any())

    def next_cells(self, enough: int) -> list[Cell]:
        """The answers to be generated next, of whole layers until they are `enough`, and at most
        `AT_ONCE`; none if the best layer is found."""
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
        while left and len(cells) < enough:
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
