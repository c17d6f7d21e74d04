"""LLaMA weights: names of Hugging Face, GGUF and Meta, and the configs that come with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig

from .family import Family
from .gguf_keys import GGUFKeys, gguf_biases, gguf_reader, gguf_rotary
from .hf_keys import HFKeys
from .hf_rope import Rope, context_length, length_to_hf, rope_to_hf
from .layouts import (
    gguf_heads_bias,
    gguf_heads_out,
    heads_bias,
    heads_in,
    heads_out,
    same,
    transposed,
    ungguf_heads_bias,
    ungguf_heads_out,
    unheads_bias,
    unheads_in,
    unheads_out,
    unsame,
    untransposed,
)
from .rules import Rule, Source

# Buffers; rope_freqs.weight of GGUF is read with the config.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|^rope_freqs\.weight$|^rope\.freqs$")


_A = "model.layers.{layer}.self_attn."
_M = "model.layers.{layer}.mlp."

HF: tuple[Rule, ...] = (
    Rule("model.embed_tokens.weight", ("embed/embedding",), same, unsame),
    Rule("model.layers.{layer}.input_layernorm.weight", ("layers/attn_norm/scale",), same, unsame),
    Rule(_A + "q_proj.weight", ("layers/attn/query/kernel",), heads_out, unheads_out),
    Rule(_A + "k_proj.weight", ("layers/attn/key/kernel",), heads_out, unheads_out),
    Rule(_A + "v_proj.weight", ("layers/attn/value/kernel",), heads_out, unheads_out),
    Rule(_A + "o_proj.weight", ("layers/attn/out/kernel",), heads_in, unheads_in),
    Rule(_A + "q_proj.bias", ("layers/attn/query/bias",), heads_bias, unheads_bias),
    Rule(_A + "k_proj.bias", ("layers/attn/key/bias",), heads_bias, unheads_bias),
    Rule(_A + "v_proj.bias", ("layers/attn/value/bias",), heads_bias, unheads_bias),
    Rule(_A + "o_proj.bias", ("layers/attn/out/bias",), same, unsame),
    Rule(
        "model.layers.{layer}.post_attention_layernorm.weight",
        ("layers/mlp_norm/scale",),
        same,
        unsame,
    ),
    Rule(_M + "gate_proj.weight", ("layers/mlp/gate/kernel",), transposed, untransposed),
    Rule(_M + "up_proj.weight", ("layers/mlp/up/kernel",), transposed, untransposed),
    Rule(_M + "down_proj.weight", ("layers/mlp/down/kernel",), transposed, untransposed),
    Rule(_M + "gate_proj.bias", ("layers/mlp/gate/bias",), same, unsame),
    Rule(_M + "up_proj.bias", ("layers/mlp/up/bias",), same, unsame),
    Rule(_M + "down_proj.bias", ("layers/mlp/down/bias",), same, unsame),
    Rule("model.norm.weight", ("final_norm/scale",), same, unsame),
    Rule("lm_head.weight", ("unembed/kernel",), transposed, untransposed),
)

LAYOUTS = ("Meta AI original pth", "reference")  # of tensors in GGUF files
_GGUF_NAMES = {  # parts of names in Hugging Face's files -> in GGUF's
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}


_META_NAMES = {  # parts of names in Hugging Face's files -> in Meta's
    "model.embed_tokens.": "tok_embeddings.",
    "model.norm.": "norm.",
    "lm_head.": "output.",
    "model.layers.": "layers.",
    "input_layernorm.": "attention_norm.",
    "post_attention_layernorm.": "ffn_norm.",
    "self_attn.q_proj.": "attention.wq.",
    "self_attn.k_proj.": "attention.wk.",
    "self_attn.v_proj.": "attention.wv.",
    "self_attn.o_proj.": "attention.wo.",
    "mlp.gate_proj.": "feed_forward.w1.",
    "mlp.down_proj.": "feed_forward.w2.",
    "mlp.up_proj.": "feed_forward.w3.",
}


def _renamed(rule: Rule, names: Mapping[str, str]) -> Rule:
    """A Hugging Face rule with the names, and the row order, of GGUF or Meta."""
    source = rule.source
    for theirs, other in names.items():
        source = source.replace(theirs, other)
    if rule.source.endswith(("q_proj.weight", "k_proj.weight")):
        return Rule(source, rule.leaves, gguf_heads_out, ungguf_heads_out)
    if rule.source.endswith(("q_proj.bias", "k_proj.bias")):
        return Rule(source, rule.leaves, gguf_heads_bias, ungguf_heads_bias)
    return rule._replace(source=source)


GGUF: tuple[Rule, ...] = tuple(_renamed(rule, _GGUF_NAMES) for rule in HF)
META: tuple[Rule, ...] = tuple(_renamed(rule, _META_NAMES) for rule in HF)


# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "llama": (
        "attention_bias hidden_act intermediate_size mlp_bias pretraining_tp rms_norm_eps"
        " vocab_size"
    ),
    "mistral": "hidden_act intermediate_size rms_norm_eps vocab_size",
}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: llama` or `mistral`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys, mistral = HFKeys(raw, where), raw.get("model_type") == "mistral"
    heads, width = keys.need_size("num_attention_heads"), keys.need_size("hidden_size")
    head_dim = keys.get_size("head_dim", max(1, width // heads), null=True)
    max_length = keys.get_size("max_position_embeddings", 131_072 if mistral else 2048)
    rope = keys.rope("rope_theta", "partial_rotary_factor", 1.0, max_length)
    if rope.share != 1.0:
        raise TaskVecError(f"{where}: partial_rotary_factor is {rope.share}; allowed: 1.0")
    kv_heads, window = heads, None
    if mistral:
        # A key that is absent has transformers' default, one that is null means none.
        windowed = raw.get("sliding_window", 4096) is not None
        window = keys.get_size("sliding_window", 4096, null=True) if windowed else None
        kv_heads = heads if "num_key_value_heads" in raw else 8
        keys.layers_alike("sliding_attention" if windowed else "full_attention")
    else:  # what says which keys and values may be forgotten in generation, and no more than that
        keys.get("sliding_window", int, 0, null=True)
        keys.layers_alike("full_attention")
    config = DecoderConfig(
        family="llama",
        vocab_size=keys.need_size("vocab_size"),
        num_layers=keys.need_size("num_hidden_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=keys.get_size("num_key_value_heads", kv_heads, null=True),
        head_dim=head_dim,
        mlp_width=keys.need_size("intermediate_size"),
        norm_eps=keys.get("rms_norm_eps", float, 1e-6),
        rope_base=rope.base,
        rope_dim=head_dim,
        rope_scaling=rope.scaling,
        max_length=context_length(max_length, rope.scaling),
        sliding_window=window,
        tied_unembed=keys.get("tie_word_embeddings", bool, False),
        attention_bias=not mistral and keys.get("attention_bias", bool, False),
        mlp_bias=not mistral and keys.get("mlp_bias", bool, False),
        dtype=dtype,
    )
    keys.require("hidden_act", "silu", ("silu", "swish"))
    model_type = "mistral" if mistral else "llama"
    keys.finish(model_type, MODEL_TYPES[model_type])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    transformers wants a LLaMA's heads to divide its width, even where head_dim is given, and its
    LLaMA has no sliding window; what is not so is written as the Mistral that computes the same.

    Raises:
      TaskVecError: transformers has no such rope scaling, or no such shape.
    """
    plain = config.width % config.num_heads == 0 and config.sliding_window is None
    if not plain and (config.attention_bias or config.mlp_bias):
        raise TaskVecError(
            f"width {config.width} over {config.num_heads} heads with sliding window"
            f" {config.sliding_window}: Hugging Face has no such LLaMA, and its Mistral has no"
            " biases"
        )
    return {
        "architectures": ["LlamaForCausalLM" if plain else "MistralForCausalLM"],
        "model_type": "llama" if plain else "mistral",
        **({} if plain else {"sliding_window": config.sliding_window}),
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope_to_hf(Rope(config.rope_base, 1.0, config.rope_scaling)),
        "max_position_embeddings": length_to_hf(config),
        "tie_word_embeddings": config.tied_unembed,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def _gguf_fields(keys: GGUFKeys, known: Mapping[str, Any], tensors: Source) -> dict[str, Any]:
    """The fields of a GGUF file that this family has beside those of all; see `gguf_reader`."""
    return {
        **gguf_rotary(keys, tensors, known["head_dim"]),
        "sliding_window": keys.get("attention.sliding_window", int, 0) or None,  # 0: none
        **gguf_biases(tensors),
    }


FAMILY = Family(
    name="llama",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("llama",),
    gguf=GGUF,
    config_from_gguf=gguf_reader("llama", LAYOUTS, _gguf_fields),
)
