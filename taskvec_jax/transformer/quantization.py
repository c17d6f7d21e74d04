"""Weight-only quantization: the kernels of a model as int8, or as packed 4-bit numbers.

int8 is symmetric, one scale for each output channel: scale = max |w| / 127 over the inputs of a
channel, kernel = round(w / scale). A scale belongs to an output, so it may wait until after the sum
over inputs: sum_i x_i (q_io s_o) = s_o sum_i x_i q_io. Integers up to 127 are exact in every
floating point type, so only the rounding of weights is lost, at most scale / 2 each.

int4 has numbers from -8 to 7 and a scale for each group of up to 32 neighbouring inputs of a
channel: of a few scales, the one with the smallest squared error in the group. A negative scale
gives the larger side the -8. Two numbers lie in one byte: jax's own int4 takes a byte a number on a
CPU (jax 0.10.2). A scale of 16 bits for 32 numbers makes it 4.5 bits a weight.

Kernels of linear maps alone are quantized. Embeddings, norms and biases, a few percent of a large
model, stay as they are. Written by hand because the libraries at hand quantize the layer class or
the whole computation, while here the tree and its paths must stay what they are.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params, flatten, unflatten
from taskvec_jax.transformer.linear import SCALE_4, group_size, pack

LARGEST = 127  # symmetric: -128 is not used
LEAST_4, LARGEST_4 = -8, 7
# Parts of the range of a group that its scale is tried for: what is beyond is cut off.
RANGES_4 = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
SCALE = "_scale"  # a kernel's scales stand beside it, under its name with this ending


def quantized(path: str) -> bool:
    """Whether the parameter at this path is kept in fewer bits."""
    return path.endswith("/kernel")


def input_axes(path: str) -> int:
    """How many axes of a kernel are summed over: heads and their size for `attn/out`, else one."""
    return 2 if path.endswith("attn/out/kernel") else 1


@functools.partial(jax.jit, static_argnames="axes")
def quantize_kernel(kernel: jax.Array, axes: int) -> tuple[jax.Array, jax.Array]:
    """Rounds a kernel [inputs ..., outputs ...] whose first `axes` axes are inputs.

    Returns:
      int8 of the same shape, and scales float32 [outputs ...].
    """
    wide = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=range(axes))
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)  # a channel of zeros stays one
    return jnp.clip(jnp.round(wide / scale), -LARGEST, LARGEST).astype(jnp.int8), scale


@functools.partial(jax.jit, static_argnames="axes")
def quantize_kernel_4(kernel: jax.Array, axes: int) -> tuple[jax.Array, jax.Array]:
    """Rounds a kernel [inputs ..., outputs ...] whose first `axes` axes are inputs, in groups.

    Returns:
      uint8 with half as many along the last axis of inputs (see `linear.pack`), and scales
      `linear.SCALE_4` with one for each group along that axis.
    """
    axis = axes - 1
    size = group_size(kernel.shape[axis])
    shape = (*kernel.shape[:axis], -1, size, *kernel.shape[axes:])
    wide = kernel.astype(jnp.float32).reshape(shape)
    low, high = jnp.min(wide, axis=axes, keepdims=True), jnp.max(wide, axis=axes, keepdims=True)
    largest = jnp.where(high > -low, high, low)  # with its sign

    def round_to(scale: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(wide / scale), LEAST_4, LARGEST_4)

    scale, least = jnp.ones_like(largest), jnp.full_like(largest, jnp.inf)
    for top in (LEAST_4, LARGEST_4):
        for part in RANGES_4:
            tried = (part * largest / top).astype(SCALE_4).astype(jnp.float32)
            tried = jnp.where(tried == 0, 1.0, tried)  # a group of zeros stays one
            lost = jnp.square(round_to(tried) * tried - wide).sum(axis=axes, keepdims=True)
            scale, least = jnp.where(lost < least, tried, scale), jnp.minimum(lost, least)
    rounded = round_to(scale).astype(jnp.int8).reshape(kernel.shape)
    return pack(rounded, axis), jnp.squeeze(scale, axes).astype(SCALE_4)


_KINDS = {"int8": quantize_kernel, "int4": quantize_kernel_4}


@functools.partial(jax.jit, static_argnames=("axes", "quantization"))
def quantize_stack(kernel: jax.Array, axes: int, quantization: str) -> tuple[jax.Array, jax.Array]:
    """A kernel of each layer of [L, ...] in turn: a float32 copy of one layer at most."""
    return jax.lax.map(lambda layer: _KINDS[quantization](layer, axes), kernel)


def quantize_leaf(path: str, leaf: jax.Array, quantization: str) -> dict[str, jax.Array]:
    """What stands in the quantized tree for one parameter: itself, or a kernel and its scales.

    Args:
      quantization: "int8" or "int4"; "none": the parameter itself.
    """
    if quantization == "none" or not quantized(path) or leaf.dtype in (jnp.int8, jnp.uint8):
        return {path: leaf}
    if path.startswith("layers/"):
        kernel, scale = quantize_stack(leaf, input_axes(path), quantization)
    else:
        kernel, scale = _KINDS[quantization](leaf, input_axes(path))
    return {path: kernel, path + SCALE: scale}


def quantize(
    config: DecoderConfig, params: Params, quantization: str = "int8"
) -> tuple[DecoderConfig, Params]:
    """The quantized form of a model in memory; the original tree is left as it is."""
    leaves: dict[str, jax.Array] = {}
    for path, leaf in flatten(params).items():
        leaves |= quantize_leaf(path, leaf, quantization)
    return dataclasses.replace(config, quantization=quantization), unflatten(leaves)
