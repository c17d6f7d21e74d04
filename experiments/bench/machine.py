"""What the device can do, and the memory taken on it."""

from __future__ import annotations

import jax

from experiments.bench.memory import process_peak
from taskvec_jax.distributed.targets import chip_of


def peak_flops(device_kind: str) -> float | None:
    """The vendor's dense bfloat16 peak of a device, or None for one that is not known here."""
    chip = chip_of(device_kind)
    return chip and chip.peak["bfloat16"]


def peak_memory() -> int | None:
    """Peak bytes of the device, or of this process on a CPU; None where it is not told.

    Of a process since the last reset; a device counts from its start and cannot be reset.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return process_peak()
