"""Gemma 3 weights (text): names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig

from . import llama
from .family import Family
from .gemma2 import gguf_scale, scalar_of
from .gguf_keys import GGUFKeys, gguf_attention_bias, gguf_reader, gguf_rotary
from .hf_keys import GELUS, HFKeys
from .llama_like import (
    Defaults,
    gguf_rules,
    norm,
    rope_by_layer_to_hf,
    rotary_by_layer,
    sizes,
    to_hf,
    window_size,
    windows,
    without,
)
from .rules import Source

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "gemma3_text": (
        "_sliding_window_pattern attention_bias attn_logit_softcapping boi_token_id"
        " boi_token_index eoi_token_id eoi_token_index final_logit_softcapping"
        " hidden_activation image_token_id image_token_index intermediate_size"
        " mm_tokens_per_image query_pre_attn_scalar rms_norm_eps rope_local_base_freq"
        " sliding_window_pattern use_bidirectional_attention vocab_size"
    ),
}

HF = (
    *without(llama.HF, "post_attention_layernorm"),
    norm("self_attn.q_norm", "attn/query_norm"),
    norm("self_attn.k_norm", "attn/key_norm"),
    norm("post_attention_layernorm", "attn_post_norm"),
    norm("pre_feedforward_layernorm", "mlp_norm"),
    norm("post_feedforward_layernorm", "mlp_post_norm"),
)
BASE, WINDOW_BASE = 1_000_000.0, 10_000.0  # of the rotary frequencies
GGUF = gguf_rules(HF, "post_attention_norm", offset=1)


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: gemma3_text`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    known = sizes(keys, Defaults(kv_heads=4, head_dim=256, max_length=131_072, eps=1e-6, tied=True))
    period = keys.get_size("sliding_window_pattern", 6)
    most = [(i + 1) % period != 0 for i in range(known["num_layers"])]
    known |= windows(keys.window_layers(most), window_size(keys, 4096), where)
    rope, base = keys.rope_by_layer(BASE, WINDOW_BASE, "rope_local_base_freq", known["max_length"])
    known |= rotary_by_layer(keys, known, rope, base)
    config = DecoderConfig(
        family="gemma3",
        **known,
        attention_bias=keys.get("attention_bias", bool, False),
        attention_scale=keys.get("query_pre_attn_scalar", float, 256.0) ** -0.5,
        logit_softcap=keys.get("final_logit_softcapping", float, None, null=True),
        embed_scale=known["width"] ** 0.5,
        gelu=GELUS[keys.require("hidden_activation", "gelu_pytorch_tanh", tuple(GELUS))],
        dtype=dtype,
    )
    keys.get("_sliding_window_pattern", int, 0)  # what layer_types were made with
    keys.require("use_bidirectional_attention", False, (None, False))
    keys.finish("gemma3_text", MODEL_TYPES["gemma3_text"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    return {
        **to_hf(config, "gemma3_text", "Gemma3ForCausalLM"),
        **rope_by_layer_to_hf(config, WINDOW_BASE),
        "hidden_activation": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": scalar_of(config),
        "final_logit_softcapping": config.logit_softcap,
    }


def _gguf_fields(keys: GGUFKeys, known: Mapping[str, Any], tensors: Source) -> dict[str, Any]:
    """The fields of a GGUF file that this family has beside those of all; see `gguf_reader`."""
    period = keys.get_size("attention.sliding_window_pattern", 6)
    windowed = [(i + 1) % period != 0 for i in range(known["num_layers"])]
    window = keys.get("attention.sliding_window", int, 0) or None  # 0: none
    found = windows(windowed if window else [], window, keys.where)
    window_base = keys.single("rope.freq_base_swa", WINDOW_BASE)
    found |= gguf_rotary(keys, tensors, known["head_dim"], BASE)
    if found["window_layers"]:
        found["window_rope_base"] = window_base
    elif window:  # in every layer
        found |= {"rope_base": window_base, "rope_scaling": None}
    return {
        **found,
        "attention_bias": gguf_attention_bias(tensors),
        "attention_scale": gguf_scale(known, 62),
        "logit_softcap": keys.single("final_logit_softcapping", 0.0) or None,
        "embed_scale": known["width"] ** 0.5,
        "gelu": "tanh",
    }


FAMILY = Family(
    name="gemma3",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=llama.IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("gemma3",),
    gguf=GGUF,
    config_from_gguf=gguf_reader("gemma3", llama.LAYOUTS, _gguf_fields),
)
