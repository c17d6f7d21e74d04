"""Floating-point operations that must be computed, padding left out: what methods are compared by.

A multiply and an add count as two. Norms, softmax and rotary positions are left out: they are
below one percent.
"""

from __future__ import annotations

import math

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import leaf_shapes


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


def text_flops(config: DecoderConfig, length: int) -> int:
    """Of a text of `length` tokens through all layers, without an unembedding."""
    seen = length * (length + 1) // 2
    return config.num_layers * (length * layer_flops(config) + attention_flops(config, seen))


def head_map_flops(config: DecoderConfig, length: int) -> int:
    """Of patching every head of every layer at the last token of a prompt, in one pass: the prompt
    once, and for each head one token from its layer on; with an answer for each."""
    heads, layers = config.num_heads, config.num_layers
    steps = heads * layers * (layers + 1) // 2
    copies = steps * (layer_flops(config) + attention_flops(config, length))
    return text_flops(config, length) + copies + (1 + heads * layers) * answer_flops(config)


def head_loop_flops(config: DecoderConfig, length: int) -> int:
    """Of the same as a loop: a forward pass of the whole prompt for each head of each layer, and
    one untouched, each with an unembedding of its last token only."""
    runs = 1 + config.num_heads * config.num_layers
    return runs * (text_flops(config, length) + answer_flops(config))
