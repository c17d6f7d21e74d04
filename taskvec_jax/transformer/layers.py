"""The parts that blocks are made of: norms, rotary positions, causal attention, projections.

Shapes: B rows, T tokens, D width, H query heads, G key/value heads, K head size, F MLP width.
Parameters and the inputs of projections may be half precision; norms, attention and every sum are
float32 (float64 if the parameters are).
"""

# Long because: the modules and the one implementation of attention that they share belong together.

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext, Visit, unvisited
from taskvec_jax.transformer.linear import attention_precision, project


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


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap), which keeps x within +- cap; x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    config: DecoderConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    visit: Visit = unvisited,
    own: jax.Array | None = None,
) -> jax.Array:
    """Masked softmax attention, the only implementation in this project.

    Args:
      q: [B, T, H, K] queries.
      k, v: [B, S, G, K] keys and values; head h of q reads head h // (H / G).
      mask: bool [B or 1, T, S]; every query must be allowed at least one key.
      visit: is shown the weights, as "pattern" [B, G, H / G, T, S]; not those with `own`.
      own: as of `AttentionContext`.

    Returns:
      [B, T, H, K], all in the dtype of the arguments.
    """
    B, T, H, K = q.shape
    G = k.shape[2]
    # Batch axes first, by hand: XLA on CPU is up to 2.5 times slower when it has to find this
    # layout itself (T 72, measured 2026-11-24). Not merged, and the heads of a group outside T:
    # rows and heads are split over devices, and axes that are split cannot be merged there.
    q = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k, v = (y.transpose(0, 2, 1, 3) for y in (k, v))
    if own is not None:
        mixed = _attend_apart(config, q, k, v, mask, own)
    else:
        scores = _scores(config, q, k)
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
        mixed = _mix(config, visit("pattern", jax.nn.softmax(scores, axis=-1)), v)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _scores(config: DecoderConfig, q: jax.Array, k: jax.Array) -> jax.Array:
    """[B, G, H / G, T, S] of queries [B, G, H / G, T, K] and keys [B, G, S, K]."""
    B, G, _, _, K = q.shape
    precision = attention_precision(config)
    products = jnp.einsum("bgqk,bgsk->bgqs", q.reshape(B, G, -1, K), k, precision=precision)
    return _scaled(config, products.reshape(*q.shape[:-1], k.shape[2]), K)


def _scaled(config: DecoderConfig, products: jax.Array, head_dim: int) -> jax.Array:
    scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return capped(products * scale, config.attention_softcap)


def _mix(config: DecoderConfig, weights: jax.Array, v: jax.Array) -> jax.Array:
    """[B, G, H / G, T, K]: the values [B, G, S, K] by weights [B, G, H / G, T, S]."""
    B, G, _, _, S = weights.shape
    precision = attention_precision(config)
    mixed = jnp.einsum("bgqs,bgsk->bgqk", weights.reshape(B, G, -1, S), v, precision=precision)
    return mixed.reshape(*weights.shape[:-1], v.shape[-1])


def _attend_apart(
    config: DecoderConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, own: jax.Array
) -> jax.Array:
    """Attention of a text and its copies, [B, G, H / G, S, K], for what `_scores` takes."""
    length = mask.shape[-1]
    copies, size = own.shape[1:3]
    lowest = jnp.finfo(q.dtype).min

    def by_copy(x: jax.Array) -> jax.Array:  # [..., n P, K] -> [..., n, P, K]
        return x.reshape(*x.shape[:-2], copies, size, x.shape[-1])

    to_text = _scores(config, q, k[:, :, :length])
    to_text = jnp.where(mask[:, None, None], to_text, lowest)  # [B, G, H / G, S, T]
    # A copy has few tokens: what it has with itself are sums, and no products of tiny matrices.
    own_q, own_k, own_v = (by_copy(x[..., length:, :]) for x in (q, k, v))
    within = jnp.sum(own_q[..., :, None, :] * own_k[:, :, None, :, None], axis=-1)
    within = _scaled(config, within, q.shape[-1])  # [B, G, H / G, n, P, P]
    within = jnp.where(own[:, None, None], within, lowest)
    of_tokens = within.reshape(*within.shape[:3], copies * size, size)
    of_copies = jax.nn.softmax(jnp.concatenate([to_text[..., length:, :], of_tokens], -1), axis=-1)
    weights = jnp.concatenate(
        [jax.nn.softmax(to_text[..., :length, :], axis=-1), of_copies[..., :length]], axis=-2
    )
    mixed = _mix(config, weights, v[:, :, :length])
    of_own = of_copies[..., length:].reshape(within.shape)
    from_own = jnp.sum(of_own[..., None] * own_v[:, :, None, :, None], axis=-2)
    from_own = from_own.reshape(*from_own.shape[:3], copies * size, -1)
    return mixed.at[..., length:, :].add(from_own)


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + scale), computed in the dtype of the residual stream.

    Attributes:
      axes: how many of the last axes are normed together.
      offset: 1 where the stored scale is a difference from one (Gemma).
    """

    config: DecoderConfig
    axes: int = 1
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D] -> [..., D]
        start = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", start, x.shape[-self.axes :], self.config.dtype)
        over = tuple(range(-self.axes, 0))
        mean_square = jnp.mean(jnp.square(x), axis=over, keepdims=True)
        scale = scale.astype(x.dtype) + self.offset if self.offset else scale.astype(x.dtype)
        return x * jax.lax.rsqrt(mean_square + self.config.norm_eps) * scale


class PlainLayerNorm(nn.Module):
    """(x - mean) / std, without parameters (OLMo), in the dtype of the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, D]
        return _standardized(self.config, x)


def _standardized(config: DecoderConfig, x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(variance + config.norm_eps)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias, computed in the dtype of the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, D]
        dtype = self.config.dtype
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), dtype)
        x = _standardized(self.config, x)
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)


class Attention(nn.Module):
    """Query, key and value projections, rotary positions, attention, output projection.

    Attributes:
      rotate: how queries and keys turn.
      biased: the projections that have a bias; None: all four if `config.attention_bias`, or none.
      norm: made with (config, name=...), it norms queries and keys before they turn; None: none is.
    """

    config: DecoderConfig
    rotate: Callable[[jax.Array, AttentionContext], jax.Array] = rotate
    biased: tuple[str, ...] | None = None
    norm: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, context: AttentionContext
    ) -> jax.Array:  # [B, T, D] -> [B, T, D]
        c = self.config

        def heads(name: str, number: int) -> jax.Array:
            y = project(c, (number, c.head_dim), self._has_bias(name))(name=name)(x)
            return y if c.clip_qkv is None else jnp.clip(y, -c.clip_qkv, c.clip_qkv)

        q = heads("query", c.num_heads)  # [B, T, H, K]
        k = heads("key", c.num_kv_heads)  # [B, T, G, K]
        v = heads("value", c.num_kv_heads)  # [B, T, G, K]
        if self.norm is not None:
            q, k = self.norm(c, name="query_norm")(q), self.norm(c, name="key_norm")(k)
        # In the dtype of the residual stream: rounding q, k and v to bfloat16 costs the top token
        # of 5 real prompts in 1,000, and keeping them costs no measurable time (2026-11-25).
        q, k = self.rotate(q, context), self.rotate(k, context)
        k, v = context.visit("key", k), context.visit("value", v)  # [B, S, G, K]
        mixed = attend(c, q, k, v, context.mask, context.visit, context.own)  # [B, T, H, K]
        mixed = context.visit("head", mixed)
        return context.visit(
            "attn_out", project(c, c.width, self._has_bias("out"), axes=2)(name="out")(mixed)
        )

    def _has_bias(self, name: str) -> bool:
        return self.config.attention_bias if self.biased is None else name in self.biased


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), LLaMA's MLP."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, visit: Visit = unvisited) -> jax.Array:  # [B, T, D], both
        return _gated(self.config, x, visit, jax.nn.silu)


class GeGLU(nn.Module):
    """down(gelu(gate(x)) * up(x)), Gemma's MLP."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, visit: Visit = unvisited) -> jax.Array:  # [B, T, D], both
        approximate = self.config.gelu == "tanh"
        return _gated(
            self.config, x, visit, functools.partial(jax.nn.gelu, approximate=approximate)
        )


def _gated(
    c: DecoderConfig, x: jax.Array, visit: Visit, activation: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """A gated MLP, whose parameters belong to the module that calls it."""
    gate, up = (_hidden(c, name, x) for name in ("gate", "up"))
    hidden = activation(gate) * up
    return visit("mlp_out", project(c, c.width, c.mlp_bias)(name="down")(hidden))


class GeluMLP(nn.Module):
    """down(gelu(up(x))), the MLP of GPT-NeoX, GPT-J and GPT-2."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, visit: Visit = unvisited) -> jax.Array:  # [B, T, D], both
        c = self.config
        hidden = jax.nn.gelu(_hidden(c, "up", x), approximate=c.gelu == "tanh")
        return visit("mlp_out", project(c, c.width, c.mlp_bias)(name="down")(hidden))


def _hidden(c: DecoderConfig, name: str, x: jax.Array) -> jax.Array:
    """The hidden layer [B, T, F] of an MLP before its activation.

    Rounded to the parameter dtype, as it is written to memory: the largest array of a layer.
    """
    return project(c, c.mlp_width, c.mlp_bias, rounded=True)(name=name)(x).astype(c.stream_dtype)
