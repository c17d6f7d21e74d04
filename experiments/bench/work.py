"""Floating-point operations that an experiment needs: what must be computed, padding left out.

A multiply and an add count as two. Norms, softmax and rotary positions are left out: they are
below one percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import leaf_shapes
from taskvec_jax.vectors.rows import shared_prefix


def layer_flops(config: DecoderConfig) -> int:
    """Of the projections and the MLP, for one token in one layer."""
    shapes = leaf_shapes(config)
    kernels = [s for p, s in shapes.items() if p.startswith("layers/") and p.endswith("kernel")]
    return sum(2 * math.prod(shape[1:]) for shape in kernels)


def attention_flops(config: DecoderConfig, seen: int) -> int:
    """Of scores and mixing, for queries that see `seen` keys in all, in one layer."""
    return 4 * seen * config.num_heads * config.head_dim


def answer_flops(config: DecoderConfig) -> int:
    """Of one unembedding."""
    return 2 * config.width * config.vocab_size


def reading_flops(config: DecoderConfig, texts: Sequence[Sequence[int]], answers: int) -> int:
    """Of running texts that share a beginning, once, through all layers.

    Args:
      texts: token ids.
      answers: how many next tokens are asked for.
    """
    trunk = shared_prefix(texts)
    tails = [len(text) - trunk for text in texts]
    seen = trunk * (trunk + 1) // 2 + sum(t * trunk + t * (t + 1) // 2 for t in tails)
    each_layer = (trunk + sum(tails)) * layer_flops(config) + attention_flops(config, seen)
    return config.num_layers * each_layer + answers * answer_flops(config)


def injection_flops(config: DecoderConfig, length: int, layers: Sequence[int]) -> int:
    """Of a zero-shot query of `length` tokens, and one copy of its last token for each layer in
    `layers`, run from the layer after it was written; with an answer for every copy."""
    seen = length * (length + 1) // 2
    query = config.num_layers * (length * layer_flops(config) + attention_flops(config, seen))
    steps = sum(config.num_layers - 1 - layer for layer in layers)
    copies = steps * (layer_flops(config) + attention_flops(config, length))
    return query + copies + (1 + len(layers)) * answer_flops(config)
