"""Graded scores: how much is said for the right answer, beside which token is the most likely.

Shapes: B rows, n places of a row, G accepted first tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Wanted(NamedTuple):
    """Tokens whose logits are looked at beside the most likely one's.

    Attributes:
      right: int [B, G], first tokens of accepted answers; a row of fewer repeats one of them.
      contrast: int [B], the first token of a wrong answer of the same kind.
    """

    right: Any
    contrast: Any


class Graded(NamedTuple):
    """How much is said for the right answer, where the most likely token may be another.

    "The right token" is the most likely of `Wanted.right`.

    Attributes:
      logprob: float32, its log-probability in nats.
      rank: int32, how many tokens stand above it; 0 is the top.
      difference: float32, its logit minus that of `Wanted.contrast`.
    """

    logprob: Any
    rank: Any
    difference: Any


def grade(logits: jax.Array, highest: jax.Array, wanted: Wanted) -> Graded:
    """Graded scores [B, n] of logits [B, n, V], whose maxima [B, n] are known."""
    right, contrast = (jnp.asarray(ids)[:, None] for ids in wanted)
    mine = jnp.take_along_axis(logits, right, axis=-1).max(axis=-1)
    other = jnp.take_along_axis(logits, contrast[..., None], axis=-1)[..., 0]
    terms = jnp.exp(logits - highest[..., None]), (logits > mine[..., None]).astype(jnp.int32)
    total, rank = jax.lax.platform_dependent(*terms, cpu=_sums_in_one_pass, default=_sums)
    return Graded(mine - highest - jnp.log(total), rank, mine - other)


def _sums(powers: jax.Array, above: jax.Array) -> tuple[jax.Array, jax.Array]:
    return powers.sum(axis=-1), above.sum(axis=-1, dtype=jnp.int32)


def _sums_in_one_pass(powers: jax.Array, above: jax.Array) -> tuple[jax.Array, jax.Array]:
    """On a CPU a quarter of the time of two passes over the logits."""

    def add(sums: tuple[Any, Any], terms: tuple[Any, Any]) -> tuple[Any, Any]:
        return sums[0] + terms[0], sums[1] + terms[1]

    zeros = jnp.zeros((), powers.dtype), jnp.int32(0)
    total, rank = jax.lax.reduce((powers, above), zeros, add, (powers.ndim - 1,))
    return total, rank


def log_probability(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Log of the probability that the next token is any of the wanted ones.

    Args:
      logits: [B, C, V].
      wanted: int [B, A], -1 where a row has fewer.

    Returns:
      [B, C], in nats.
    """
    wanted = wanted[:, None]  # [B, 1, A]
    picked = jnp.take_along_axis(logits, jnp.maximum(wanted, 0), axis=-1)
    right = jnp.where(wanted < 0, -jnp.inf, picked)
    return jax.nn.logsumexp(right, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
