"""Products in half precision: what they are summed in, and what they are written as."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskvec_jax.transformer import linear

DIMENSIONS = (((1,), (0,)), ((), ()))


def rounded(dtype: str):
    return functools.partial(
        linear._dot_general, dimensions=DIMENSIONS, precision="default", result=jnp.dtype(dtype)
    )


def operands(dtype: str) -> tuple[jax.Array, jax.Array]:
    rng = np.random.RandomState(0)
    return jnp.array(rng.randn(5, 7), dtype), jnp.array(rng.randn(7, 3), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("platform", "half"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_a_rounded_product_is_written_in_half_precision_but_by_the_compiler_for_cpus(
    platform, half, dtype
):
    traced = jax.jit(rounded(dtype)).trace(*operands(dtype))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 1, text
    written = re.search(r"-> tensor<5x3x(\w+)>", products[0])
    assert written
    assert written[1] == ({"bfloat16": "bf16", "float16": "f16"}[dtype] if half else "f32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_a_cpu_a_product_of_half_precision_arrays_is_not_rounded(dtype):
    x, kernel = operands(dtype)
    got = jax.jit(rounded(dtype))(x, kernel)
    assert got.dtype == np.float32
    whole = np.asarray(x, np.float32) @ np.asarray(kernel, np.float32)
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("result", ["float32", "bfloat16"])
def test_gradients_go_through_a_product_and_a_vmap(result):
    x, kernel = operands("bfloat16")

    def total(x):
        return rounded(result)(x, kernel).astype(jnp.float32).sum()

    slopes = jax.jit(jax.vmap(jax.grad(total)))(x[:, None])[:, 0]
    want = np.broadcast_to(np.asarray(kernel, np.float32).sum(1), x.shape)
    np.testing.assert_allclose(np.asarray(slopes, np.float32), want, rtol=2**-7, atol=2**-6)
