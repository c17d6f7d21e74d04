"""Statistics of right and wrong answers: paired tests, intervals, and the one rule of decision.

Every column of a result (zero-shot, in-context, task vector, each control) answers the same
prompts, so differences are tested on pairs. The unit is the distinct query: a fixed vector, a
constant or zero-shot answers a repeated query the same way each time, so its repetitions count as
one observation. Means over tasks have two intervals: one for these tasks, whose prompts are a
sample, and one for tasks like these, which takes the tasks for a sample too (they were not drawn
at random, which a reader must be told).

Sources: McNemar 1947 and Fisher's sign-flip test; Holm 1979; Wilson 1927; the bootstrap of clusters
with one cluster fewer than there are (Rao and Wu 1988).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError

CONFIDENCE = 0.95  # of every interval
SIGNIFICANCE = 0.05  # of every decision
ICL_GAIN = 0.20  # a task is ICL-able when ICL gains this much over zero-shot on its dev prompts
DRAWS = 4_000  # of a bootstrap


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


class Mean(NamedTuple):
    """A mean over tasks.

    Attributes:
      accuracy: of the tasks' shares, each task counting the same.
      low, high: t interval on the tasks' shares, for tasks like these; None for a single task.
      low_these, high_these: bootstrap of queries within tasks, for these tasks.
    """

    accuracy: float
    low: float | None
    high: float | None
    low_these: float
    high_these: float


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
    from scipy.stats import binomtest  # slow to import

    if not 0 <= right <= n or n < 1:
        raise TaskVecError(f"{right} right answers of {n}; allowed: 0 to n, and n at least 1")
    low, high = binomtest(right, n).proportion_ci(CONFIDENCE, "wilson")
    return Interval(right / n, float(low), float(high))


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
    _some(tasks)
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


def means(tasks: Sequence[Outcomes], columns: Sequence[str], seed: int = 0) -> dict[str, Mean]:
    """Mean over tasks of each column, with both intervals.

    Raises:
      TaskVecError: there is no task, or no such column.
    """
    shares = _shares(tasks, columns)
    drawn = _bootstrap(tasks, columns, seed).mean(axis=1)
    return _with_intervals(shares, drawn, columns, (0.0, 1.0))


def mean_difference(tasks: Sequence[Outcomes], first: str, second: str, seed: int = 0) -> Mean:
    """Mean over tasks of the difference of two columns, with both intervals; from -1 to 1.

    Raises:
      TaskVecError: there is no task, or no such column.
    """
    shares = _shares(tasks, (first, second))
    drawn = _bootstrap(tasks, (first, second), seed).mean(axis=1)
    differences, drawn = (x[..., :1] - x[..., 1:] for x in (shares, drawn))
    return _with_intervals(differences, drawn, ("difference",), (-1.0, 1.0))["difference"]


def share_of_gain(
    tasks: Sequence[Outcomes], vector: str, without: str, baseline: str, seed: int = 0
) -> Interval | None:
    """The share of a vector's gain that is lost without something: a ratio of means over tasks.

        (vector - without) / (vector - baseline)

    With `without` a vector of wrongly paired labels it is the share that needs the right pairing.
    All three are drawn together, queries within these tasks.

    Returns:
      None where the gain's own interval holds 0, so that a ratio would say nothing.

    Raises:
      TaskVecError: there is no task, or no such column.
    """
    columns = (vector, without, baseline)
    shares = _shares(tasks, columns).mean(axis=0)
    drawn = _bootstrap(tasks, columns, seed).mean(axis=1)
    low, high = _percentiles(drawn[:, 0] - drawn[:, 2])
    if low <= 0 <= high:
        return None
    ratios = (drawn[:, 0] - drawn[:, 1]) / _no_zero(drawn[:, 0] - drawn[:, 2])
    low, high = _percentiles(ratios)
    value = (shares[0] - shares[1]) / (shares[0] - shares[2])
    return Interval(float(value), float(low), float(high))


def given(
    tasks: Sequence[Outcomes], column: str, condition: str, seed: int = 0
) -> tuple[Interval | None, Interval | None]:
    """P(column right | condition right) and P(column right | condition wrong), prompts pooled.

    The intervals are for these tasks: queries are drawn within them. None where no prompt meets
    the condition, in the data or in more than a twentieth of the draws.

    Raises:
      TaskVecError: there is no task, or no such column.
    """
    _some(tasks)
    met, unmet = (_conditional(tasks, column, condition, value, seed) for value in (1, 0))
    return met, unmet


def _conditional(
    tasks: Sequence[Outcomes], column: str, condition: str, value: int, seed: int
) -> Interval | None:
    """P(column right | condition has this value), as of `given`."""
    parts = []
    for task in tasks:
        meets = np.asarray(task.column(condition)) == value
        both = meets & (np.asarray(task.column(column)) == 1)
        parts.append(Outcomes(task.queries, {"both": both * 1, "meets": meets * 1}))
    sizes = np.array([len(part.queries) for part in parts])
    totals = sizes @ _shares(parts, ("both", "meets"))
    drawn = np.einsum("k,rkc->rc", sizes, _bootstrap(parts, ("both", "meets"), seed))
    usable = drawn[drawn[:, 1] > 0]
    if not totals[1] or len(usable) < CONFIDENCE * DRAWS:
        return None
    low, high = _percentiles(usable[:, 0] / usable[:, 1])
    return Interval(float(totals[0] / totals[1]), float(low), float(high))


class Peak(NamedTuple):
    """The layer where a mean curve is highest.

    Attributes:
      layer: 0-based, ties to the lowest.
      share: of bootstrap draws of tasks in which that layer is the highest; None for one task.
      others: layer -> share, of the other layers that are highest in a draw, largest first.
    """

    layer: int
    share: float | None
    others: dict[int, float]


def peak_layer(curves: Sequence[Sequence[float]] | np.ndarray, seed: int = 0) -> Peak:
    """Where the mean over tasks of accuracy by layer, [K, L], is highest, and how surely.

    Raises:
      TaskVecError: there is no task.
    """
    curves = np.asarray(curves, np.float64)
    if curves.ndim != 2 or not curves.size:
        raise TaskVecError(f"curves of shape {curves.shape}; allowed: [tasks, layers], not empty")
    # Rounded, so that curves that are equal up to float noise are ties.
    layer = int(curves.mean(axis=0).round(12).argmax())
    if len(curves) == 1:
        return Peak(layer, None, {})
    weights = _weights(len(curves), len(curves), _stream(seed, "peak layer"))
    peaks = (weights @ curves / len(curves)).round(12).argmax(axis=1)
    counts = collections.Counter(peaks.tolist())
    share = counts.pop(layer, 0) / len(peaks)
    return Peak(layer, share, {k: n / len(peaks) for k, n in counts.most_common()})


def _some(tasks: Sequence[Outcomes]) -> None:
    if not tasks:
        raise TaskVecError("there is no task to count; name at least one")


def _shares(tasks: Sequence[Outcomes], columns: Sequence[str]) -> np.ndarray:
    """Share of right answers of each task and column, [K, C]."""
    _some(tasks)
    sums = [task.sums(columns) for task in tasks]
    return np.stack([right.sum(axis=0) / count.sum() for right, count in sums])


def _bootstrap(tasks: Sequence[Outcomes], columns: Sequence[str], seed: int) -> np.ndarray:
    """Shares of right answers with the queries of each task drawn anew, [DRAWS, K, C].

    Of Q queries, Q - 1 are drawn: the variance between draws is then that of the mean without
    bias, where Q draws would give (Q - 1) / Q of it. A task of one query stays as it is.
    """
    drawn = []
    for i, task in enumerate(tasks):
        right, count = task.sums(columns)
        weights = _weights(len(count), max(1, len(count) - 1), _stream(seed, f"queries {i}"))
        drawn.append((weights @ right.astype(np.float64)) / (weights @ count)[:, None])
    return np.stack(drawn, axis=1)


def _weights(units: int, drawn: int, rng: np.random.RandomState) -> np.ndarray:
    """How often each of the units is drawn, [DRAWS, units], `drawn` in all."""
    picked = rng.randint(0, units, size=(DRAWS, drawn)) + units * np.arange(DRAWS)[:, None]
    counts = np.bincount(picked.reshape(-1), minlength=DRAWS * units)
    return counts.reshape(DRAWS, units).astype(np.float64)  # products of floats are much faster


def _stream(seed: int, what: str) -> np.random.RandomState:
    """Random numbers that repeat everywhere: the stream of RandomState is frozen for good."""
    return np.random.RandomState([seed % 2**32, *what.encode()])


def _percentiles(drawn: np.ndarray) -> np.ndarray:
    """Ends of the 95 % interval of draws [R, ...]: [2, ...]."""
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(drawn, (tail, 1 - tail), axis=0)


def _no_zero(values: np.ndarray) -> np.ndarray:
    """0 -> the smallest float: a draw without any gain puts the ratio at one of the ends."""
    return np.where(values == 0, np.finfo(np.float64).tiny, values)


def _with_intervals(
    shares: np.ndarray, drawn: np.ndarray, columns: Sequence[str], allowed: tuple[float, float]
) -> dict[str, Mean]:
    """Means [K, C] over tasks, with a t interval and the percentiles of `drawn` [R, C]."""
    from scipy.special import stdtrit  # slow to import

    count = len(shares)
    centre = shares.mean(axis=0)
    these = _percentiles(drawn)
    low = high = np.full(len(columns), np.nan)
    if count > 1:
        quantile = stdtrit(count - 1, (1 + CONFIDENCE) / 2)
        half = quantile * shares.std(axis=0, ddof=1) / np.sqrt(count)
        low, high = np.clip([centre - half, centre + half], *allowed)
    return {
        name: Mean(
            float(centre[i]),
            float(low[i]) if count > 1 else None,
            float(high[i]) if count > 1 else None,
            float(these[0, i]),
            float(these[1, i]),
        )
        for i, name in enumerate(columns)
    }
