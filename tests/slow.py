"""What runs only with TASKVEC_SLOW_TESTS=1, so that the rest ends within minutes on two cores."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from typing import Any

import pytest

SLOW = os.environ.get("TASKVEC_SLOW_TESTS") == "1"
slow = pytest.mark.skipif(not SLOW, reason="slow: set TASKVEC_SLOW_TESTS=1")


def slow_but(names: Iterable[str], quick: Container[str]) -> list[Any]:
    """Parameters of which those of `quick` always run and the others are slow tests."""
    return [name if name in quick else pytest.param(name, marks=slow) for name in names]


def first_is_quick(cases: Iterable[Any], quick: int = 1) -> list[Any]:
    """Parameters of which the first `quick` always run and the others are slow tests."""
    return [
        case
        if place < quick
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=slow)
        for place, case in enumerate(cases)
    ]
