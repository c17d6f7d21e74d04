"""Phi-3 weights: names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig, RopeScaling

from . import llama
from .family import Family
from .gguf_keys import GGUFKeys, gguf_reader, gguf_rope_scaling
from .hf_keys import HFKeys
from .hf_rope import Rope, context_length, length_to_hf, rope_to_hf
from .layouts import fused_heads, fused_mlp, unfused_heads, unfused_mlp
from .llama_like import LAYER, Defaults, gguf_rules, sizes, to_hf, window_size, without
from .rules import Rule, Source

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "phi3": "embd_pdrop hidden_act intermediate_size resid_pdrop rms_norm_eps vocab_size",
}

_ATTN, _MLP = "layers/attn/", "layers/mlp/"
HF = (
    *without(llama.HF, "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
    Rule(
        LAYER + "self_attn.qkv_proj.weight",
        (_ATTN + "query/kernel", _ATTN + "key/kernel", _ATTN + "value/kernel"),
        fused_heads,
        unfused_heads,
    ),
    Rule(
        LAYER + "mlp.gate_up_proj.weight",
        (_MLP + "gate/kernel", _MLP + "up/kernel"),
        fused_mlp,
        unfused_mlp,
    ),
)
# The divisors of "longrope" in GGUF are read with the config.
_IGNORED = re.compile(llama.IGNORED.pattern + r"|^rope_factors_(short|long)\.weight$")
_KINDS = {"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}
GGUF = gguf_rules(HF, "ffn_norm")


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: phi3`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    known = sizes(keys, Defaults(kv_heads=None, head_dim=None, max_length=4096, eps=1e-5))
    rope = keys.rope(
        "rope_theta", "partial_rotary_factor", 1.0, known["max_length"], _KINDS, original=4096
    )
    known["max_length"] = context_length(known["max_length"], rope.scaling)
    config = DecoderConfig(
        family="phi3",
        **known,
        rope_base=rope.base,
        rope_dim=int(known["head_dim"] * rope.share),
        rope_scaling=rope.scaling,
        sliding_window=window_size(keys, None),
        dtype=dtype,
    )
    keys.layers_alike("full_attention" if config.sliding_window is None else "sliding_attention")
    keys.require("hidden_act", "silu", ("silu", "swish"))
    keys.finish("phi3", MODEL_TYPES["phi3"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    share, scaling = config.rope_dim / config.head_dim, config.rope_scaling
    if int(config.head_dim * share) != config.rope_dim:  # transformers rounds down
        share = (config.rope_dim + 0.5) / config.head_dim
    return {
        **to_hf(config, "phi3", "Phi3ForCausalLM"),
        "hidden_act": "silu",
        "rope_parameters": {
            **rope_to_hf(Rope(config.rope_base, share, scaling)),
            "partial_rotary_factor": share,
        },
        "original_max_position_embeddings": (
            length_to_hf(config) if scaling is None else scaling.original_max_length
        ),
        "sliding_window": config.sliding_window,
    }


def _gguf_fields(keys: GGUFKeys, known: Mapping[str, Any], tensors: Source) -> dict[str, Any]:
    """The fields of a GGUF file that this family has beside those of all; see `gguf_reader`."""
    rope_dim = keys.get_size("rope.dimension_count", known["head_dim"])
    return {
        "rope_base": keys.single("rope.freq_base", 10_000.0),
        "rope_dim": rope_dim,
        "rope_scaling": _gguf_scaling(keys, tensors, rope_dim, known["max_length"]),
        "sliding_window": keys.get("attention.sliding_window", int, 0) or None,  # 0: none
    }


def _gguf_scaling(
    keys: GGUFKeys, tensors: Source, rope_dim: int, max_length: int
) -> RopeScaling | None:
    """Tensors hold the divisors of "longrope"; without them, what every architecture may have."""
    names = ("rope_factors_short.weight", "rope_factors_long.weight")
    if not all(name in tensors.shapes() for name in names):
        return gguf_rope_scaling(keys, tensors, rope_dim)
    keys.require("rope.scaling.type", "longrope", ("longrope", "none"))
    factor = keys.single("rope.scaling.attn_factor", 1.0)
    keys.get("rope.scaling.factor", float, 1.0)  # what the divisors were made for
    short, long = (tuple(map(float, tensors.read(name).reshape(-1))) for name in names)
    return RopeScaling(
        "longrope",
        original_max_length=keys.get_size("rope.scaling.original_context_length", max_length),
        divisors=short,
        long_divisors=long,
        attention_factor=factor,
    )


FAMILY = Family(
    name="phi3",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=_IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("phi3",),
    gguf=GGUF,
    config_from_gguf=gguf_reader("phi3", llama.LAYOUTS, _gguf_fields),
)
