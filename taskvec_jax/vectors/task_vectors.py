# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""The definition: what a task vector is, short enough to read aloud.

Theta is the residual stream after block l at the last token of demonstrations + dummy query;
injecting it means writing it over the same place of a zero-shot query (Hendel, Geva, Globerson
2023, arXiv 2310.15916, Section 3). `sweep.py` computes the same numbers from far less work.

Shapes: B rows, T tokens, L layers, D width, V vocabulary. tokens int [B, T], right-padded; last
int [B], the index of each row's last token.

What is not finite stops with its layer's name. Inside jit values cannot be looked at: there it is
given back as it is, and what is out of range gives NaN.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from taskvec_jax.transformer.checks import check_answers, check_finite, check_tokens, is_concrete
from taskvec_jax.transformer.decoder import Decoder, Override, Params, check_index


def extract_theta(
    decoder: Decoder, params: Params, tokens: Int[ArrayLike, "B T"], last: Any
) -> Float[jax.Array, "B L D"]:
    """Theta after every layer: [B, L, D], float32.

    Raises:
      TaskVecError: tokens that the decoder cannot read, a concrete `last` out of range, or a theta
        that is not finite.
    """
    residuals, _ = decoder.apply(params, tokens, last, method="read")  # [L, B, D]
    theta = jnp.swapaxes(residuals, 0, 1)
    if is_concrete(theta):
        check_finite(np.asarray(theta))
    return theta


def inject_theta(
    decoder: Decoder,
    params: Params,
    tokens: Int[ArrayLike, "B T"],
    last: Any,
    layer: Any,
    theta: Float[ArrayLike, "*B D"],
) -> Float[jax.Array, "B V"]:
    """Logits [B, V] at the last token when theta [D] or [B, D] replaces the residual stream
    there after block `layer` (scalar or [B]).

    Raises:
      TaskVecError: tokens that the decoder cannot read, a concrete layer or `last` out of range, a
        theta of another width, or a theta or logits that are not finite.
    """
    override = Override(layer, last, theta)
    _, logits = decoder.apply(params, tokens, last, override, method="read")
    if is_concrete(logits):
        found = np.asarray(logits).max(axis=-1)  # [B], NaN where one is
        check_answers(found, np.broadcast_to(np.asarray(layer), found.shape))
    return logits


def layer_sweep(
    decoder: Decoder,
    params: Params,
    tokens: Int[ArrayLike, "B T"],
    last: Any,
    theta: Float[ArrayLike, "B L D"],
) -> Float[jax.Array, "L B V"]:
    """Logits [L, B, V]: theta [B, L, D] injected after every layer, one layer at a time.

    Raises:
      TaskVecError: as of `inject_theta`.
    """
    tokens = check_tokens(decoder.config, tokens)
    rows, num_tokens = np.shape(tokens)
    last = check_index("read position", last, num_tokens, rows)
    logits = cast(jax.Array, _layer_sweep(decoder, params, tokens, last, theta))
    if is_concrete(logits):
        found = np.asarray(logits).max(axis=-1)  # [L, B]
        layers = np.arange(decoder.config.num_layers)
        check_answers(found.T, np.broadcast_to(layers, found.T.shape))
    return logits


@functools.partial(jax.jit, static_argnames="decoder")
def _layer_sweep(
    decoder: Decoder, params: Params, tokens: jax.Array, last: jax.Array, theta: jax.Array
) -> jax.Array:
    def one(layer: jax.Array, vector: jax.Array) -> jax.Array:
        return inject_theta(decoder, params, tokens, last, layer, vector)

    layers = jnp.arange(decoder.config.num_layers)
    return jax.vmap(one, in_axes=(0, 1))(layers, jnp.asarray(theta))
