"""Gemma weights: names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig

from . import llama
from .family import Family
from .hf_keys import HFKeys
from .llama_like import Defaults, rotary, sizes, to_hf

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "gemma": (
        "attention_bias hidden_act intermediate_size rms_norm_eps use_bidirectional_attention"
        " vocab_size"
    ),
}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: gemma`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    known = sizes(keys, Defaults(kv_heads=16, head_dim=256, max_length=8192, eps=1e-6, tied=True))
    config = DecoderConfig(
        family="gemma",
        **{**known, **rotary(keys, known)},
        attention_bias=keys.get("attention_bias", bool, False),
        embed_scale=known["width"] ** 0.5,
        gelu="tanh",
        dtype=dtype,
    )
    keys.get("sliding_window", int, 0, null=True)  # of what generation keeps in memory
    keys.layers_alike("full_attention")
    keys.require("use_bidirectional_attention", None, (None, False))
    # "gelu" means tanh too: transformers says so, and the official releases had it by mistake
    keys.require("hidden_act", "gelu_pytorch_tanh", ("gelu_pytorch_tanh", "gelu"))
    keys.finish("gemma", MODEL_TYPES["gemma"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    return {
        **to_hf(config, "gemma", "GemmaForCausalLM"),
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": config.attention_bias,
    }


FAMILY = Family(
    name="gemma",
    model_types=MODEL_TYPES,
    hf=llama.HF,
    ignored=llama.IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
)
