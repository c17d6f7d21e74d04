"""Qwen3 weights (dense): names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig

from . import llama
from .family import Family
from .gguf_keys import gguf_reader, gguf_rotary_and_bias
from .hf_keys import HFKeys
from .llama_like import (
    Defaults,
    gguf_rules,
    norm,
    rotary,
    sizes,
    to_hf,
    upper_windows,
    upper_windows_to_hf,
)

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "qwen3": (
        "attention_bias hidden_act intermediate_size max_window_layers rms_norm_eps"
        " use_sliding_window vocab_size"
    ),
}

HF = (
    *llama.HF,
    norm("self_attn.q_norm", "attn/query_norm"),
    norm("self_attn.k_norm", "attn/key_norm"),
)
GGUF = gguf_rules(HF, "ffn_norm")


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: qwen3`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    known = sizes(keys, Defaults(kv_heads=32, head_dim=128, max_length=32_768, eps=1e-6))
    known |= upper_windows(keys, known)
    config = DecoderConfig(
        family="qwen3",
        **{**known, **rotary(keys, known)},
        attention_bias=keys.get("attention_bias", bool, False),
        dtype=dtype,
    )
    keys.require("hidden_act", "silu", ("silu", "swish"))
    keys.finish("qwen3", MODEL_TYPES["qwen3"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    return {
        **to_hf(config, "qwen3", "Qwen3ForCausalLM"),
        "hidden_act": "silu",
        **upper_windows_to_hf(config),
        "attention_bias": config.attention_bias,
    }


FAMILY = Family(
    name="qwen3",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=llama.IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("qwen3",),
    gguf=GGUF,
    config_from_gguf=gguf_reader("qwen3", llama.LAYOUTS, gguf_rotary_and_bias),
)
