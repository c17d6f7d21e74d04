"""What runs only with TASKVEC_SLOW_TESTS=1, so that the rest ends within minutes on two cores."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

SLOW = os.environ.get("TASKVEC_SLOW_TESTS") == "1"
slow = pytest.mark.skipif(not SLOW, reason="slow: set TASKVEC_SLOW_TESTS=1")


def first_is_quick(cases: Iterable[Any], quick: int = 1) -> list[Any]:
    """Parameters of which the first `quick` always run and the others are slow tests."""
    return [
        case
        if place < quick
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=slow)
        for place, case in enumerate(cases)
    ]
