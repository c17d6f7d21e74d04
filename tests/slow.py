"""What runs only with TASKVEC_SLOW_TESTS=1, so that the rest ends within minutes on two cores."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Container, Iterable
from typing import Any

import pytest

SLOW = os.environ.get("TASKVEC_SLOW_TESTS") == "1"
# XLA's newer way of compiling fusions for a CPU makes faster programs and takes longer; the slow
# tests compile as users do. Another jaxlib may not know the flag and would end the process.
OLD_EMITTERS = (
    "--xla_cpu_use_fusion_emitters=false"
    if not SLOW and importlib.metadata.version("jaxlib").startswith("0.10.")
    else ""
)
# For programs that run for milliseconds: what LLVM would make faster is not worth its time.
QUICK = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *([OLD_EMITTERS] if OLD_EMITTERS else []),
    )
)
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
