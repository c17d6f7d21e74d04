"""Means and ratios over tasks, with their intervals.

Means over tasks have two intervals: one for these tasks, whose prompts are a sample, and one for
tasks like these, which takes the tasks for a sample too (they were not drawn at random, which a
reader must be told). The unit is the distinct query (see statistics.py).

Source: the bootstrap of clusters with one cluster fewer than there are (Rao and Wu 1988).

Shapes: K tasks, C columns, R draws, Q queries of a task, L layers.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.statistics import CONFIDENCE, Interval, Outcomes, check_some

DRAWS = 4_000  # of a bootstrap


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
    check_some(tasks)
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


def _shares(tasks: Sequence[Outcomes], columns: Sequence[str]) -> np.ndarray:
    """Share of right answers of each task and column, [K, C]."""
    check_some(tasks)
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
