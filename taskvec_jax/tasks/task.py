"""A task: a name, and pairs of input and output."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from taskvec_jax.errors import TaskVecError, short_repr


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

    Raises:
      TaskVecError: a part of another type, such as a plain tuple in place of a `Pair`.
    """

    category: str
    short_name: str
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        for name in ("category", "short_name"):
            if not isinstance(got := getattr(self, name), str):
                raise TaskVecError(f"task: {name} is {short_repr(got)}; it must be a string")
        if not isinstance(self.pairs, list | tuple):
            raise TaskVecError(
                f"task {self.name}: pairs is {short_repr(self.pairs)}; it must be a tuple of Pair"
            )
        object.__setattr__(self, "pairs", tuple(self.pairs))  # a list cannot be hashed
        for i, pair in enumerate(self.pairs, start=1):
            _check_pair(pair, f"task {self.name}, pair {i}")

    @property
    def name(self) -> str:
        """`category_short_name`, as in the paper's released results."""
        return f"{self.category}_{self.short_name}"


def _check_pair(pair: Any, which: str) -> None:
    """Refuses what is no pair of strings.

    Raises:
      TaskVecError: it shows what was given, and `which`.
    """
    if not isinstance(pair, Pair):
        raise TaskVecError(
            f"{which} is {short_repr(pair)}; it must be a Pair, such as Pair('France', 'Paris')"
        )
    if not isinstance(pair.accepted, list | tuple):
        raise TaskVecError(
            f"{which}: accepted is {short_repr(pair.accepted)}; it must be a tuple of strings"
        )
    for text in (pair.input, pair.output, *pair.accepted):
        if not isinstance(text, str):
            raise TaskVecError(f"{which}: {short_repr(text)} must be a string")


def check_task(task: Any) -> None:
    """Refuses what is no `Task`, such as the name of one.

    Raises:
      TaskVecError: it shows what was given and how to get a task.
    """
    if not isinstance(task, Task):
        name = repr(task) if isinstance(task, str) else "NAME"
        raise TaskVecError(
            f"task is {short_repr(task)}, a {type(task).__name__}; it must be a Task, such as"
            f" taskvec_jax.TASKS[{name}]"
        )
