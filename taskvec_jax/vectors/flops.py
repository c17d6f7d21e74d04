"""Floating-point operations: those that must be computed, by which methods are compared, and those
that programs do, with their padding.

A multiply and an add count as two. Norms, softmax and rotary positions are left out: they are
below one percent.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import leaf_shapes
from taskvec_jax.vectors.rows import begins, shared_prefix


@functools.cache
def layer_flops(config: DecoderConfig) -> int:
    """Of the projections and the MLP, for one token in one layer; however the kernels are kept."""
    return sum(_kernel_flops(config).values())


@functools.cache
def cached_flops(config: DecoderConfig) -> int:
    """Of the keys and values of one token in one layer."""
    found = _kernel_flops(config)
    return sum(found[f"layers/attn/{name}/kernel"] for name in ("key", "value"))


def _kernel_flops(config: DecoderConfig) -> dict[str, int]:
    """Of the product with each kernel of a layer, for one token."""
    shapes = leaf_shapes(dataclasses.replace(config, quantization="none"))
    return {
        path: 2 * math.prod(shape[1:])
        for path, shape in shapes.items()
        if path.startswith("layers/") and path.endswith("kernel")
    }


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


def reading_flops(config: DecoderConfig, texts: Sequence[Sequence[int]], answers: int) -> int:
    """Of running texts that share a beginning, once, through all layers.

    Args:
      texts: token ids. A text that begins the one after it costs nothing, as in `rows.tree_length`.
      answers: how many next tokens are asked for.
    """
    trunk = shared_prefix(texts)
    tails = [len(text) - trunk for i, text in enumerate(texts) if not begins(texts, i)]
    seen = trunk * (trunk + 1) // 2 + sum(t * trunk + t * (t + 1) // 2 for t in tails)
    each_layer = (trunk + sum(tails)) * layer_flops(config) + attention_flops(config, seen)
    return config.num_layers * each_layer + answers * answer_flops(config)


def injection_flops(
    config: DecoderConfig, length: int, layers: Sequence[int], size: int = 1
) -> int:
    """Of a text of `length` tokens, and one copy of its last `size` tokens for each layer in
    `layers`, run from the layer after it was written; with an answer for every copy."""
    steps = sum(config.num_layers - 1 - layer for layer in layers)
    copies = steps * size * (layer_flops(config) + attention_flops(config, length))
    return text_flops(config, length) + copies + (1 + len(layers)) * answer_flops(config)


def following_flops(config: DecoderConfig, before: int, count: int, *, masked: bool = False) -> int:
    """Of `count` tokens that follow `before` others whose keys and values are kept, with an answer
    after the last; `masked`: with the scores that are masked too."""
    seen = count * before + (count * count if masked else count * (count + 1) // 2)
    each_layer = count * layer_flops(config) + attention_flops(config, seen)
    return config.num_layers * each_layer + answer_flops(config)


def row_flops(config: DecoderConfig, tokens: int, layers: int, answers: int) -> int:
    """What a program does for a row of `tokens` tokens in `layers` layers, with whatever padding
    and masked scores it holds, and for answers."""
    each_layer = tokens * layer_flops(config) + attention_flops(config, tokens * tokens)
    return layers * each_layer + answers * answer_flops(config)


def read_row_flops(config: DecoderConfig, tokens: int, reads: int, answers: int) -> int:
    """What `programs.read_rows` does on a CPU for a row of `tokens` tokens of which `reads` are
    read, and for answers: in the last layer only keys and values are computed for the others."""
    cached = cached_flops(config)
    last = tokens * cached + reads * (layer_flops(config) - cached)
    attended = attention_flops(config, reads * tokens)
    return row_flops(config, tokens, config.num_layers - 1, answers) + last + attended


def copies_flops(
    config: DecoderConfig,
    length: int,
    schedule: Sequence[tuple[int, int]],
    size: int = 1,
    *,
    separate: bool = False,
) -> int:
    """What `copies.run_copies` does for a row of `length` tokens, with the answers to its copies.

    Args:
      schedule, size, separate: as of `run_copies`.
    """
    starts = [0, *(stop for stop, _ in schedule)]
    total = (1 + schedule[-1][1]) * answer_flops(config)
    for start, (stop, alive) in zip(starts, schedule, strict=False):
        tokens = length + alive * size
        scores = length * tokens + alive * size**2 if separate else tokens**2
        each_layer = tokens * layer_flops(config) + attention_flops(config, scores)
        total += (stop - start) * each_layer
    return total


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
