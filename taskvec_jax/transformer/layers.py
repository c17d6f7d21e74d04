"""The parts that blocks are made of: norms, rotary positions, causal attention, projections.

Shapes: B rows, T tokens, D width, H query heads, G key/value heads, K head size, F MLP width.
Parameters and the inputs of projections may be half precision; norms, attention and every sum are
float32 (float64 if the parameters are).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from taskvec_jax.transformer.attention import attend
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext, Visit, unvisited
from taskvec_jax.transformer.linear import project


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

    Rounded to the parameter dtype where it is written to memory as such: it is the largest array of
    a layer.
    """
    return project(c, c.mlp_width, c.mlp_bias, rounded=True)(name=name)(x)
