"""The parts that blocks are made of: norms, rotary positions, causal attention, projections.

Shapes: B rows, T tokens, D width, H query heads, G key/value heads, K head size, F MLP width.
Parameters and the inputs of projections may be half precision; norms, attention and every sum are
float32 (float64 if the parameters are).
"""

# Long because: every block is made of these parts, none of which is longer than a screen.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.transformer.config import DecoderConfig

TRUNK = 0  # branch id of tokens that every branch of their row may attend to
PADDING = -1  # branch id of tokens that no other token may attend to

# (site, value there) -> the value to go on with. Modules call it at the sites of a layer, whose
# values are shaped as in `site_shapes`: "key" (rotated) and "value"; "pattern", the weights of
# attention; "head", the input of the output projection; "attn_out" and "mlp_out", what the modules
# return. The decoder adds "resid", the residual stream after the block.
Visit = Callable[[str, jax.Array], jax.Array]


def unvisited(site: str, value: jax.Array) -> jax.Array:
    """The visit of a layer that nobody edits or reads: the value itself."""
    del site
    return value


class Layout(NamedTuple):
    """Where the tokens of a row stand, and which of them see which.

    A row is a tree: a trunk, and branches that each continue the trunk as if the other branches
    did not exist. A plain prompt is a trunk and nothing else.

    Attributes:
      positions: int [B, T], 0-based place of each token in its own prompt.
      branches: int [B, T], `TRUNK`, `PADDING`, or a branch id above 0.
    """

    positions: jax.Array
    branches: jax.Array


class AttentionContext(NamedTuple):
    """What a block needs to know of a layout, computed once for all layers.

    Attributes:
      mask: bool [B, T, S], query token x key token, True where attention is allowed; the S keys are
        those of the T tokens themselves, or of a cache.
      cos, sin: [B, T, rope_dim / 2], rotary angles.
      visit: is shown the value at each site of a layer, and gives the one to go on with.
    """

    mask: jax.Array
    cos: jax.Array
    sin: jax.Array
    visit: Visit = unvisited


def site_shapes(config: DecoderConfig, rows: int, num_tokens: int) -> dict[str, tuple[int, ...]]:
    """Site of a layer -> shape of the value there, for tokens [B, T]."""
    B, T, G, K = rows, num_tokens, config.num_kv_heads, config.head_dim
    stream = (B, T, config.width)
    return {
        "key": (B, T, G, K),
        "value": (B, T, G, K),
        "pattern": (B, G, config.num_heads // G, T, T),
        "head": (B, T, config.num_heads, K),
        "attn_out": stream,
        "mlp_out": stream,
        "resid": stream,
    }


def plain_layout(num_tokens: int) -> Layout:
    """Layout [1, T] of ordinary left-to-right text.

    Right padding needs no mention: under a causal mask nothing real can see it.
    """
    positions = jnp.arange(num_tokens, dtype=jnp.int32)[None]
    return Layout(positions, jnp.full_like(positions, TRUNK))


def visible(config: DecoderConfig, queries: Layout, keys: Layout) -> jax.Array:
    """Which key tokens each query token may attend to.

    A token sees a token at its own or an earlier position, in the trunk or in its own branch; with
    a sliding window, only the last `sliding_window` positions, its own included.

    Args:
      queries: layout of the tokens that attend, [B, T].
      keys: layout of the tokens they may attend to, [B, S]; the same tokens, or cached ones too.

    Returns:
      bool [B, T, S].
    """
    back = queries.positions[:, :, None] - keys.positions[:, None, :]
    same = keys.branches[:, None, :] == queries.branches[:, :, None]
    near = back >= 0
    if config.sliding_window is not None:
        near &= back < config.sliding_window
    return near & (same | (keys.branches[:, None, :] == TRUNK))


def attention_context(
    config: DecoderConfig, layout: Layout, keys: Layout | None = None
) -> AttentionContext:
    """The attention mask and the rotary angles of a layout.

    Args:
      layout: of the tokens that are run, [B, T].
      keys: of the tokens they may attend to, [B, S]; None: the same tokens.
    """
    positions = layout.positions
    half = config.rope_dim // 2
    dtype = jnp.dtype(config.stream_dtype)
    frequencies = config.rope_base ** (-jnp.arange(half, dtype=dtype) / half)
    if config.rope_scaling is not None:
        frequencies = frequencies / jnp.asarray(rope_divisors(config), dtype)
    angles = positions[..., None].astype(dtype) * frequencies  # [B, T, half]
    return AttentionContext(
        visible(config, layout, keys or layout), jnp.cos(angles), jnp.sin(angles)
    )


def rope_divisors(config: DecoderConfig) -> np.ndarray:
    """What each rotary frequency is divided by, float64 [rope_dim / 2]; ones without scaling."""
    half, scaling = config.rope_dim // 2, config.rope_scaling
    if scaling is None:
        return np.ones(half)
    if scaling.kind == "divisors":
        return np.array(scaling.divisors)
    if scaling.kind == "linear":
        return np.full(half, scaling.factor)
    # Llama 3.1: how many times a frequency turns within the original context decides.
    turns = scaling.original_max_length * config.rope_base ** (-np.arange(half) / half)
    turns /= 2 * np.pi
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, context: AttentionContext) -> jax.Array:
    """Rotary position embedding on the first rope_dim dimensions of each head.

    Dimension i turns with dimension i + rope_dim / 2, the pairing of Hugging Face's LLaMA and
    GPT-NeoX (Su et al. 2021, arXiv 2104.09864).

    Args:
      x: [B, T, heads, K].
    """
    half = context.cos.shape[-1]
    cos, sin = context.cos[:, :, None, :], context.sin[:, :, None, :]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def rotate_pairs(x: jax.Array, context: AttentionContext) -> jax.Array:
    """Rotary position embedding where dimension 2i turns with dimension 2i + 1, as in GPT-J.

    Args:
      x: [B, T, heads, K].
    """
    half = context.cos.shape[-1]
    cos, sin = context.cos[:, :, None, :], context.sin[:, :, None, :]
    pairs = x[..., : 2 * half].reshape(*x.shape[:-1], half, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    turned = turned.reshape(*x.shape[:-1], 2 * half)
    return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, visit: Visit = unvisited
) -> jax.Array:
    """Masked softmax attention, the only implementation in this project.

    Args:
      q: [B, T, H, K] queries.
      k, v: [B, S, G, K] keys and values; head h of q reads head h // (H / G).
      mask: bool [B or 1, T, S]; every query must be allowed at least one key.
      visit: is shown the weights, as "pattern" [B, G, H / G, T, S].

    Returns:
      [B, T, H, K], all in the dtype of the arguments.
    """
    B, T, H, K = q.shape
    S, G = k.shape[1:3]
    # Batch axes first, by hand: XLA on CPU is up to 2.5 times slower when it has to find this
    # layout itself (T 72, measured 2026-11-24). Not merged, and the heads of a group outside T:
    # rows and heads are split over devices, and axes that are split cannot be merged there.
    q = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B, G, -1, K)
    k, v = (y.transpose(0, 2, 1, 3) for y in (k, v))
    scores = jnp.einsum("bgqk,bgsk->bgqs", q, k)
    scores = scores.reshape(B, G, H // G, T, S) * K**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = visit("pattern", jax.nn.softmax(scores, axis=-1)).reshape(B, G, -1, S)
    mixed = jnp.einsum("bgqs,bgsk->bgqk", weights, v)
    return mixed.reshape(B, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in the dtype of the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, D]
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), self.config.dtype)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.config.norm_eps) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias, computed in the dtype of the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, D]
        dtype = self.config.dtype
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), dtype)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + self.config.norm_eps)
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)


def project(
    config: DecoderConfig, features: int | tuple[int, ...], use_bias: bool, *, axes: int = 1
) -> Any:
    """A linear map over the last `axes` axes: parameters and inputs in the parameter dtype,
    sums and result in the dtype of the residual stream."""
    if config.quantization == "int8":
        outputs = (features,) if isinstance(features, int) else features
        return functools.partial(Int8Linear, config, outputs, use_bias, axes)
    stream = jnp.dtype(config.stream_dtype)
    return functools.partial(
        nn.DenseGeneral,
        features=features,
        axis=tuple(range(-axes, 0)),
        use_bias=use_bias,
        dtype=config.dtype,
        param_dtype=config.dtype,
        dot_general=functools.partial(jax.lax.dot_general, preferred_element_type=stream),
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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., inputs] -> [..., features]
        c, stream = self.config, jnp.dtype(self.config.stream_dtype)
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        inputs = x.shape[x.ndim - self.axes :]
        kernel = self.param("kernel", zeros, (*inputs, *self.features), jnp.int8)
        scale = self.param("kernel_scale", ones, self.features, jnp.float32)
        summed = (tuple(range(x.ndim - self.axes, x.ndim)), tuple(range(self.axes)))
        y = jax.lax.dot_general(
            x.astype(c.dtype),
            kernel.astype(c.dtype),
            (summed, ((), ())),
            preferred_element_type=stream,
        )
        y = y * scale.astype(stream)
        if self.use_bias:
            y += self.param("bias", zeros, self.features, jnp.dtype(c.dtype)).astype(stream)
        return y


class Attention(nn.Module):
    """Query, key and value projections, rotary positions, attention, output projection."""

    config: DecoderConfig
    rotate: Callable[[jax.Array, AttentionContext], jax.Array] = rotate

    @nn.compact
    def __call__(
        self, x: jax.Array, context: AttentionContext
    ) -> jax.Array:  # [B, T, D] -> [B, T, D]
        c = self.config
        heads = functools.partial(project, c, use_bias=c.attention_bias)
        q = heads((c.num_heads, c.head_dim))(name="query")(x)  # [B, T, H, K]
        k = heads((c.num_kv_heads, c.head_dim))(name="key")(x)  # [B, T, G, K]
        v = heads((c.num_kv_heads, c.head_dim))(name="value")(x)  # [B, T, G, K]
        # In the dtype of the residual stream: rounding q, k and v to bfloat16 costs the top token
        # of 5 real prompts in 1,000, and keeping them costs no measurable time (2026-11-25).
        q, k = self.rotate(q, context), self.rotate(k, context)
        k, v = context.visit("key", k), context.visit("value", v)  # [B, S, G, K]
        mixed = attend(q, k, v, context.mask, context.visit)  # [B, T, H, K]
        mixed = context.visit("head", mixed)
        return context.visit(
            "attn_out", project(c, c.width, c.attention_bias, axes=2)(name="out")(mixed)
        )


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), LLaMA's MLP."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, visit: Visit = unvisited) -> jax.Array:  # [B, T, D], both
        c = self.config
        gate = project(c, c.mlp_width, c.mlp_bias)(name="gate")(x)  # [B, T, F]
        up = project(c, c.mlp_width, c.mlp_bias)(name="up")(x)  # [B, T, F]
        hidden = jax.nn.silu(gate) * up
        return visit("mlp_out", project(c, c.width, c.mlp_bias)(name="down")(hidden))


class GeluMLP(nn.Module):
    """down(gelu(up(x))), the MLP of GPT-NeoX and GPT-J."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, visit: Visit = unvisited) -> jax.Array:  # [B, T, D], both
        c = self.config
        up = project(c, c.mlp_width, c.mlp_bias)(name="up")(x)  # [B, T, F]
        hidden = jax.nn.gelu(up, approximate=c.gelu == "tanh")
        return visit("mlp_out", project(c, c.width, c.mlp_bias)(name="down")(hidden))
