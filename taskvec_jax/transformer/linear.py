"""Linear maps, whose kernels are kept in the parameter dtype, as int8, or as packed 4-bit numbers.

Parameters and inputs may be half precision; sums are in the dtype of the residual stream, and so
are results, unless a product is asked to be rounded. quantization.py makes the kernels that are
read here.

A product of two float32 arrays is computed in float32 only where its precision says so: an NVIDIA
GPU otherwise rounds them to TF32 (11 bits), a TPU to bfloat16 (8 bits). So every product of this
project names its precision: those with parameters `kernel_precision`, those of attention
`attention_precision`. A product of half-precision arrays is exact either way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.transformer.config import DecoderConfig

GROUP = 32  # inputs that share a scale in int4, at most
SCALE_4 = jnp.dtype("bfloat16")  # of those scales
LEAST = 16  # inputs a group has, unless all are in one


def group_size(inputs: int) -> int:
    """How many neighbouring inputs share a scale in int4: a divisor of their number."""
    best = max(size for size in range(1, min(GROUP, inputs) + 1) if inputs % size == 0)
    return best if best >= LEAST else inputs


def unpack(packed: jax.Array, axis: int) -> jax.Array:
    """uint8 [..., n / 2, ...] -> int8 [..., n, ...], numbers from -8 to 7 along `axis`.

    The low four bits of a byte are the number before that in the high four; both are moved up by 8.
    """
    low, high = packed & 15, packed >> 4
    both = jnp.stack([low, high], axis=axis + 1).astype(jnp.int8) - 8
    return both.reshape(*packed.shape[:axis], -1, *packed.shape[axis + 1 :])


def pack(numbers: jax.Array, axis: int) -> jax.Array:
    """The inverse of `unpack`."""
    pairs = numbers.reshape(*numbers.shape[:axis], -1, 2, *numbers.shape[axis + 1 :]) + 8
    low, high = jnp.split(pairs.astype(jnp.uint8), 2, axis=axis + 1)
    return jnp.squeeze(low | (high << 4), axis + 1)


def kernel_precision(config: DecoderConfig) -> str:
    """The precision of products with parameters, whose operands are in the parameter dtype."""
    return config.matmul_precision if config.dtype == config.stream_dtype else "default"


def attention_precision(config: DecoderConfig) -> str:
    """The precision of attention's products, whose operands are in the dtype of the stream.

    Of a half-precision model it is "high" at most. Its queries, keys and values are sums of rounded
    numbers, good to 8 bits; "high" keeps 11 bits or more of them, and a TPU takes half as long for
    it as for "highest".
    """
    if config.dtype != config.stream_dtype and config.matmul_precision == "highest":
        return "high"
    return config.matmul_precision


def project(
    config: DecoderConfig,
    features: int | tuple[int, ...],
    use_bias: bool,
    *,
    axes: int = 1,
    rounded: bool = False,
) -> Any:
    """A linear map over the last `axes` axes: parameters and inputs in the parameter dtype, sums in
    the dtype of the residual stream.

    Args:
      rounded: on a GPU or TPU the product is written to memory in the parameter dtype, which
        rounds it.
    """
    # Sums of an int8 kernel's whole numbers, which have no scale yet, can be too large for float16.
    fits = (config.quantization, config.dtype) != ("int8", "float16")
    result = jnp.dtype(config.dtype if rounded and fits else config.stream_dtype)
    if config.quantization != "none":
        outputs = (features,) if isinstance(features, int) else features
        kind = {"int8": Int8Linear, "int4": Int4Linear}[config.quantization]
        return functools.partial(kind, config, outputs, use_bias, axes, result)
    return functools.partial(
        nn.DenseGeneral,
        features=features,
        axis=tuple(range(-axes, 0)),
        use_bias=use_bias,
        dtype=config.dtype,
        param_dtype=config.dtype,
        precision=kernel_precision(config),
        dot_general=functools.partial(_dot_general, result=result),
    )


def _dot_general(
    x: jax.Array, kernel: jax.Array, dimensions: Any, *, precision: Any, result: jnp.dtype
) -> jax.Array:
    """A product that is written to memory as `result`, and returned in float32 if that is half
    precision.

    On a CPU it is never rounded to half precision: XLA's compiler for CPUs multiplies in bfloat16
    only where the result is float32, and else widens the operands first. Rounding afterwards would
    gain nothing.
    """

    def written_as(dtype: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
            y = jax.lax.dot_general(
                x, kernel, dimensions, precision=precision, preferred_element_type=dtype
            )
            return y.astype(jnp.promote_types(dtype, np.float32))

        return multiply

    if result.itemsize >= np.dtype(np.float32).itemsize:
        return written_as(result)(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, cpu=written_as(np.float32), default=written_as(result)
    )


def _product(
    config: DecoderConfig, x: jax.Array, kernel: jax.Array, axes: int, result: jnp.dtype
) -> jax.Array:
    """x [..., inputs] times kernel [inputs, features], each of `axes` axes of inputs, both in the
    parameter dtype; written as `result`, and returned in the dtype of the residual stream."""
    summed = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    return _dot_general(
        x.astype(config.dtype),
        kernel.astype(config.dtype),
        (summed, ((), ())),
        precision=kernel_precision(config),
        result=result,
    )


class Int8Linear(nn.Module):
    """A linear map over the last `axes` axes whose kernel is int8, with a scale for each output.

    The scales of outputs commute with the sum over inputs, so they are applied after it, in the
    dtype of the residual stream: the kernel enters the product as whole numbers, which are exact.
    """

    config: DecoderConfig
    features: tuple[int, ...]
    use_bias: bool
    axes: int
    result: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., inputs] -> [..., features]
        c, stream = self.config, jnp.dtype(self.config.stream_dtype)
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        inputs = x.shape[x.ndim - self.axes :]
        kernel = self.param("kernel", zeros, (*inputs, *self.features), jnp.int8)
        scale = self.param("kernel_scale", ones, self.features, jnp.float32)
        y = _product(c, x, kernel, self.axes, self.result) * scale.astype(stream)
        if self.use_bias:
            y += self.param("bias", zeros, self.features, jnp.dtype(c.dtype)).astype(stream)
        return y


class Int4Linear(nn.Module):
    """A linear map over the last `axes` axes whose kernel has four bits a number.

    Two numbers lie in a byte, and `group_size` neighbouring inputs of an output have a scale. The
    kernel of one layer is unpacked when it is used.
    """

    config: DecoderConfig
    features: tuple[int, ...]
    use_bias: bool
    axes: int
    result: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., inputs] -> [..., features]
        c, stream = self.config, jnp.dtype(self.config.stream_dtype)
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        *outer, last = x.shape[x.ndim - self.axes :]
        size, axis = group_size(last), len(outer)
        packed = self.param("kernel", zeros, (*outer, last // 2, *self.features), jnp.uint8)
        scales = (*outer, last // size, *self.features)
        scale = self.param("kernel_scale", ones, scales, SCALE_4)
        numbers = unpack(packed, axis).reshape(*outer, last // size, size, *self.features)
        kernel = numbers.astype(stream) * jnp.expand_dims(scale, axis + 1).astype(stream)
        kernel = kernel.reshape(*outer, last, *self.features)
        y = _product(c, x, kernel, self.axes, self.result)
        if self.use_bias:
            y += self.param("bias", zeros, self.features, jnp.dtype(c.dtype)).astype(stream)
        return y
