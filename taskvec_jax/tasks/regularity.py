"""How much of a task one rule of spelling does: what a score on it can and cannot show."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from taskvec_jax.tasks.task import Pair

SHORTEST_STEM = 2  # letters that input and output have to share for one to be a form of the other


def commonest_change(pairs: Sequence[Pair]) -> tuple[str, float]:
    """The change of an ending, or of a beginning, that turns most inputs into their outputs.

    Returns:
      The change, such as `-s` (s is taken away), `+ing`, `e>ing` or `un+` (put in front), and the
      share of pairs it turns; an empty string and 0 where no two pairs share one.
    """
    counts: collections.Counter[str] = collections.Counter()
    for pair in pairs:
        one, other = pair.input.strip(), pair.output.strip()
        counts.update({_ending(one, other), _beginning(one, other)} - {""})
    change, times = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return (change, times / len(pairs)) if times > 1 else ("", 0.0)


def _shared(one: str, other: str) -> int:
    """How many first letters two words share."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _ending(one: str, other: str) -> str:
    stem = _shared(one, other)
    if stem < SHORTEST_STEM or one == other:
        return ""
    gone, new = one[stem:], other[stem:]
    return f"{gone}>{new}" if gone and new else f"-{gone}" if gone else f"+{new}"


def _beginning(one: str, other: str) -> str:
    stem = _shared(one[::-1], other[::-1])
    if stem < SHORTEST_STEM or one == other:
        return ""
    gone, new = one[: len(one) - stem], other[: len(other) - stem]
    return f"{gone}<{new}" if gone and new else f"{gone}-" if gone else f"{new}+"
