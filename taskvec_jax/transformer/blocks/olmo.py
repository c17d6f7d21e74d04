"""OLMo's block (Groeneveld et al. 2024, arXiv 2402.00838): LLaMA's, norms without parameters."""

from __future__ import annotations

import flax.linen as nn
import jax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext
from taskvec_jax.transformer.layers import Attention, PlainLayerNorm, SwiGLU

Norm = PlainLayerNorm


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
