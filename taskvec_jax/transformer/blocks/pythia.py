"""Pythia's block (GPT-NeoX; Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023)."""

from __future__ import annotations

import flax.linen as nn
import jax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext
from taskvec_jax.transformer.layers import Attention, GeluMLP, LayerNorm

Norm = LayerNorm


class Block(nn.Module):
    """One layer: residual stream in, residual stream out.

    With `parallel_residual` (every Pythia) attention and MLP both read the block's input through
    norms of their own; without it the MLP reads what attention left.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: AttentionContext
    ) -> jax.Array:  # [B, T, D] -> [B, T, D]
        c = self.config
        attended = x + Attention(c, name="attn")(Norm(c, name="attn_norm")(x), context)
        read = x if c.parallel_residual else attended
        return attended + GeluMLP(c, name="mlp")(Norm(c, name="mlp_norm")(read), context.visit)
