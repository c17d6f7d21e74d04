"""Qwen3's block (Yang et al. 2025, arXiv 2505.09388): LLaMA's, each query and key head normed."""

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
        attention = Attention(c, norm=RMSNorm, name="attn")
        x = x + attention(Norm(c, name="attn_norm")(x), context)
        return x + SwiGLU(c, name="mlp")(Norm(c, name="mlp_norm")(x), context.visit)
