"""OLMo 2 and OLMo 3 weights: names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig

from . import llama
from .family import Family
from .gguf_keys import gguf_reader, gguf_rotary_and_bias
from .hf_keys import HFKeys
from .layouts import heads_bias, unheads_bias
from .llama_like import (
    LAYER,
    Defaults,
    gguf_rules,
    norm,
    rope_by_layer_to_hf,
    rotary,
    rotary_by_layer,
    sizes,
    to_hf,
    window_size,
    windows,
    without,
)
from .rules import Rule

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "olmo2": "attention_bias hidden_act intermediate_size rms_norm_eps vocab_size",
    "olmo3": "attention_bias hidden_act intermediate_size rms_norm_eps vocab_size",
}

HF = (
    *without(llama.HF, "layernorm"),
    Rule(
        LAYER + "self_attn.q_norm.weight",
        ("layers/attn/query_norm/scale",),
        heads_bias,
        unheads_bias,
    ),
    Rule(
        LAYER + "self_attn.k_norm.weight",
        ("layers/attn/key_norm/scale",),
        heads_bias,
        unheads_bias,
    ),
    norm("post_attention_layernorm", "attn_post_norm"),
    norm("post_feedforward_layernorm", "mlp_post_norm"),
)
BASE = 500_000.0  # of OLMo 3's rotary frequencies
GGUF = gguf_rules(HF, "post_attention_norm")


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: olmo2` or `olmo3`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys, kind = HFKeys(raw, where), str(raw["model_type"])
    known = sizes(keys, Defaults(kv_heads=None, head_dim=None, max_length=2048, eps=1e-5))
    if kind == "olmo3":
        every_fourth = [(i + 1) % 4 != 0 for i in range(known["num_layers"])]
        known |= windows(keys.window_layers(every_fourth), window_size(keys, 4096), where)
        rope, base = keys.rope_by_layer(BASE, BASE, None, known["max_length"])
        known |= rotary_by_layer(keys, known, rope, base)
    else:
        keys.get("sliding_window", int, 0, null=True)  # of what generation keeps in memory
        keys.layers_alike("full_attention")
        known |= rotary(keys, known)
    config = DecoderConfig(
        family="olmo2",
        **known,
        attention_bias=keys.get("attention_bias", bool, False),
        dtype=dtype,
    )
    keys.require("hidden_act", "silu", ("silu", "swish"))
    keys.finish(kind, MODEL_TYPES[kind])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    plain = config.sliding_window is None
    return {
        **to_hf(
            config,
            "olmo2" if plain else "olmo3",
            "Olmo2ForCausalLM" if plain else "Olmo3ForCausalLM",
        ),
        **({} if plain else rope_by_layer_to_hf(config, BASE)),
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
    }


FAMILY = Family(
    name="olmo2",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=llama.IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("olmo2",),
    gguf=GGUF,
    config_from_gguf=gguf_reader("olmo2", llama.LAYOUTS, gguf_rotary_and_bias),
)
