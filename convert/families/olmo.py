"""OLMo weights: names of Hugging Face, and the configs that come with them."""

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
    "olmo": "attention_bias clip_qkv hidden_act intermediate_size vocab_size",
}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: olmo`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    known = sizes(keys, Defaults(kv_heads=None, head_dim=None, max_length=2048, eps=None))
    config = DecoderConfig(
        family="olmo",
        **{**known, **rotary(keys, known)},
        attention_bias=keys.get("attention_bias", bool, False),
        clip_qkv=keys.get("clip_qkv", float, None, null=True),
        dtype=dtype,
    )
    keys.get("sliding_window", int, 0, null=True)  # of what generation keeps in memory
    keys.layers_alike("full_attention")
    keys.require("hidden_act", "silu", ("silu", "swish"))
    keys.finish("olmo", MODEL_TYPES["olmo"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    values = to_hf(config, "olmo", "OlmoForCausalLM")
    del values["rms_norm_eps"]  # transformers has 1e-5 for all
    return {
        **values,
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "clip_qkv": config.clip_qkv,
    }


FAMILY = Family(
    name="olmo",
    model_types=MODEL_TYPES,
    hf=llama.HF,
    ignored=llama.IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
)
