"""What the device can do, and the memory taken on it."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from experiments.bench.memory import process_peak
from taskvec_jax.distributed.targets import chip_of
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.linear import kernel_precision

GEMM_ROWS = (2048, 4096)


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


def gemm_rate(model: Model) -> float:
    """Best FLOP/s of a matrix product of the model's own sizes, in the parameter dtype."""
    c, best = model.config, 0.0
    precision = kernel_precision(c)
    multiply = jax.jit(
        lambda a, b: jnp.dot(a, b, precision=precision, preferred_element_type=c.stream_dtype)
    )
    for rows in GEMM_ROWS:
        for inner, outer in ((c.width, c.mlp_width), (c.mlp_width, c.width)):
            a = jax.random.normal(jax.random.key(0), (rows, inner), c.dtype)
            b = jax.random.normal(jax.random.key(1), (inner, outer), c.dtype)
            multiply(a, b).block_until_ready()
            for _ in range(5):
                start = time.perf_counter()
                multiply(a, b).block_until_ready()
                seconds = time.perf_counter() - start
                best = max(best, 2 * rows * inner * outer / seconds)
    return best
