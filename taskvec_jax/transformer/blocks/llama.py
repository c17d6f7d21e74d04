"""LLaMA's block (Touvron et al. 2023, arXiv 2302.13971): pre-norm attention, then SwiGLU."""

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
        x = x + Attention(c, name="attn")(Norm(c, name="attn_norm")(x), context)
        return x + SwiGLU(c, name="mlp")(Norm(c, name="mlp_norm")(x), context.visit)
