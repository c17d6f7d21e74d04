"""The rate of a matrix product on this machine: what the time of a run can be held against."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from taskvec_jax.models.model import Model
from taskvec_jax.transformer.linear import kernel_precision

GEMM_ROWS = (2048, 4096)


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
