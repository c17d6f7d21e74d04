"""Masked softmax attention: of plain rows, and of a text with copies of its last tokens.

Shapes: B rows, T tokens, S keys, H query heads, G key/value heads, K head size; n copies of P
tokens each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import Visit, unvisited
from taskvec_jax.transformer.linear import attention_precision


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
    """Attention of a text and its copies, [B, G, H / G, S, K]; queries, keys and values are shaped
    as `_scores` and `_mix` take them."""
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
