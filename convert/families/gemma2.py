"""Gemma 2 weights: names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig

from . import llama
from .family import Family
from .gguf_keys import GGUFKeys, gguf_attention_bias, gguf_reader, gguf_rotary
from .hf_keys import GELUS, HFKeys, layer_types
from .llama_like import (
    Defaults,
    gguf_rules,
    norm,
    rotary,
    sizes,
    to_hf,
    window_size,
    windows,
    without,
)
from .rules import Source

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "gemma2": (
        "attention_bias attn_logit_softcapping final_logit_softcapping hidden_activation"
        " intermediate_size query_pre_attn_scalar rms_norm_eps use_bidirectional_attention"
        " vocab_size"
    ),
}

HF = (
    *without(llama.HF, "post_attention_layernorm"),
    norm("post_attention_layernorm", "attn_post_norm"),
    norm("pre_feedforward_layernorm", "mlp_norm"),
    norm("post_feedforward_layernorm", "mlp_post_norm"),
)
GGUF = gguf_rules(HF, "post_attention_norm", offset=1)


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: gemma2`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    known = sizes(keys, Defaults(kv_heads=4, head_dim=256, max_length=8192, eps=1e-6, tied=True))
    every_second = [i % 2 == 0 for i in range(known["num_layers"])]
    known |= windows(keys.window_layers(every_second), window_size(keys, 4096), where)
    caps = [
        default if key not in keys else keys.get(key, float, None, null=True)
        for key, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0))
    ]
    config = DecoderConfig(
        family="gemma2",
        **{**known, **rotary(keys, known)},
        attention_bias=keys.get("attention_bias", bool, False),
        attention_scale=keys.get("query_pre_attn_scalar", float, 256.0) ** -0.5,
        attention_softcap=caps[0],
        logit_softcap=caps[1],
        embed_scale=known["width"] ** 0.5,
        gelu=GELUS[keys.require("hidden_activation", "gelu_pytorch_tanh", tuple(GELUS))],
        dtype=dtype,
    )
    keys.require("use_bidirectional_attention", None, (None, False))
    keys.finish("gemma2", MODEL_TYPES["gemma2"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    assert config.attention_scale is not None
    return {
        **to_hf(config, "gemma2", "Gemma2ForCausalLM"),
        "hidden_activation": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": scalar_of(config),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "layer_types": layer_types(config),
        "sliding_window": config.sliding_window or 4096,
    }


def scalar_of(config: DecoderConfig) -> int:
    """The whole number that Gemma's queries are divided by the root of."""
    assert config.attention_scale is not None
    return round(config.attention_scale**-2)


def _gguf_fields(keys: GGUFKeys, known: Mapping[str, Any], tensors: Source) -> dict[str, Any]:
    """The fields of a GGUF file that this family has beside those of all; see `gguf_reader`."""
    period = keys.get_size("attention.sliding_window_pattern", 2)
    windowed = [(i + 1) % period != 0 for i in range(known["num_layers"])]
    window = keys.get("attention.sliding_window", int, 4096) or None  # 0: none
    return {
        **windows(windowed if window else [], window, keys.where),
        **gguf_rotary(keys, tensors, known["head_dim"]),
        "attention_bias": gguf_attention_bias(tensors),
        "attention_scale": gguf_scale(known, 46),
        "attention_softcap": keys.single("attn_logit_softcapping", 50.0) or None,
        "logit_softcap": keys.single("final_logit_softcapping", 30.0) or None,
        "embed_scale": known["width"] ** 0.5,
        "gelu": "tanh",
    }


def gguf_scale(known: Mapping[str, Any], largest: int) -> float:
    """What queries times keys are multiplied by, which GGUF files of Gemma do not say.

    As in llama.cpp (src/llama-model.cpp), the 27B model alone has width / heads where the others
    have the size of a head.

    Args:
      known: what `gguf_sizes` found.
      largest: layers of the 27B model.
    """
    per_head = known["head_dim"]
    if known["num_layers"] == largest:
        per_head = known["width"] // known["num_heads"]
    return per_head**-0.5


FAMILY = Family(
    name="gemma2",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=llama.IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("gemma2",),
    gguf=GGUF,
    config_from_gguf=gguf_reader("gemma2", llama.LAYOUTS, _gguf_fields),
)
