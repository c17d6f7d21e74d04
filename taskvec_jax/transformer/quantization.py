"""Weight-only int8: the kernels of a model in a quarter of float32's memory.

Symmetric, one scale for each output channel: scale = max |w| / 127 over the inputs of a channel,
kernel = round(w / scale). A scale belongs to an output, so it may wait until after the sum over
inputs: sum_i x_i (q_io s_o) = s_o sum_i x_i q_io. Integers up to 127 are exact in every floating
point type, so only the rounding of weights is lost, at most scale / 2 each.

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

LARGEST = 127  # symmetric: -128 is not used
SCALE = "_scale"  # a kernel's scales stand beside it, under its name with this ending


def quantized(path: str) -> bool:
    """Whether the parameter at this path is kept in int8."""
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
def _quantise_stack(kernel: jax.Array, axes: int) -> tuple[jax.Array, jax.Array]:
    """`quantize_kernel` for each layer of [L, ...] in turn: a float32 copy of one layer at most."""
    return jax.lax.map(lambda layer: quantize_kernel(layer, axes), kernel)


def quantize_leaf(path: str, leaf: jax.Array) -> dict[str, jax.Array]:
    """What stands in the int8 tree for one parameter: itself, or a kernel and its scales."""
    if not quantized(path) or leaf.dtype == jnp.int8:
        return {path: leaf}
    stacked = path.startswith("layers/")
    kernel, scale = (_quantise_stack if stacked else quantize_kernel)(leaf, input_axes(path))
    return {path: kernel, path + SCALE: scale}


def quantize(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    """The int8 form of a model in memory; the original tree is left as it is."""
    leaves: dict[str, jax.Array] = {}
    for path, leaf in flatten(params).items():
        leaves |= quantize_leaf(path, leaf)
    return dataclasses.replace(config, quantization="int8"), unflatten(leaves)
