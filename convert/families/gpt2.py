"""GPT-2 weights: names of Hugging Face, and the configs that come with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig

from .family import Family
from .gguf_keys import GGUFKeys, gguf_always, gguf_sizes
from .hf_keys import GELUS, gpt2_keys
from .layouts import same, transposed, unsame, untransposed
from .rules import Rule, Source

# Buffers that old releases wrote beside the weights.
_IGNORED = re.compile(r"\.attn\.(masked_)?bias$")


def _qkv(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[D, 3 * H * K], all queries, then all keys, then all values -> three [D, H, K]."""
    parts = x.reshape(x.shape[0], 3, config.num_heads, config.head_dim)
    return tuple(parts[:, i] for i in range(3))


def _unqkv(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `_qkv`."""
    return np.stack(leaves, axis=1).reshape(config.width, -1)


def _qkv_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[3 * H * K] -> three [H, K]."""
    return tuple(x.reshape(3, config.num_heads, config.head_dim))


def _unqkv_bias(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `_qkv_bias`."""
    del config
    return np.stack(leaves).reshape(-1)


def _heads(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[H * K, D] -> [H, K, D]."""
    return (x.reshape(config.num_heads, config.head_dim, -1),)


def _unheads(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `_heads`."""
    return x.reshape(-1, config.width)


_B = "transformer.h.{layer}."
_ATTN = "layers/attn/"

# Kernels of GPT-2's Conv1D are stored as [in, out], as ours are.
HF: tuple[Rule, ...] = (
    Rule("transformer.wte.weight", ("embed/embedding",), same, unsame),
    Rule("transformer.wpe.weight", ("positions/embedding",), same, unsame),
    Rule(_B + "ln_1.weight", ("layers/attn_norm/scale",), same, unsame),
    Rule(_B + "ln_1.bias", ("layers/attn_norm/bias",), same, unsame),
    Rule(
        _B + "attn.c_attn.weight",
        (_ATTN + "query/kernel", _ATTN + "key/kernel", _ATTN + "value/kernel"),
        _qkv,
        _unqkv,
    ),
    Rule(
        _B + "attn.c_attn.bias",
        (_ATTN + "query/bias", _ATTN + "key/bias", _ATTN + "value/bias"),
        _qkv_bias,
        _unqkv_bias,
    ),
    Rule(_B + "attn.c_proj.weight", (_ATTN + "out/kernel",), _heads, _unheads),
    Rule(_B + "attn.c_proj.bias", (_ATTN + "out/bias",), same, unsame),
    Rule(_B + "ln_2.weight", ("layers/mlp_norm/scale",), same, unsame),
    Rule(_B + "ln_2.bias", ("layers/mlp_norm/bias",), same, unsame),
    Rule(_B + "mlp.c_fc.weight", ("layers/mlp/up/kernel",), same, unsame),
    Rule(_B + "mlp.c_fc.bias", ("layers/mlp/up/bias",), same, unsame),
    Rule(_B + "mlp.c_proj.weight", ("layers/mlp/down/kernel",), same, unsame),
    Rule(_B + "mlp.c_proj.bias", ("layers/mlp/down/bias",), same, unsame),
    Rule("transformer.ln_f.weight", ("final_norm/scale",), same, unsame),
    Rule("transformer.ln_f.bias", ("final_norm/bias",), same, unsame),
    Rule("lm_head.weight", ("unembed/kernel",), transposed, untransposed),
)
_GGUF_NAMES = {  # parts of names in Hugging Face's files -> in GGUF's
    "transformer.wte.": "token_embd.",
    "transformer.wpe.": "position_embd.",
    "transformer.ln_f.": "output_norm.",
    "lm_head.": "output.",
    "transformer.h.": "blk.",
    "ln_1.": "attn_norm.",
    "ln_2.": "ffn_norm.",
    "attn.c_attn.": "attn_qkv.",
    "attn.c_proj.": "attn_output.",
    "mlp.c_fc.": "ffn_up.",
    "mlp.c_proj.": "ffn_down.",
}


def _gguf_rule(rule: Rule) -> Rule:
    """llama.cpp's converter transposes the kernels of Conv1D."""
    name = rule.source
    for ours, theirs in _GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    if not rule.source.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return rule._replace(source=name)
    split, join = rule.split, rule.join
    return Rule(
        name,
        rule.leaves,
        lambda config, x: split(config, x.T),
        lambda config, *leaves: join(config, *leaves).T,
    )


GGUF: tuple[Rule, ...] = tuple(map(_gguf_rule, HF))

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "gpt2": (
        "activation_function add_cross_attention attn_pdrop embd_pdrop layer_norm_epsilon"
        " n_embd n_head n_inner n_layer n_positions reorder_and_upcast_attn resid_pdrop"
        " scale_attn_by_inverse_layer_idx scale_attn_weights summary_activation"
        " summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type"
        " summary_use_proj vocab_size"
    ),
}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: gpt2`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = gpt2_keys(raw, where)
    heads, width = keys.get_size("n_head", 12), keys.get_size("n_embd", 768)
    config = DecoderConfig(
        family="gpt2",
        vocab_size=keys.get_size("vocab_size", 50_257),
        num_layers=keys.get_size("n_layer", 12),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=max(1, width // heads),
        mlp_width=keys.get_size("n_inner", 4 * width, null=True),
        norm_eps=keys.get("layer_norm_epsilon", float, 1e-5),
        rope_base=10_000.0,  # nothing rotates
        rope_dim=0,
        max_length=keys.get_size("n_positions", 1024),
        learned_positions=True,
        tied_unembed=keys.get("tie_word_embeddings", bool, True),
        attention_bias=True,
        mlp_bias=True,
        attention_scale=None if keys.get("scale_attn_weights", bool, True) else 1.0,
        gelu=GELUS[keys.require("activation_function", "gelu_new", tuple(GELUS))],
        dtype=dtype,
    )
    keys.require("scale_attn_by_inverse_layer_idx", False, (False,))
    keys.require("add_cross_attention", False, (False,))
    keys.get("reorder_and_upcast_attn", bool, False)  # the same numbers, in another order
    keys.finish("gpt2", MODEL_TYPES["gpt2"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "activation_function": "gelu" if config.gelu == "exact" else "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "n_positions": config.max_length,
        "scale_attn_weights": config.attention_scale is None,
        "tie_word_embeddings": config.tied_unembed,
    }


def config_from_gguf(
    meta: Mapping[str, Any], tensors: Source, where: str, dtype: str
) -> DecoderConfig:
    """Reads the metadata of a GGUF file of the gpt2 architecture.

    Args:
      meta: metadata key -> value.
      tensors: they tell whether the unembedding is tied.
      where: the file, for messages.
      dtype: of the parameters.

    Raises:
      TaskVecError: a key is missing or asks for something not supported.
    """
    keys = GGUFKeys(meta, "gpt2", where)
    known = gguf_sizes(keys, meta, tensors, layer_norm=True)
    config = DecoderConfig(
        family="gpt2",
        **known,
        rope_base=10_000.0,  # nothing rotates
        rope_dim=0,
        learned_positions=True,
        attention_bias=True,
        mlp_bias=True,
        gelu="tanh",
        dtype=dtype,
    )
    if config.num_kv_heads != config.num_heads or config.width % config.num_heads:
        raise TaskVecError(
            f"{where}: attention.head_count_kv is {config.num_kv_heads}, with"
            f" {config.num_heads} heads in width {config.width}; GPT-2 has as many, which divide it"
        )
    keys.require("rope.scaling.type", "none", ("none",))
    for unused in ("rope.scaling.factor", "rope.scale_linear", "rope.freq_base"):
        keys.require(unused, 0.0, (0.0, 1.0))
    gguf_always(keys, config.head_dim**-0.5, ("reference",))
    return config


FAMILY = Family(
    name="gpt2",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=_IGNORED,
    tied=("lm_head.weight", "transformer.wte.weight"),
    prefix="transformer.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    architectures=("gpt2",),
    gguf=GGUF,
    config_from_gguf=config_from_gguf,
)
