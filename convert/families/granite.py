"""Granite weights (dense): names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvec_jax.transformer.config import DecoderConfig

from . import llama
from .family import Family
from .gguf_keys import GGUFKeys, gguf_biases, gguf_reader, gguf_rotary
from .hf_keys import HFKeys
from .llama_like import Defaults, rotary, sizes, to_hf
from .rules import Source

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "granite": (
        "attention_bias attention_multiplier embedding_multiplier hidden_act"
        " intermediate_size logits_scaling mlp_bias residual_multiplier rms_norm_eps"
        " vocab_size"
    ),
}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: granite`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    known = sizes(keys, Defaults(kv_heads=None, head_dim=None, max_length=2048, eps=1e-6))
    config = DecoderConfig(
        family="granite",
        **{**known, **rotary(keys, known)},
        attention_bias=keys.get("attention_bias", bool, False),
        mlp_bias=keys.get("mlp_bias", bool, False),
        embed_scale=keys.get("embedding_multiplier", float, 1.0),
        attention_scale=keys.get("attention_multiplier", float, 1.0),
        residual_scale=keys.get("residual_multiplier", float, 1.0),
        logit_divisor=keys.get("logits_scaling", float, 1.0),
        dtype=dtype,
    )
    keys.get("sliding_window", int, 0, null=True)  # of what generation keeps in memory
    keys.layers_alike("full_attention")
    keys.require("hidden_act", "silu", ("silu", "swish"))
    keys.finish("granite", MODEL_TYPES["granite"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    return {
        **to_hf(config, "granite", "GraniteForCausalLM"),
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "embedding_multiplier": config.embed_scale,
        "attention_multiplier": config.attention_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": config.logit_divisor,
    }


def _gguf_fields(keys: GGUFKeys, known: Mapping[str, Any], tensors: Source) -> dict[str, Any]:
    """The fields of a GGUF file that this family has beside those of all; see `gguf_reader`."""
    scale = keys.single("attention.scale", 0.0)  # 0: that of other models
    if np.float32(scale) == np.float32(known["head_dim"] ** -0.5):
        scale = 0.0
    return {
        **gguf_rotary(keys, tensors, known["head_dim"]),
        **gguf_biases(tensors),
        "embed_scale": keys.single("embedding_scale", 0.0) or 1.0,  # 0: none, as in llama.cpp
        "attention_scale": scale or None,
        "residual_scale": keys.single("residual_scale", 0.0) or 1.0,
        "logit_divisor": keys.single("logit_scale", 0.0) or 1.0,
    }


FAMILY = Family(
    name="granite",
    model_types=MODEL_TYPES,
    hf=llama.HF,
    ignored=llama.IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("granite",),
    gguf=llama.GGUF,
    config_from_gguf=gguf_reader("granite", llama.LAYOUTS, _gguf_fields),
)
