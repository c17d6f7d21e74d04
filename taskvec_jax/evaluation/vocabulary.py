"""Reading a vector through the model's own vocabulary: final norm, unembedding, top words.

Shapes: N vectors, L layers, D width, V vocabulary, G gold words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.decoder import Decoder, Params

NUM_TOKENS = 100  # the most likely tokens that words are picked from
NUM_WORDS = 20


@functools.partial(jax.jit, static_argnames="decoder")
def _top_tokens(decoder: Decoder, params: Params, vectors: jax.Array) -> jax.Array:
    return jax.lax.top_k(decoder.apply(params, vectors, method="unembed"), NUM_TOKENS)[1]


def top_words(model: Model, vectors: np.ndarray) -> list[list[str]]:
    """The words that each vector [N, D] points to, most likely first (see `keep_words`)."""
    tokens = to_host(_top_tokens(model.decoder, model.params, vectors))
    return [keep_words(model.tokenizer.decode([int(t)]) for t in row) for row in tokens]


def keep_words(tokens: Iterable[str], count: int = NUM_WORDS) -> list[str]:
    """The published rule: strip; keep Latin letters only; drop repeats whatever their case."""
    kept: dict[str, str] = {}
    for token in tokens:
        word = token.strip()
        if re.fullmatch("[a-zA-Z]+", word):
            kept.setdefault(word.lower(), word)
    return list(kept.values())[:count]


@functools.partial(jax.jit, static_argnames="decoder")
def _ranks(decoder: Decoder, params: Params, vectors: jax.Array, gold: jax.Array) -> jax.Array:
    def one_layer(x: jax.Array) -> jax.Array:  # [N, D] -> [N, G]
        logits = decoder.apply(params, x, method="unembed")
        mine = jnp.take_along_axis(logits, gold, axis=-1)
        return (logits[:, None, :] > mine[:, :, None]).sum(axis=-1)

    return jax.lax.map(one_layer, vectors)


def gold_ranks(model: Model, vectors: np.ndarray, gold: Sequence[Sequence[int]]) -> np.ndarray:
    """How many tokens stand above each gold token when vectors are read as predictions.

    Args:
      vectors: [N, L, D], residual streams after every layer.
      gold: G token ids for each of N.

    Returns:
      int [N, L, G]; 0 is the top.
    """
    ranks = _ranks(
        model.decoder, model.params, np.moveaxis(vectors, 1, 0), np.asarray(gold, np.int32)
    )
    return np.moveaxis(to_host(ranks), 0, 1)
