"""Statistics of right and wrong answers: paired tests, and the one rule of decision.

Every column of a result (zero-shot, in-context, task vector, each control) answers the same
prompts, so differences are tested on pairs. The unit is the distinct query: a fixed vector, a
constant or zero-shot answers a repeated query the same way each time, so its repetitions count as
one observation. Means over tasks and their intervals are in intervals.py.

Sources: McNemar 1947 and Fisher's sign-flip test; Holm 1979; Wilson 1927.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError

CONFIDENCE = 0.95  # of every interval
SIGNIFICANCE = 0.05  # of every decision
ICL_GAIN = 0.20  # a task is ICL-able when ICL gains this much over zero-shot on its dev prompts


class Interval(NamedTuple):
    """A share or a ratio with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Paired(NamedTuple):
    """Two columns compared on the same prompts.

    Attributes:
      difference: mean of the first minus mean of the second.
      p: two-sided, exact; 1 where no query tells the columns apart.
      first_only, second_only: prompts that one of them alone gets right.
      num_prompts, num_queries: how many there are, and how many distinct queries.
    """

    difference: float
    p: float
    first_only: int
    second_only: int
    num_prompts: int
    num_queries: int


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Right and wrong answers to the prompts of one task.

    Attributes:
      queries: [N], what tells two queries apart; equal ones are one unit.
      correct: column -> [N] of 0 or 1, all in the order of `queries`.
    """

    queries: Sequence[Hashable]
    correct: Mapping[str, Sequence[int] | np.ndarray]

    def __post_init__(self) -> None:
        if not len(self.queries):
            raise TaskVecError("there are no answers to count; ask for at least one prompt")
        for name, values in self.correct.items():
            numbers = np.asarray(values)
            zero_or_one = numbers.dtype == bool or bool(np.all((numbers == 0) | (numbers == 1)))
            if numbers.shape != (len(self.queries),) or not zero_or_one:
                raise TaskVecError(
                    f"column {name}: shape {numbers.shape} for {len(self.queries)} queries;"
                    " allowed: one of 0 or 1 for each"
                )

    def sums(self, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Right answers of each distinct query and column, int [Q, C], and its prompts, int [Q]."""
        index = {query: i for i, query in enumerate(dict.fromkeys(self.queries))}
        rows = np.array([index[query] for query in self.queries])
        right = np.stack([np.asarray(self.column(name), np.int64) for name in columns], axis=1)
        sums = np.zeros((len(index), len(columns)), np.int64)
        for row, values in zip(rows, right, strict=True):
            sums[row] += values
        return sums, np.bincount(rows)

    def column(self, name: str) -> Sequence[int] | np.ndarray:
        """The answers of a column, [N].

        Raises:
          TaskVecError: there is none of that name.
        """
        if name not in self.correct:
            raise TaskVecError(f"no column {name!r}; there are {', '.join(self.correct)}")
        return self.correct[name]


def wilson(right: int, n: int) -> Interval:
    """A share with its score interval (Wilson 1927), of n independent answers.

    Raises:
      TaskVecError: there is nothing to count.
    """
    if not 0 <= right <= n or n < 1:
        raise TaskVecError(f"{right} right answers of {n}; allowed: 0 to n, and n at least 1")
    # In closed form: scipy.stats takes a second to import, and a table's first row waits for it.
    share, z = right / n, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre, shrunk = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low = 0.0 if right == 0 else (centre - half) / shrunk
    high = 1.0 if right == n else (centre + half) / shrunk
    return Interval(share, low, high)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % Wilson interval.

    Attributes:
      n: answers.
      queries: how many distinct queries they are to.
    """

    accuracy: float
    low: float
    high: float
    n: int
    queries: int | None = None


def accuracy(correct: Sequence[Any] | np.ndarray, queries: Sequence[Any] | None = None) -> Accuracy:
    """Share of true values with its interval.

    Raises:
      TaskVecError: there is nothing to count.
    """
    found = wilson(int(np.sum(np.asarray(correct, bool))), len(correct))
    return Accuracy(*found, len(correct), len(set(queries)) if queries is not None else None)


def prompts_for(half_width: float) -> int:
    """The fewest independent answers whose interval (`wilson`) is this wide to either side at most,
    whatever their share of right ones. It is widest where half of them are.

    Raises:
      TaskVecError: not above 0 and at most .5.
    """
    if not 0 < half_width <= 0.5:
        raise TaskVecError(f"half_width is {half_width}; allowed: above 0, at most 0.5")

    def widest(n: int) -> float:
        found = wilson(n // 2, n)
        return (found.high - found.low) / 2

    low, high = 0, 1
    while widest(high) > half_width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if widest(middle) <= half_width else (middle, high)
    while widest(high + 1) > half_width:  # an odd number has no half
        high += 1
    return high


def compare(tasks: Sequence[Outcomes], first: str, second: str) -> Paired:
    """Tests whether two columns differ, on the prompts of one task or of several pooled.

    Under the null hypothesis the two are exchangeable at each query, so the difference of each
    query's sums may have either sign: the p-value is the share of all 2^Q assignments of signs
    whose total is at least as far from 0 as the observed one. Where all queries differ that is
    McNemar's exact test. Differences are whole numbers, so the distribution of the total is
    computed exactly, by convolution, for any number of queries.

    Raises:
      TaskVecError: there is no task, or no such column.
    """
    check_some(tasks)
    sums = [task.sums((first, second))[0] for task in tasks]
    differences = np.concatenate([s[:, 0] - s[:, 1] for s in sums])
    a, b = (
        np.concatenate([np.asarray(t.correct[name]) for t in tasks]) for name in (first, second)
    )
    return Paired(
        difference=float(differences.sum() / len(a)),
        p=sign_flip_p(differences),
        first_only=int((a > b).sum()),
        second_only=int((a < b).sum()),
        num_prompts=len(a),
        num_queries=len(differences),
    )


def sign_flip_p(differences: Sequence[int] | np.ndarray) -> float:
    """Two-sided exact p-value of a total of whole numbers, each of which may have either sign."""
    sizes = np.abs(np.asarray(differences, np.int64))
    total = abs(int(np.sum(differences)))
    distribution = np.ones(1)  # of the total, at -reach, -reach + 2, ..., reach
    for size in sizes[sizes > 0]:
        spread = np.zeros(len(distribution) + size)
        spread[:-size] += distribution / 2
        spread[size:] += distribution / 2
        distribution = spread
    reach = int(sizes.sum())
    totals = np.arange(-reach, reach + 1, 2)
    return float(min(1.0, distribution[np.abs(totals) >= total].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number so that the chance of any false one stays (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return adjusted.tolist()


def decide(difference: float, p: float) -> str:
    """The rule of decision of every comparison: "above", "below", or "not shown" to differ.

    Args:
      difference: first minus second.
      p: two-sided; where several comparisons are made at once, adjusted (`holm`).
    """
    if not p < SIGNIFICANCE or difference == 0:
        return "not shown"
    return "above" if difference > 0 else "below"


class Verdict(NamedTuple):
    """Whether a column is above all controls of a task.

    Attributes:
      beats: by `decide`.
      p: adjusted over tasks; 1 where some control is no lower.
      hardest: the control that is hardest to tell from the column, or lies above it.
      against: the comparison with that control, its p not adjusted.
    """

    beats: bool
    p: float
    hardest: str
    against: Paired


def beats_all(
    tasks: Mapping[str, Outcomes], column: str, controls: Mapping[str, Sequence[str]]
) -> dict[str, Verdict]:
    """For each task, whether a column is above every one of the task's controls.

    A column that is above all of them has passed each single test, so the largest p-value stands
    and needs no correction for the number of controls (an intersection-union test). For the number
    of tasks it is corrected by Holm's procedure.

    Args:
      controls: name of a task -> the columns that count as its controls.

    Raises:
      TaskVecError: a task has no controls, or not the columns that are named.
    """
    found: dict[str, tuple[float, str, Paired]] = {}
    for name, outcomes in tasks.items():
        if not controls.get(name):
            raise TaskVecError(f"task {name} has no controls; name at least one column")
        tests = {control: compare([outcomes], column, control) for control in controls[name]}
        p = {c: t.p if t.difference > 0 else 1.0 for c, t in tests.items()}
        hardest = max(tests, key=lambda c: (p[c], -tests[c].difference))
        found[name] = p[hardest], hardest, tests[hardest]
    adjusted = holm([p for p, _, _ in found.values()])
    return {
        name: Verdict(decide(test.difference, p) == "above", p, hardest, test)
        for (name, (_, hardest, test)), p in zip(found.items(), adjusted, strict=True)
    }


def icl_able(icl: Sequence[int] | np.ndarray, zero_shot: Sequence[int] | np.ndarray) -> bool:
    """Whether in-context learning does a task: right on ICL_GAIN more of the dev prompts.

    Args:
      icl, zero_shot: [N] of 0 or 1, on the same dev prompts.
    """
    gain = int(np.sum(icl)) - int(np.sum(zero_shot))
    return gain >= ICL_GAIN * len(icl) - 1e-9  # the product is rounded, the gain is not


def check_some(tasks: Sequence[Outcomes]) -> None:
    """Refuses an empty list of tasks.

    Raises:
      TaskVecError: there is none.
    """
    if not tasks:
        raise TaskVecError("there is no task to count; name at least one")
