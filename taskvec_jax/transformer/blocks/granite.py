"""Granite's block (IBM 2024): LLaMA's, each part scaled before it is added."""

from __future__ import annotations

import flax.linen as nn
import jax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext
from taskvec_jax.transformer.layers import Attention, RMSNorm, SwiGLU

Norm = RMSNorm


class Block(nn.Module):
    """One layer: residual stream in, residual stream out."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: AttentionContext
    ) -> jax.Array:  # [B, T, D] -> [B, T, D]
        c = self.config
        attended = Attention(c, name="attn")(Norm(c, name="attn_norm")(x), context)
        x = x + c.residual_scale * attended
        added = SwiGLU(c, name="mlp")(Norm(c, name="mlp_norm")(x), context.visit)
        return x + c.residual_scale * added
