"""LLaMA weights: Hugging Face and GGUF names, and the configs that come with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.keys import HARMLESS_KEYS, KeyReader
from convert.rules import (
    Rule,
    heads_bias,
    heads_in,
    heads_out,
    same,
    transposed,
    unheads_bias,
    unheads_in,
    unheads_out,
    unsame,
    untransposed,
)
from taskvec_jax.config import DecoderConfig

IGNORED = re.compile(r"rotary_emb\.inv_freq$|^rope_freqs\.weight$")


def _unpermuted(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """GGUF's query and key rows back in Hugging Face's order.

    GGUF interleaves the two halves of each head's rotary dimensions: row (h, i, half) of the file
    is row (h, half, i) of Hugging Face.
    """
    heads = x.reshape(-1, config.head_dim // 2, 2, *x.shape[1:])
    return heads.swapaxes(1, 2).reshape(x.shape)


def _permuted(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    heads = x.reshape(-1, 2, config.head_dim // 2, *x.shape[1:])
    return heads.swapaxes(1, 2).reshape(x.shape)


def _gguf_heads(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    return heads_out(config, _unpermuted(config, x))


def _ungguf_heads(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    return _permuted(config, unheads_out(config, x))


def _gguf_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    return heads_bias(config, _unpermuted(config, x))


def _ungguf_bias(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    return _permuted(config, unheads_bias(config, x))


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

_GGUF_NAMES = {
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


def _gguf_rule(rule: Rule) -> Rule:
    name = rule.source
    for ours, theirs in _GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    if name.endswith(("attn_q.weight", "attn_k.weight")):
        return Rule(name, rule.leaves, _gguf_heads, _ungguf_heads)
    if name.endswith(("attn_q.bias", "attn_k.bias")):
        return Rule(name, rule.leaves, _gguf_bias, _ungguf_bias)
    return rule._replace(source=name)


GGUF: tuple[Rule, ...] = tuple(_gguf_rule(rule) for rule in HF)


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: llama`.

    Raises:
      TaskVecError: a key is missing, unsupported, or unknown and not known to be harmless.
    """
    keys = KeyReader(raw, where)
    heads, width = keys.need("num_attention_heads", int), keys.need("hidden_size", int)
    head_dim = keys.get("head_dim", int, None) or width // heads
    config = DecoderConfig(
        family="llama",
        vocab_size=keys.need("vocab_size", int),
        num_layers=keys.need("num_hidden_layers", int),
        width=width,
        num_heads=heads,
        num_kv_heads=keys.get("num_key_value_heads", int, None) or heads,
        head_dim=head_dim,
        mlp_width=keys.need("intermediate_size", int),
        norm_eps=keys.get("rms_norm_eps", float, 1e-6),
        rope_base=keys.rope_base("rope_theta"),
        rope_dim=head_dim,
        max_length=keys.get("max_position_embeddings", int, 2048),
        tied_unembed=keys.get("tie_word_embeddings", bool, False),
        attention_bias=keys.get("attention_bias", bool, False),
        mlp_bias=keys.get("mlp_bias", bool, False),
        dtype=dtype,
    )
    keys.require("hidden_act", "silu", ("silu", "swish"))
    keys.finish(HARMLESS_KEYS | {"pretraining_tp", "rope_interleaved"})
    return config


def config_from_gguf(meta: Mapping[str, Any], shapes: Any, where: str, dtype: str) -> DecoderConfig:
    """Reads the metadata of a GGUF file of the llama architecture.

    Args:
      meta: metadata key -> value.
      shapes: tensor name -> shape, which tells whether the unembedding is tied or biased.

    Raises:
      TaskVecError: a key is missing or asks for something not supported.
    """
    keys = KeyReader(
        {k.removeprefix("llama."): v for k, v in meta.items() if k.startswith("llama.")}, where
    )
    width, heads = keys.need("embedding_length", int), keys.need("attention.head_count", int)
    head_dim = keys.get("attention.key_length", int, None) or width // heads
    keys.require("attention.value_length", head_dim, (head_dim,))
    keys.require("rope.scaling.type", "none", ("none",))
    config = DecoderConfig(
        family="llama",
        vocab_size=shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else 0,
        num_layers=keys.need("block_count", int),
        width=width,
        num_heads=heads,
        num_kv_heads=keys.get("attention.head_count_kv", int, None) or heads,
        head_dim=head_dim,
        mlp_width=keys.need("feed_forward_length", int),
        # Stored in single precision: 9.99999975e-06 is 1e-05.
        norm_eps=float(str(np.float32(keys.need("attention.layer_norm_rms_epsilon", float)))),
        rope_base=float(str(np.float32(keys.get("rope.freq_base", float, 10_000.0)))),
        rope_dim=keys.get("rope.dimension_count", int, head_dim),
        max_length=keys.get("context_length", int, 2048),
        tied_unembed="output.weight" not in shapes,
        attention_bias="blk.0.attn_q.bias" in shapes,
        mlp_bias="blk.0.ffn_gate.bias" in shapes,
        dtype=dtype,
    )
    keys.finish({"vocab_size"})
    return config
