"""Pythia (GPT-NeoX) weights: names of Hugging Face and GGUF, and the configs with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig

from .family import Family
from .gguf_keys import GGUFKeys, gguf_always, gguf_rope_scaling
from .hf_keys import GELUS, HFKeys
from .hf_rope import Rope, context_length, length_to_hf, rope_to_hf
from .layouts import heads_in, same, transposed, unheads_in, unsame, untransposed
from .rules import Rule, Source

# Buffers that old releases wrote beside the weights.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|attention\.(masked_)?bias$|^rope_freqs\.weight$")


def _qkv(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[H * 3 * K, D], each head's query, key and value together -> three [D, H, K]."""
    parts = x.reshape(config.num_heads, 3, config.head_dim, x.shape[1])
    return tuple(parts[:, i].transpose(2, 0, 1) for i in range(3))


def _unqkv(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `_qkv`."""
    parts = np.stack([leaf.transpose(1, 2, 0) for leaf in leaves], axis=1)  # [H, 3, K, D]
    return parts.reshape(-1, config.width)


def _qkv_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[H * 3 * K] -> three [H, K]."""
    parts = x.reshape(config.num_heads, 3, config.head_dim)
    return tuple(parts[:, i] for i in range(3))


def _unqkv_bias(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `_qkv_bias`."""
    del config
    return np.stack(leaves, axis=1).reshape(-1)


def _gguf_qkv(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[3 * H * K, D], all queries, then all keys, then all values -> three [D, H, K]."""
    parts = x.reshape(3, config.num_heads, config.head_dim, x.shape[1])
    return tuple(part.transpose(2, 0, 1) for part in parts)


def _ungguf_qkv(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `_gguf_qkv`."""
    parts = np.stack([leaf.transpose(1, 2, 0) for leaf in leaves])  # [3, H, K, D]
    return parts.reshape(-1, config.width)


def _gguf_qkv_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[3 * H * K] -> three [H, K]."""
    return tuple(x.reshape(3, config.num_heads, config.head_dim))


def _ungguf_qkv_bias(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `_gguf_qkv_bias`."""
    del config
    return np.stack(leaves).reshape(-1)


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

_GGUF_NAMES = {  # parts of names in Hugging Face's files -> in GGUF's
    "gpt_neox.embed_in.": "token_embd.",
    "gpt_neox.final_layer_norm.": "output_norm.",
    "embed_out.": "output.",
    "gpt_neox.layers.": "blk.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.",
    "attention.query_key_value.": "attn_qkv.",
    "attention.dense.": "attn_output.",
    "mlp.dense_h_to_4h.": "ffn_up.",
    "mlp.dense_4h_to_h.": "ffn_down.",
}


def _gguf_rule(rule: Rule) -> Rule:
    name = rule.source
    for ours, theirs in _GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    if name.endswith("attn_qkv.weight"):
        return Rule(name, rule.leaves, _gguf_qkv, _ungguf_qkv)
    if name.endswith("attn_qkv.bias"):
        return Rule(name, rule.leaves, _gguf_qkv_bias, _ungguf_qkv_bias)
    return rule._replace(source=name)


GGUF: tuple[Rule, ...] = tuple(_gguf_rule(rule) for rule in HF)


# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "gpt_neox": (
        "attention_bias classifier_dropout hidden_act hidden_dropout intermediate_size is_decoder"
        " layer_norm_eps rotary_emb_base rotary_pct use_parallel_residual vocab_size"
    )
}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: gpt_neox`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = HFKeys(raw, where)
    heads, width = keys.need_size("num_attention_heads"), keys.need_size("hidden_size")
    head_dim = max(1, width // heads)
    max_length = keys.get_size("max_position_embeddings", 2048)
    rope = keys.rope("rotary_emb_base", "rotary_pct", 0.25, max_length)
    config = DecoderConfig(
        family="pythia",
        vocab_size=keys.need_size("vocab_size"),
        num_layers=keys.need_size("num_hidden_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_width=keys.need_size("intermediate_size"),
        norm_eps=keys.get("layer_norm_eps", float, 1e-5),
        rope_base=rope.base,
        rope_dim=int(head_dim * rope.share),
        rope_scaling=rope.scaling,
        max_length=context_length(max_length, rope.scaling),
        tied_unembed=keys.get("tie_word_embeddings", bool, False),
        attention_bias=keys.get("attention_bias", bool, True),
        mlp_bias=True,
        parallel_residual=keys.get("use_parallel_residual", bool, True),
        gelu=GELUS[keys.require("hidden_act", "gelu", tuple(GELUS))],
        dtype=dtype,
    )
    keys.agree("head_dim", head_dim)
    for unused in ("num_key_value_heads", "sliding_window"):  # of what generation keeps in memory
        keys.get(unused, int, 0, null=True)
    keys.layers_alike("full_attention")
    keys.finish("gpt_neox", MODEL_TYPES["gpt_neox"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    Raises:
      TaskVecError: GPT-NeoX has no such rope scaling, or no MLP without biases.
    """
    if not config.mlp_bias:
        raise TaskVecError("a GPT-NeoX without biases in its MLP cannot be a Hugging Face model")
    share = config.rope_dim / config.head_dim
    if int(config.head_dim * share) != config.rope_dim:  # transformers rounds down
        share = (config.rope_dim + 0.5) / config.head_dim
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": config.norm_eps,
        "rotary_pct": share,  # read by transformers 4; rope_parameters by 5
        "rope_parameters": {
            **rope_to_hf(Rope(config.rope_base, share, config.rope_scaling)),
            "partial_rotary_factor": share,
        },
        "max_position_embeddings": length_to_hf(config),
        "tie_word_embeddings": config.tied_unembed,
        "attention_bias": config.attention_bias,
        "use_parallel_residual": config.parallel_residual,
    }


def config_from_gguf(
    meta: Mapping[str, Any], tensors: Source, where: str, dtype: str
) -> DecoderConfig:
    """Reads the metadata of a GGUF file of the gptneox architecture.

    Args:
      meta: metadata key -> value.
      tensors: they tell whether attention has biases.
      where: the file, for messages.
      dtype: of the parameters.

    Raises:
      TaskVecError: a key is missing or asks for something not supported.
    """
    keys = GGUFKeys(meta, "gptneox", where)
    shapes = tensors.shapes()
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise TaskVecError(f"{where}: token_embd.weight is missing; the file is not complete")
    width, layers = keys.need_size("embedding_length"), keys.need_size("block_count")
    heads = keys.layers_size("attention.head_count", layers)
    head_dim = max(1, width // heads)
    for length in ("attention.key_length", "attention.value_length"):
        keys.require(length, head_dim, (head_dim,))
    if keys.layers_size("attention.head_count_kv", layers, heads) != heads:
        raise TaskVecError(f"{where}: attention.head_count_kv is not {heads}, as head_count is")
    rope_dim = keys.get_size("rope.dimension_count", head_dim)  # absent: all, as in llama.cpp
    config = DecoderConfig(
        family="pythia",
        vocab_size=shapes["token_embd.weight"][0],
        num_layers=layers,
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_width=keys.layers_size("feed_forward_length", layers),
        norm_eps=keys.single("attention.layer_norm_epsilon", None),
        rope_base=keys.single("rope.freq_base", 10_000.0),
        rope_dim=rope_dim,
        rope_scaling=gguf_rope_scaling(keys, tensors, rope_dim),
        max_length=keys.need_size("context_length"),
        tied_unembed=False,  # llama.cpp, too, wants output.weight of this architecture
        attention_bias="blk.0.attn_qkv.bias" in shapes,
        mlp_bias=True,
        parallel_residual=keys.need("use_parallel_residual", bool),
        # GGUF does not say which GELU: every Pythia has the exact one, GPT-NeoX-20B tanh.
        gelu="tanh" if (layers, width) == (44, 6144) else "exact",
        dtype=dtype,
    )
    gguf_always(keys, head_dim**-0.5, ("reference",))
    return config


FAMILY = Family(
    name="pythia",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=_IGNORED,
    tied=("embed_out.weight", "gpt_neox.embed_in.weight"),
    prefix="gpt_neox.",
    renamed={"lm_head.weight": "embed_out.weight"},
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("gptneox",),
    gguf=GGUF,
    config_from_gguf=config_from_gguf,
)
