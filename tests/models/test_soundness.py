"""The look a model gets when it is loaded: products with as many digits as were asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import LLAMA

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.soundness import check_product, known_matrices


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """x with this many binary digits, in float64."""
    digits, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(digits * 2**bits), exponent - bits)


@pytest.mark.parametrize(
    ("changes", "bits"),  # what the device must keep of its operands
    [
        ({}, 24),
        ({"matmul_precision": "high"}, 11),
        ({"matmul_precision": "default"}, 8),
        ({"dtype": "bfloat16"}, 11),
        ({"dtype": "bfloat16", "matmul_precision": "default"}, 8),
    ],
)
def test_a_device_that_computes_products_with_fewer_digits_is_refused(changes, bits):
    config = dataclasses.replace(LLAMA, **changes)
    a, b = known_matrices()
    check_product("m", config, (rounded(a, bits) @ rounded(b, bits)).astype(np.float32))
    for fewer in {11, 8, 6}:
        if fewer < bits:
            product = (rounded(a, fewer) @ rounded(b, fewer)).astype(np.float32)
            with pytest.raises(TaskVecError, match=r"m: a known product .* off by .*precision"):
                check_product("m", config, product)
    with pytest.raises(TaskVecError, match="a known product"):
        check_product("m", config, np.full((128, 128), np.nan, np.float32))
