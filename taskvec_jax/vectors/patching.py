"""Read anywhere, write anywhere: any layer and any position of one text, into any of another.

The definition of `task_vectors.py` with the last token replaced by any token. `sweep.py` is faster
where the place is the last token.

Shapes: B rows, T tokens, P positions, C copies, L layers, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.transformer.checks import (
    check_answers,
    check_finite,
    check_logits,
    check_range,
    check_tokens,
    check_vectors,
)
from taskvec_jax.transformer.decoder import Decoder, Override, Params

COPIES_AT_ONCE = 4  # bounds memory; changes no number beyond float noise


@functools.partial(jax.jit, static_argnames="decoder")
def _read(
    decoder: Decoder, params: Params, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def one(position: jax.Array) -> tuple[jax.Array, jax.Array]:
        residuals, logits = decoder.apply(params, tokens, position, method="read")
        return residuals, logits

    # Only what depends on the position is done P times; the blocks run once.
    residuals, logits = jax.vmap(one, in_axes=1)(positions)  # [P, L, B, D], [P, B, V]
    return jnp.transpose(residuals, (2, 0, 1, 3)), logits[-1]


def read_states(
    decoder: Decoder, params: Params, tokens: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The residual stream after every layer at P positions a row.

    Args:
      tokens: int [B, T], right-padded.
      positions: int [B, P], 0-based token index in the row.

    Returns:
      states [B, P, L, D], and the logits [B, V] at the last of the positions.

    Raises:
      TaskVecError: tokens that the decoder cannot read, a position out of range, or a residual
        stream that is not finite, and then the message names its layer.
    """
    tokens = check_tokens(decoder.config, tokens)
    check_range("position", positions, tokens.shape[1])
    states, logits = map(to_host, _read(decoder, params, tokens, positions))
    check_finite(states, logits)
    return states, logits


class Patched(NamedTuple):
    """Predictions for copies of a text with a state written into each.

    Attributes:
      tokens: int [B, C], the most likely next token.
      divergence: float [B, C], KL in nats of the wanted distribution from the patched one.
    """

    tokens: np.ndarray
    divergence: np.ndarray


@functools.partial(jax.jit, static_argnames="decoder")
def _write(
    decoder: Decoder,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    wanted: jax.Array,
    layers: jax.Array,
    positions: jax.Array,
    vectors: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    log_p = jax.nn.log_softmax(wanted)

    def one(copy: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        layer, position, vector = copy
        override = Override(layer, position, vector)
        _, logits = decoder.apply(params, tokens, last, override, method="read")
        log_q = jax.nn.log_softmax(logits)
        divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        return jnp.argmax(logits, axis=-1), divergence

    copies = (layers, positions.T, jnp.swapaxes(vectors, 0, 1))
    return jax.lax.map(one, copies, batch_size=COPIES_AT_ONCE)


def write_states(
    decoder: Decoder,
    params: Params,
    tokens: np.ndarray,
    last: np.ndarray,
    wanted: np.ndarray,
    layers: np.ndarray,
    positions: np.ndarray,
    vectors: np.ndarray,
) -> Patched:
    """Writes C vectors a row, one copy of the row for each, and asks for the next token.

    Args:
      tokens: int [B, T], right-padded.
      last: int [B], where the answer is read.
      wanted: [B, V], logits that the patched ones are held against.
      layers: int [C], the layer after which each copy is written.
      positions: int [B, C], where.
      vectors: [B, C, D], what.

    Raises:
      TaskVecError: tokens that the decoder cannot read, a layer or position out of range, or a
        vector, wanted logits or an answer that are not finite; the message names the layer.
    """
    tokens = check_tokens(decoder.config, tokens)
    check_range("layer", layers, decoder.config.num_layers)
    check_range("position", positions, tokens.shape[1])
    check_range("position", last, tokens.shape[1])
    check_vectors(vectors, np.broadcast_to(layers, vectors.shape[:2]))
    check_logits(wanted)
    predictions, divergence = _write(
        decoder, params, tokens, last, wanted, layers, positions, vectors
    )
    predictions, divergence = to_host(predictions).T, to_host(divergence).T
    check_answers(divergence, np.broadcast_to(layers, divergence.shape))
    return Patched(predictions, divergence)
