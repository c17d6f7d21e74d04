# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""A task: a name, pairs of input and output, and how it is posed and scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from taskvec_jax.errors import TaskVecError, short_repr
from taskvec_jax.narrowing import is_mapping, is_series

Match = Literal["exact", "prefix"]
LeadingSpace = bool | Literal["auto"]
# What a task of a category is like where it does not say so itself. The categories are the paper's.
CONVENTIONS: Mapping[str, Mapping[str, Any]] = {
    "algorithmic": {"leading_space": False},  # letters stand as they are
    "knowledge": {"match": "prefix", "leading_space": False},  # answers of several tokens
    "translation": {"ignore_case": True},
}
OWN = "own"  # the category of a task that says none
DEFAULTS = {"match": "exact", "leading_space": "auto", "ignore_case": False}
ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "match": ("exact", "prefix"),
    "leading_space": (True, False, "auto"),
    "ignore_case": (True, False),
}


class Pair(NamedTuple):
    """One input, its answer, and other answers that are also right."""

    input: str
    output: str
    accepted: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A mapping to be shown by examples.

    Attributes:
      category: algorithmic, linguistic, translation, knowledge, or any other word.
      short_name: the name inside its category.
      pairs: inputs are unique.
      match: "exact": an answer is one token and must equal an accepted answer. "prefix": answers
        may be several tokens long, and the one token that is predicted is right if it begins an
        accepted answer or an accepted answer begins it (`evaluation.scoring`).
      leading_space: True: pairs are written ` x` -> ` y` in a prompt; False: as they stand; "auto":
        with a space, unless the tokenizer keeps clearly fewer pairs that way.
      ignore_case: case does not count under the rules of `evaluation.scoring`.
      related: names of tasks so much like this one that their thetas are no fair control for it
        (see related.py).

    `match`, `leading_space` and `ignore_case` that are left out are those of the category in
    `CONVENTIONS`, else those of `DEFAULTS`; they are never None once the task is made.

    Raises:
      TaskVecError: a part of another type, such as a plain tuple in place of a `Pair`, or another
        value than those above.
    """

    category: str
    short_name: str
    pairs: tuple[Pair, ...]
    match: Match = None  # type: ignore[assignment]  # set by __post_init__
    leading_space: LeadingSpace = None  # type: ignore[assignment]
    ignore_case: bool = None  # type: ignore[assignment]
    related: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("category", "short_name"):
            if not isinstance(got := getattr(self, name), str):
                raise TaskVecError(f"task: {name} is {short_repr(got)}; it must be a string")
        if not isinstance(self.pairs, list | tuple):
            raise TaskVecError(
                f"task {self.name}: pairs is {short_repr(self.pairs)}; it must be a tuple of Pair"
            )
        object.__setattr__(self, "pairs", tuple(self.pairs))  # a list cannot be hashed
        if isinstance(self.related, str) or not all(isinstance(n, str) for n in self.related):
            raise TaskVecError(
                f"task {self.name}: related is {short_repr(self.related)}; it must be names of"
                " tasks"
            )
        object.__setattr__(self, "related", tuple(self.related))
        for i, pair in enumerate(self.pairs, start=1):
            _check_pair(pair, f"task {self.name}, pair {i}")
        unsaid = DEFAULTS | dict(CONVENTIONS.get(self.category, {}))
        for name, default in unsaid.items():
            got = getattr(self, name)
            if got is None:
                object.__setattr__(self, name, default)
            elif not is_allowed(name, got):
                raise TaskVecError(f"task {self.name}: {must_be(name, got)}")

    @classmethod
    def from_pairs(cls, name: str, pairs: Any, category: str = OWN, **rules: Any) -> Task:
        """A task of one's own.

        >>> pairs = [("France", "Paris"), ("Bolivia", "Sucre", "La Paz")]
        >>> Task.from_pairs("capitals", pairs).pairs[1]
        Pair(input='Bolivia', output='Sucre', accepted=('La Paz',))

        Args:
          name: inside its category.
          pairs: {input: output}, or a list of (input, output), with any number of other answers
            that are also right behind them, or of `Pair`.
          category: any word.
          rules: `match`, `leading_space`, `ignore_case`.

        Raises:
          TaskVecError: something else, an input that is there twice, or as of `Task`.
        """
        items: Any = list(pairs.items()) if is_mapping(pairs) else pairs
        if not is_series(items) or not items:
            raise TaskVecError(
                f"task {name}: pairs is {short_repr(pairs)}; it must be {{input: output}} or a list"
                " of (input, output), not empty"
            )
        made: dict[str, Pair] = {}
        for i, item in enumerate(items, start=1):
            if not isinstance(item, Pair):
                if not is_series(item) or len(item) < 2:
                    raise TaskVecError(
                        f"task {name}, pair {i} is {short_repr(item)}; it must be (input, output)"
                    )
                item = Pair(item[0], item[1], tuple(item[2:]))
            if item.input in made:
                raise TaskVecError(f"task {name}, pair {i}: input {item.input!r} is there already")
            made[item.input] = item
        return cls(category, name, tuple(made.values()), **rules)

    @property
    def name(self) -> str:
        """`category_short_name`, as in the paper's released results."""
        return f"{self.category}_{self.short_name}"


def is_allowed(name: str, value: Any) -> bool:
    """Whether `match`, `leading_space` or `ignore_case` may have this value; 1 is not True."""
    return any(type(value) is type(allowed) and value == allowed for allowed in ALLOWED[name])


def must_be(name: str, value: Any) -> str:
    """What to say of a value that `is_allowed` refuses."""
    return f"{name} is {short_repr(value)}; allowed: {', '.join(map(repr, ALLOWED[name]))}"


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
