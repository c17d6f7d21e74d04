"""Gemma 3's block (Kamath et al. 2025, arXiv 2503.19786): Gemma 2's, query and key heads normed."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext
from taskvec_jax.transformer.layers import Attention, GeGLU, RMSNorm

Norm = functools.partial(RMSNorm, offset=1.0)  # the files hold differences from one


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
        read = Norm(c, name="attn_norm")(x)
        attended = Attention(c, norm=Norm, name="attn")(read, context)
        x = x + Norm(c, name="attn_post_norm")(attended)
        read = Norm(c, name="mlp_norm")(x)
        added = GeGLU(c, name="mlp")(read, context.visit)
        return x + Norm(c, name="mlp_post_norm")(added)
