"""OLMo 2's block, and OLMo 3's (Walsh et al. 2024, arXiv 2501.00656): norms after each part."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext
from taskvec_jax.transformer.layers import Attention, RMSNorm, SwiGLU

Norm = RMSNorm
HeadsNorm = functools.partial(RMSNorm, axes=2)  # all heads together, a scale for each number


class Block(nn.Module):
    """One layer: residual stream in, residual stream out.

    What attention and MLP give ("attn_out", "mlp_out") is normed before it is added.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: AttentionContext
    ) -> jax.Array:  # [B, T, D] -> [B, T, D]
        c = self.config
        attended = Attention(c, norm=HeadsNorm, name="attn")(x, context)
        x = x + Norm(c, name="attn_post_norm")(attended)
        added = SwiGLU(c, name="mlp")(x, context.visit)
        return x + Norm(c, name="mlp_post_norm")(added)
