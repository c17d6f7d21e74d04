"""The six tasks that are rules over letters (paper, Table 1)."""

from __future__ import annotations

import itertools
import string

from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Pair, Task

LETTERS = string.ascii_lowercase
NUM_LISTS = 1000


def _lists() -> list[list[str]]:
    """Distinct lists of 2 to 4 different letters, always the same ones."""
    rng = seeded("lists of letters")
    lists: dict[str, list[str]] = {}
    while len(lists) < NUM_LISTS:
        size = 2 + int(rng.random() * 3)
        letters = draw(rng, LETTERS, size)
        lists[",".join(letters)] = letters
    return list(lists.values())


def algorithmic_tasks() -> list[Task]:
    """next_letter, prev_letter, list_first, list_last, to_upper, to_lower."""
    successors = list(itertools.pairwise(LETTERS))
    lists = _lists()
    rules = {
        "next_letter": [Pair(a, b) for a, b in successors],
        "prev_letter": [Pair(b, a) for a, b in successors],
        "list_first": [Pair(",".join(letters), letters[0]) for letters in lists],
        "list_last": [Pair(",".join(letters), letters[-1]) for letters in lists],
        "to_upper": [Pair(a, a.upper()) for a in LETTERS],
        "to_lower": [Pair(a.upper(), a) for a in LETTERS],
    }
    return [
        Task("algorithmic", name, tuple(pairs), leading_space=False)
        for name, pairs in rules.items()
    ]
