"""Random draws that repeat bit for bit across processes, platforms and Python versions.

Only `random.Random(str)` and `.random()` are used: both are documented to keep their sequence.
`sample` and `shuffle` are not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def seeded(*parts: object) -> random.Random:
    """A generator that depends on the parts alone, never on PYTHONHASHSEED."""
    return random.Random("/".join(map(str, parts)))


def draw(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """`count` different items in random order.

    Raises:
      ValueError: there are fewer items than that.
    """
    if count > len(items):
        raise ValueError(f"cannot draw {count} of {len(items)} items")
    pool = list(items)
    for i in range(count):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]
