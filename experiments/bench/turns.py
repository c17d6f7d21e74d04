"""How two ways compare that take turns in one process: by the ratios of single turns.

Other work on the machine slows both ways of one turn, so a ratio of medians would be less steady.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Of the ratios of two quantities in each turn: the median, the lowest and the highest."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}
