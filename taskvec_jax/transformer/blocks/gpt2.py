"""GPT-2's block (Radford et al. 2019): LayerNorm, biases everywhere, a GELU without a gate."""

from __future__ import annotations

import flax.linen as nn
import jax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext
from taskvec_jax.transformer.layers import Attention, GeluMLP, LayerNorm

Norm = LayerNorm


class Block(nn.Module):
    """One layer: residual stream in, residual stream out.

    Positions are learned, and added to the embedding: with `config.rope_dim` 0 nothing rotates.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: AttentionContext
    ) -> jax.Array:  # [B, T, D] -> [B, T, D]
        c = self.config
        x = x + Attention(c, name="attn")(Norm(c, name="attn_norm")(x), context)
        return x + GeluMLP(c, name="mlp")(Norm(c, name="mlp_norm")(x), context.visit)
