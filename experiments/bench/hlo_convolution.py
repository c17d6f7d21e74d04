"""Multiplications of a convolution in the text of a compiled program."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping

from experiments.bench.hlo_text import Op


def multiplications(op: Op, left: list[int], right: list[int], out: list[int]) -> int:
    """Multiplications of a convolution that meet an element of the input, not its padding.

    The compiler for TPUs writes products of many axes as convolutions over padded axes, in which
    most places of the window meet padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    assert labels, op.rest
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(op.rest)))
    spatial = [c for c in labels[3] if c.isdigit()]
    pairs = 1
    for place in sorted(spatial):
        index = int(place)
        base, kernel = left[labels[1].index(place)], right[labels[2].index(place)]
        pairs *= _meetings(
            base,
            kernel,
            out[labels[3].index(place)],
            stride=int(_value(window, "stride", index, "1")),
            low=int(_value(window, "pad", index, "0_0").split("_")[0]),
            base_step=int(_value(window, "lhs_dilate", index, "1")),
            window_step=int(_value(window, "rhs_dilate", index, "1")),
        )
    features = right[labels[2].index("i")]
    rows, channels = out[labels[3].index("b")], out[labels[3].index("f")]
    groups = re.search(r"batch_group_count=(\d+)", op.rest)
    return pairs * features * rows * channels // (int(groups[1]) if groups else 1)


@functools.cache
def _meetings(
    base: int, kernel: int, out: int, *, stride: int, low: int, base_step: int, window_step: int
) -> int:
    """Pairs of (place of the result, place of the window) that meet an element of the input."""
    found = 0
    for place, step in itertools.product(range(out), range(kernel)):
        at = place * stride - low + step * window_step
        found += at % base_step == 0 and 0 <= at // base_step < base
    return found


def _window(rest: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", rest)
    return found[1] if found else ""


def _value(window: Mapping[str, str], name: str, index: int, default: str) -> str:
    return window[name].split("x")[index] if name in window else default
