"""The two compiled programs that find the next token of many texts which begin alike.

Such texts are the same query with a vector written over its last token, each vector after another
layer. `read_beginnings` computes the keys and values of all tokens before that one, once a query;
`after_beginnings` runs the tokens from there on, with the vectors, and finds the next.

Shapes: B rows, T tokens of a beginning, n tokens that follow it, L layers, G key/value heads, K
head size, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import PADDING, TRUNK, Layout, attention_context
from taskvec_jax.transformer.decoder import Decoder, Params, at_positions
from taskvec_jax.transformer.edits import replace
from taskvec_jax.transformer.generation import CACHED, run_layers
from taskvec_jax.transformer.writes import check_edits
from taskvec_jax.vectors.programs import top

NOWHERE = -1  # in place of a layer
Kept = dict[str, Any]  # "key" and "value" of beginnings, [B, L, T, G, K] each


@functools.partial(jax.jit, static_argnames="config")
def read_beginnings(
    config: DecoderConfig, params: Params, tokens: jax.Array, lengths: jax.Array
) -> Kept:
    """Keys and values of beginnings, int [B, T], right-padded, of `lengths` [B] tokens."""
    keep = {site: lambda value: value for site in CACHED}
    _, kept = Decoder(config).apply(params, tokens, keep, (), lengths=lengths, method="keep")
    return {site: jnp.moveaxis(values, 0, 1) for site, values in kept.items()}


@functools.partial(jax.jit, static_argnames="config")
def after_beginnings(
    config: DecoderConfig,
    params: Params,
    kept: Kept,
    lengths: jax.Array,
    tokens: jax.Array,
    last: jax.Array,
    vectors: jax.Array,
    layers: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The most likely next token of texts, of which only what follows their beginnings is run.

    Args:
      kept, lengths: of `read_beginnings`; a length of 0 is no beginning.
      tokens: int [B, n], what follows, right-padded.
      last: int [B], index of each text's last token among them.
      vectors: [B, D], written over the first of these tokens.
      layers: int [B], the layer after which each replaces the residual stream; `NOWHERE`: nothing
        is written.

    Returns:
      int32 [B], ties to the lowest id, and its logit [B]; NaN for a layer that is out of range.
    """
    rows, count = tokens.shape
    num_tokens = kept["key"].shape[2]
    following = jnp.arange(count, dtype=jnp.int32)
    # Padding may lie beyond the context, where there are no positions.
    places = jnp.minimum(lengths[:, None] + following, config.max_length - 1)
    behind = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), (rows, num_tokens))
    new = Layout(places, jnp.where(following <= last[:, None], TRUNK, PADDING))
    old = Layout(behind, jnp.where(behind < lengths[:, None], TRUNK, PADDING))
    seen = Layout(*(jnp.concatenate(both, axis=1) for both in zip(old, new, strict=True)))
    inside = (layers >= NOWHERE) & (layers < config.num_layers)
    edits = replace(vectors, layer=layers, position=jnp.zeros(rows, jnp.int32))
    room = ((0, 0), (0, 0), (0, count), (0, 0), (0, 0))
    cache = {site: jnp.pad(jnp.moveaxis(values, 1, 0), room) for site, values in kept.items()}
    decoder = Decoder(config)
    x = decoder.apply(params, tokens, places, method="embed")
    contexts = attention_context(config, new, seen)
    writes = check_edits(config, edits, rows, count)
    x, _ = run_layers(config, params, None, x, cache, jnp.int32(num_tokens), contexts, writes)
    logits = decoder.apply(params, at_positions(x, last), method="unembed")
    found, highest = top(logits)
    return found, jnp.where(inside, highest, jnp.nan)
