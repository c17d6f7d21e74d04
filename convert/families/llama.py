"""LLaMA weights: names of Hugging Face, GGUF and Meta, and the configs that come with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig, RopeScaling

from .family import Family
from .keys import KeyReader, Rope, rope_to_hf
from .rules import (
    Rule,
    Shapes,
    Source,
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

# Buffers; rope_freqs.weight of GGUF is read with the config.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|^rope_freqs\.weight$|^rope\.freqs$")


def _unpermuted(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """Query and key rows of GGUF and of Meta in Hugging Face's order.

    They interleave the two halves of each head's rotary dimensions: row (h, i, half) of the file
    is row (h, half, i) of Hugging Face.
    """
    heads = x.reshape(-1, config.head_dim // 2, 2, *x.shape[1:])
    return heads.swapaxes(1, 2).reshape(x.shape)


def _permuted(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `_unpermuted`."""
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

_GGUF_NAMES = {  # Hugging Face's words -> GGUF's
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


_META_NAMES = {  # Hugging Face's words -> Meta's
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
    """A Hugging Face rule in the words, and with the row order, of GGUF or Meta."""
    source = rule.source
    for theirs, other in names.items():
        source = source.replace(theirs, other)
    if rule.source.endswith(("q_proj.weight", "k_proj.weight")):
        return Rule(source, rule.leaves, _gguf_heads, _ungguf_heads)
    if rule.source.endswith(("q_proj.bias", "k_proj.bias")):
        return Rule(source, rule.leaves, _gguf_bias, _ungguf_bias)
    return rule._replace(source=source)


GGUF: tuple[Rule, ...] = tuple(_renamed(rule, _GGUF_NAMES) for rule in HF)
META: tuple[Rule, ...] = tuple(_renamed(rule, _META_NAMES) for rule in HF)


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: llama` or `mistral`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys, mistral = KeyReader(raw, where), raw.get("model_type") == "mistral"
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
        max_length=max_length,
        sliding_window=window,
        tied_unembed=keys.get("tie_word_embeddings", bool, False),
        attention_bias=not mistral and keys.get("attention_bias", bool, False),
        mlp_bias=not mistral and keys.get("mlp_bias", bool, False),
        dtype=dtype,
    )
    keys.require("hidden_act", "silu", ("silu", "swish"))
    keys.finish("mistral" if mistral else "llama")
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model.

    transformers wants a LLaMA's heads to divide its width, even where head_dim is given, and its
    LLaMA has no sliding window; what is not so is written as the Mistral that computes the same.

    Raises:
      TaskVecError: the rope scaling, or the shape, cannot be said in it.
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
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tied_unembed,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def config_from_gguf(
    meta: Mapping[str, Any], tensors: Source, where: str, dtype: str
) -> DecoderConfig:
    """Reads the metadata of a GGUF file of the llama architecture.

    Args:
      meta: metadata key -> value.
      tensors: they tell whether the unembedding is tied, what has a bias, and how the rotary
        frequencies are scaled.
      where: the file, for messages.
      dtype: of the parameters.

    Raises:
      TaskVecError: a key is missing or asks for something not supported.
    """
    keys = KeyReader(
        {k.removeprefix("llama."): v for k, v in meta.items() if k.startswith("llama.")}, where
    )
    shapes = tensors.shapes()
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise TaskVecError(f"{where}: token_embd.weight is missing; the file is not complete")
    width, layers = keys.need_size("embedding_length"), keys.need_size("block_count")
    heads = keys.layers_size("attention.head_count", layers)
    head_dim = keys.get_size("attention.key_length", max(1, width // heads))
    if keys.get_size("attention.value_length", max(1, width // heads)) != head_dim:
        raise TaskVecError(
            f"{where}: attention.key_length is {head_dim} and attention.value_length another number"
            f" (where it is absent, {width} / {heads}); allowed: the same"
        )
    max_length = keys.need_size("context_length")
    config = DecoderConfig(
        family="llama",
        vocab_size=shapes["token_embd.weight"][0],
        num_layers=layers,
        width=width,
        num_heads=heads,
        num_kv_heads=keys.layers_size("attention.head_count_kv", layers, heads),
        head_dim=head_dim,
        mlp_width=keys.layers_size("feed_forward_length", layers),
        norm_eps=keys.single("attention.layer_norm_rms_epsilon", None),
        rope_base=keys.single("rope.freq_base", 10_000.0),
        rope_dim=keys.require("rope.dimension_count", head_dim, (head_dim,)),
        rope_scaling=gguf_rope_scaling(keys, tensors, head_dim),
        max_length=max_length,
        sliding_window=keys.get("attention.sliding_window", int, 0) or None,  # 0: none
        tied_unembed=_gguf_tied(meta, shapes, where),
        attention_bias="blk.0.attn_q.bias" in shapes,
        mlp_bias="blk.0.ffn_gate.bias" in shapes,
        dtype=dtype,
    )
    gguf_always(keys, head_dim, ("Meta AI original pth", "reference"))
    return config


def gguf_always(keys: KeyReader, head_dim: int, layouts: tuple[str, ...]) -> None:
    """Reads what both architectures of GGUF may ask for, and ends the reading of keys.

    Raises:
      TaskVecError: tokens that see later ones, scores that are scaled otherwise, a layout of
        tensors that is not in `layouts`, or a key that may change the numbers and was not read.
    """
    scale = keys.get("attention.scale", float, 0.0)
    if np.float32(scale) not in (np.float32(0), np.float32(head_dim**-0.5)):
        raise TaskVecError(
            f"{keys.where}: attention.scale is {scale}; allowed: {head_dim**-0.5}, or 0 for it"
        )
    keys.require("attention.causal", True, (True,))
    keys.require("tensor_data_layout", layouts[0], layouts)
    keys.require("rope.scaling.attn_factor", 1.0, (1.0,))
    keys.finish_gguf()


def _gguf_tied(meta: Mapping[str, Any], shapes: Shapes, where: str) -> bool:
    """Whether the embedding is the unembedding: llama.cpp takes it for one that is not there.

    Raises:
      TaskVecError: it may lie in a part of the model that is not here.
    """
    if "output.weight" in shapes:
        return False
    expected = meta.get("split.tensors.count", len(shapes))
    if expected != len(shapes):
        raise TaskVecError(
            f"{where}: holds {len(shapes)} of the {expected} tensors of a split model, and no"
            " output.weight; fetch the other parts beside it"
        )
    return True


def gguf_rope_scaling(keys: KeyReader, tensors: Source, rope_dim: int) -> RopeScaling | None:
    """Rope scaling of a GGUF file: linear in its metadata, "llama3" as a tensor of divisors.

    As in llama.cpp a factor without a type is linear, an older name of the factor counts where the
    newer is absent, and a factor of 0 is 1.

    Raises:
      TaskVecError: another kind, or a tensor that makes no sense.
    """
    kind = keys.require("rope.scaling.type", "linear", ("none", "linear"))
    older = keys.get("rope.scale_linear", float, 0.0)
    factor = keys.get("rope.scaling.factor", float, older) or 1.0
    divisors: list[float] = []
    if "rope_freqs.weight" in tensors.shapes():
        values = tensors.read("rope_freqs.weight")
        if values.shape != (rope_dim // 2,) or not (np.isfinite(values) & (values > 0)).all():
            raise TaskVecError(
                f"{keys.where}: rope_freqs.weight has shape {values.shape} or numbers that are"
                f" not above 0, expected {rope_dim // 2} of them; fetch the file again"
            )
        divisors = [] if (values == 1).all() else [float(n) for n in values]
    if kind == "none" or factor == 1:
        return RopeScaling("divisors", divisors=tuple(divisors)) if divisors else None
    if divisors:
        raise TaskVecError(f"{keys.where}: two kinds of rope scaling at once are not supported")
    return RopeScaling("linear", factor=factor)


def config_from_meta(
    raw: Mapping[str, Any], tensors: Source, where: str, dtype: str
) -> DecoderConfig:
    """Reads params.json of Meta's own releases.

    Raises:
      TaskVecError: a key is missing, unsupported or unknown.
    """
    keys = KeyReader(raw, where)
    shapes = tensors.shapes()
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if len(shapes.get(name, ())) != 2:
            raise TaskVecError(f"{where}: {name} is missing; the download is not complete")
    width, heads = keys.need_size("dim"), keys.need_size("n_heads")
    head_dim = max(1, width // heads)
    scaling = None
    if keys.get("use_scaled_rope", bool, False):
        # Meta's params.json leaves the factor to its program: 8 in 3.1, 32 in the small 3.2.
        if width < 4096 and "rope_scaling_factor" not in raw:
            raise TaskVecError(
                f"{where}: use_scaled_rope without rope_scaling_factor, which differs between"
                ' Llama 3.1 (8) and 3.2 (32); add "rope_scaling_factor" to the file'
            )
        scaling = RopeScaling("llama3", factor=keys.get("rope_scaling_factor", float, 8.0))
    config = DecoderConfig(
        family="llama",
        vocab_size=shapes["tok_embeddings.weight"][0],
        num_layers=keys.need_size("n_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=keys.get_size("n_kv_heads", heads),
        head_dim=head_dim,
        mlp_width=shapes["layers.0.feed_forward.w1.weight"][0],
        norm_eps=keys.need("norm_eps", float),
        rope_base=keys.get("rope_theta", float, 10_000.0),
        rope_dim=head_dim,
        rope_scaling=scaling,
        max_length=keys.get_size("max_seq_len", 2048),
        dtype=dtype,
    )
    keys.finish_meta({"vocab_size", "multiple_of", "ffn_dim_multiplier", "max_batch_size"})
    return config


FAMILY = Family(
    hf=HF,
    ignored=_IGNORED,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    gguf=GGUF,
    config_from_gguf=config_from_gguf,
)
