"""A task: a name, and pairs of input and output."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


class Pair(NamedTuple):
    """One input, its answer, and other answers that are also right."""

    input: str
    output: str
    accepted: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A mapping to be shown by examples.

    Attributes:
      category: algorithmic, linguistic, translation, knowledge, or any other word. Knowledge
        answers may be several tokens long and are judged by prefix (`evaluation.is_correct`).
      short_name: the name inside its category.
      pairs: inputs are unique.
    """

    category: str
    short_name: str
    pairs: tuple[Pair, ...]

    @property
    def name(self) -> str:
        """`category_short_name`, as in the paper's released results."""
        return f"{self.category}_{self.short_name}"
