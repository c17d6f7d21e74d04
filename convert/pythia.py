"""Pythia (GPT-NeoX) weights: Hugging Face names, and the config that comes with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.keys import HARMLESS_KEYS, KeyReader
from convert.rules import (
    Rule,
    heads_in,
    same,
    transposed,
    unheads_in,
    unsame,
    untransposed,
)
from taskvec_jax.config import DecoderConfig

# Buffers that old releases wrote beside the weights.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|attention\.(masked_)?bias$")


def _qkv(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[H * 3 * K, D], each head's query, key and value together -> three [D, H, K]."""
    parts = x.reshape(config.num_heads, 3, config.head_dim, x.shape[1])
    return tuple(parts[:, i].transpose(2, 0, 1) for i in range(3))


def _unqkv(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    parts = np.stack([leaf.transpose(1, 2, 0) for leaf in leaves], axis=1)  # [H, 3, K, D]
    return parts.reshape(-1, config.width)


def _qkv_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[H * 3 * K] -> three [H, K]."""
    parts = x.reshape(config.num_heads, 3, config.head_dim)
    return tuple(parts[:, i] for i in range(3))


def _unqkv_bias(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    del config
    return np.stack(leaves, axis=1).reshape(-1)


_B = "gpt_neox.layers.{layer}."
_ATTN = "layers/attn/"

HF: tuple[Rule, ...] = (
    Rule("gpt_neox.embed_in.weight", ("embed/embedding",), same, unsame),
    Rule(_B + "input_layernorm.weight", ("layers/attn_norm/scale",), same, unsame),
    Rule(_B + "input_layernorm.bias", ("layers/attn_norm/bias",), same, unsame),
    Rule(
        _B + "attention.query_key_value.weight",
        (_ATTN + "query/kernel", _ATTN + "key/kernel", _ATTN + "value/kernel"),
        _qkv,
        _unqkv,
    ),
    Rule(
        _B + "attention.query_key_value.bias",
        (_ATTN + "query/bias", _ATTN + "key/bias", _ATTN + "value/bias"),
        _qkv_bias,
        _unqkv_bias,
    ),
    Rule(_B + "attention.dense.weight", (_ATTN + "out/kernel",), heads_in, unheads_in),
    Rule(_B + "attention.dense.bias", (_ATTN + "out/bias",), same, unsame),
    Rule(_B + "post_attention_layernorm.weight", ("layers/mlp_norm/scale",), same, unsame),
    Rule(_B + "post_attention_layernorm.bias", ("layers/mlp_norm/bias",), same, unsame),
    Rule(_B + "mlp.dense_h_to_4h.weight", ("layers/mlp/up/kernel",), transposed, untransposed),
    Rule(_B + "mlp.dense_h_to_4h.bias", ("layers/mlp/up/bias",), same, unsame),
    Rule(_B + "mlp.dense_4h_to_h.weight", ("layers/mlp/down/kernel",), transposed, untransposed),
    Rule(_B + "mlp.dense_4h_to_h.bias", ("layers/mlp/down/bias",), same, unsame),
    Rule("gpt_neox.final_layer_norm.weight", ("final_norm/scale",), same, unsame),
    Rule("gpt_neox.final_layer_norm.bias", ("final_norm/bias",), same, unsame),
    Rule("embed_out.weight", ("unembed/kernel",), transposed, untransposed),
)

_GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: gpt_neox`.

    Raises:
      TaskVecError: a key is missing, unsupported, or unknown and not known to be harmless.
    """
    keys = KeyReader(raw, where)
    heads, width = keys.need("num_attention_heads", int), keys.need("hidden_size", int)
    head_dim = width // heads
    keys.require("attention_bias", True, (True,))
    config = DecoderConfig(
        family="pythia",
        vocab_size=keys.need("vocab_size", int),
        num_layers=keys.need("num_hidden_layers", int),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_width=keys.need("intermediate_size", int),
        norm_eps=keys.get("layer_norm_eps", float, 1e-5),
        rope_base=keys.rope_base("rotary_emb_base"),
        rope_dim=int(head_dim * keys.rope_share("rotary_pct", 0.25)),
        max_length=keys.get("max_position_embeddings", int, 2048),
        tied_unembed=keys.get("tie_word_embeddings", bool, False),
        attention_bias=True,
        mlp_bias=True,
        parallel_residual=keys.get("use_parallel_residual", bool, True),
        gelu=_GELUS[keys.require("hidden_act", "gelu", tuple(_GELUS))],
        dtype=dtype,
    )
    keys.finish(HARMLESS_KEYS)
    return config
