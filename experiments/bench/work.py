"""Floating-point operations that reading and injecting need, as flops.py counts them."""

from __future__ import annotations

from collections.abc import Sequence

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.vectors.flops import answer_flops, attention_flops, layer_flops, text_flops
from taskvec_jax.vectors.rows import shared_prefix


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
    steps = sum(config.num_layers - 1 - layer for layer in layers)
    copies = steps * (layer_flops(config) + attention_flops(config, length))
    return text_flops(config, length) + copies + (1 + len(layers)) * answer_flops(config)
