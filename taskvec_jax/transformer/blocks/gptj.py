"""GPT-J's block (Wang and Komatsuzaki 2021): attention and MLP side by side behind one norm."""

from __future__ import annotations

import flax.linen as nn
import jax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext
from taskvec_jax.transformer.layers import Attention, GeluMLP, LayerNorm, rotate_pairs

Norm = LayerNorm


class Block(nn.Module):
    """One layer: residual stream in, residual stream out."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: AttentionContext
    ) -> jax.Array:  # [B, T, D] -> [B, T, D]
        c = self.config
        read = Norm(c, name="attn_norm")(x)
        attended = Attention(c, rotate=rotate_pairs, name="attn")(read, context)
        return x + attended + GeluMLP(c, name="mlp")(read, context.visit)
