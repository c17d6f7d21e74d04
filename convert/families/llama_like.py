"""What LLaMA's descendants share: names of tensors, and most keys of their configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig

from .hf_keys import HFKeys, layer_types
from .hf_rope import Rope, context_length, length_to_hf, rope_to_hf
from .layouts import less_one, plus_one, same, unsame
from .rules import Rule

LAYER = "model.layers.{layer}."


class Defaults(NamedTuple):
    """What transformers takes for keys that a config.json leaves out.

    Attributes:
      kv_heads, head_dim: None: as many as heads, and width / heads.
      max_length: tokens of context.
      eps: of the norms; None: the family does not say it in its config.
      tied: whether the unembedding is the embedding.
    """

    kv_heads: int | None
    head_dim: int | None
    max_length: int
    eps: float | None
    tied: bool = False


def norm(name: str, leaf: str) -> Rule:
    """The rule of a norm's scale, of which each layer has one."""
    return Rule(f"{LAYER}{name}.weight", (f"layers/{leaf}/scale",), same, unsame)


def without(rules: Sequence[Rule], *parts: str) -> tuple[Rule, ...]:
    """A table without the rules whose tensors have one of these parts in their names."""
    return tuple(rule for rule in rules if not any(part in rule.source for part in parts))


_GGUF_NAMES = {  # parts of names in Hugging Face's files -> in GGUF's, of all of these families
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm.": "attn_norm.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.qkv_proj.": "attn_qkv.",
    "self_attn.o_proj.": "attn_output.",
    "self_attn.q_norm.": "attn_q_norm.",
    "self_attn.k_norm.": "attn_k_norm.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.gate_up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
    "pre_feedforward_layernorm.": "ffn_norm.",
    "post_feedforward_layernorm.": "post_ffw_norm.",
}


def gguf_rules(rules: Sequence[Rule], after_attention: str, offset: int = 0) -> tuple[Rule, ...]:
    """The rules of Hugging Face's names with GGUF's, for files that keep the order of rows.

    Names as in llama.cpp's gguf-py/gguf/tensor_mapping.py.

    Args:
      after_attention: what a file calls `post_attention_layernorm`, which stands before the MLP in
        some families and after attention in others.
      offset: 1 where llama.cpp's converter adds one to the scales of norms, as it does for Gemma.
    """
    names = {**_GGUF_NAMES, "post_attention_layernorm.": after_attention + "."}
    renamed = []
    for rule in rules:
        source = rule.source
        for theirs, other in names.items():
            source = source.replace(theirs, other)
        if offset and source.endswith("norm.weight"):
            rule = rule._replace(split=less_one, join=plus_one)
        renamed.append(rule._replace(source=source))
    return tuple(renamed)


def sizes(keys: HFKeys, defaults: Defaults) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that these families name alike; no rotary settings yet.

    Raises:
      TaskVecError: a key is missing, or of the wrong kind.
    """
    heads, width = keys.need_size("num_attention_heads"), keys.need_size("hidden_size")
    kv_heads, head_dim = defaults.kv_heads, defaults.head_dim
    if kv_heads is None or keys.is_null("num_key_value_heads"):
        kv_heads = heads
    return {
        "vocab_size": keys.need_size("vocab_size"),
        "num_layers": keys.need_size("num_hidden_layers"),
        "width": width,
        "num_heads": heads,
        "num_kv_heads": keys.get_size("num_key_value_heads", kv_heads, null=True),
        "head_dim": keys.get_size(
            "head_dim", head_dim or max(1, width // heads), null=head_dim is None
        ),
        "mlp_width": keys.need_size("intermediate_size"),
        "norm_eps": 1e-5 if defaults.eps is None else keys.get("rms_norm_eps", float, defaults.eps),
        "max_length": keys.get_size("max_position_embeddings", defaults.max_length),
        "tied_unembed": keys.get("tie_word_embeddings", bool, defaults.tied),
    }


def rotary(keys: HFKeys, known: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields of a model whose heads rotate whole, and its context length.

    Args:
      known: what `sizes` found.

    Raises:
      TaskVecError: a kind of scaling that is not supported, or heads that rotate in part.
    """
    length = known["max_length"]
    return rotary_of(keys, keys.rope("rope_theta", "partial_rotary_factor", 1.0, length), known)


def rotary_of(keys: HFKeys, rope: Rope, known: Mapping[str, Any]) -> dict[str, Any]:
    """`rotary` of settings that have been read."""
    if rope.share != 1.0:
        raise TaskVecError(f"{keys.where}: partial_rotary_factor is {rope.share}; allowed: 1.0")
    return {
        "rope_base": rope.base,
        "rope_dim": known["head_dim"],
        "rope_scaling": rope.scaling,
        "max_length": context_length(known["max_length"], rope.scaling),
    }


def windows(windowed: Sequence[bool], window: int | None, where: str) -> dict[str, Any]:
    """The fields that say which layers have a sliding window.

    Raises:
      TaskVecError: some have, and its size is not said.
    """
    if not any(windowed):
        return {"sliding_window": None, "window_layers": ()}
    if window is None:
        raise TaskVecError(f"{where}: layer_types has windows, and sliding_window is null")
    return {
        "sliding_window": window,
        "window_layers": () if all(windowed) else tuple(windowed),
    }


def upper_windows(keys: HFKeys, known: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen's windows: in the layers from `max_window_layers` on, if `use_sliding_window` says so.

    Args:
      known: what `sizes` found.
    """
    is_windowed = keys.get("use_sliding_window", bool, False)
    window = window_size(keys, 4096) if is_windowed else None
    keys.get("sliding_window", int, 0, null=True)  # without use_sliding_window it does not count
    first = keys.get("max_window_layers", int, 28)
    upper = [window is not None and i >= first for i in range(known["num_layers"])]
    return windows(keys.window_layers(upper), window, keys.where)


def upper_windows_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `upper_windows`."""
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window or 4096,
        "layer_types": layer_types(config),
    }


def window_size(keys: HFKeys, default: int | None) -> int | None:
    """`sliding_window`: absent it has transformers' default, null means none."""
    if keys.is_null("sliding_window") or ("sliding_window" not in keys and default is None):
        keys.get("sliding_window", int, 0, null=True)
        return None
    return keys.get_size("sliding_window", default or 0)


def to_hf(config: DecoderConfig, model_type: str, architecture: str) -> dict[str, Any]:
    """The keys of a config.json that these families name alike, the inverse of the above.

    Raises:
      TaskVecError: transformers has no such rope scaling.
    """
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope_to_hf(Rope(config.rope_base, 1.0, config.rope_scaling)),
        "max_position_embeddings": length_to_hf(config),
        "tie_word_embeddings": config.tied_unembed,
    }


def rope_by_layer_to_hf(config: DecoderConfig, window_base: float) -> dict[str, Any]:
    """The keys of a family whose windowed layers rotate otherwise; see `HFKeys.rope_by_layer`.

    Args:
      window_base: of windowed layers where the model has none, whom nobody asks.
    """
    full = rope_to_hf(Rope(config.rope_base, 1.0, config.rope_scaling))
    base = config.window_rope_base
    if base is None:  # all layers are alike
        base = config.rope_base if config.sliding_window is not None else window_base
    return {
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        },
        "layer_types": layer_types(config),
        "sliding_window": config.sliding_window or 4096,
    }


def rotary_by_layer(
    keys: HFKeys, known: Mapping[str, Any], rope: Rope, window_base: float
) -> dict[str, Any]:
    """The rotary fields of such a family; `known` holds what `windows` found too."""
    if known["sliding_window"] is None:
        return rotary_of(keys, rope, known)
    if not known["window_layers"]:  # a window in every layer
        return rotary_of(keys, Rope(window_base, 1.0, None), known)
    return {**rotary_of(keys, rope, known), "window_rope_base": window_base}
