"""Keys of a GGUF file's metadata: what is read is used, what may matter and is not is refused.

Whether a key may matter is decided by the `gguf` package, which lists the keys that the format
defines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig, RopeScaling

from .keys import KeyReader, note
from .rules import Shapes, Source

# Keys of a GGUF file, without "llama." or "gptneox.", with which no value changes the numbers:
# llama.cpp uses them for a model's name, for embeddings of texts, for YaRN alone, or not at all.
GGUF_HARMLESS = frozenset(
    """
    vocab_size pooling_type classifier.output_labels decoder_start_token_id
    attention.layer_norm_epsilon attention.layer_norm_rms_epsilon
    rope.scaling.original_context_length rope.scaling.finetuned
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_log_multiplier
    """.split()
)
_FACTORS = frozenset(  # 1 leaves the numbers alone, and so does 0, which llama.cpp takes for none
    """
    logit_scale residual_scale embedding_scale attention.output_scale expert_weights_scale
    rope.scaling.yarn_attn_factor
    """.split()
)
_GGUF_KEYS = frozenset(  # every key that the format has for a model, without its architecture
    name.removeprefix("{arch}.")
    for group in vars(gguf.Keys).values()
    if isinstance(group, type)
    for name in vars(group).values()
    if isinstance(name, str) and name.startswith("{arch}.")
)


def _is_off(value: Any) -> bool:
    """Whether a value is 0, false, an empty list, or a list of these: the format's "not set"."""
    if isinstance(value, list):
        return all(map(_is_off, value))
    return isinstance(value, (bool, int, float)) and not value


class GGUFKeys(KeyReader):
    """The keys of one architecture, without its name before them."""

    def __init__(self, meta: Mapping[str, Any], architecture: str, where: str) -> None:
        """Takes the keys of an architecture from a file's metadata."""
        prefix = architecture + "."
        raw = {k.removeprefix(prefix): v for k, v in meta.items() if k.startswith(prefix)}
        super().__init__(raw, where)

    def layers_size(self, key: str, layers: int, default: int | None = None) -> int:
        """A whole number above 0 that GGUF gives once, or once for each layer.

        Raises:
          TaskVecError: it is missing and has no default, or layers differ.
        """
        value = self._raw.get(key)
        if isinstance(value, list):
            self._read.add(key)
            if len(value) != layers or any(type(n) is not int or n != value[0] for n in value):
                raise TaskVecError(
                    f"{self.where}: {key} is {str(value)[:80]}; allowed: one number, the same for"
                    f" all {layers} layers"
                )
            return self._size(key, value[0])
        return self.need_size(key) if default is None else self.get_size(key, default)

    def single(self, key: str, default: float | None) -> float:
        """A number that GGUF stored in single precision: 9.99999975e-06 is 1e-05."""
        value = self.need(key, float) if default is None else self.get(key, float, default)
        return float(str(np.float32(value)))

    def finish(self) -> None:
        """Refuses keys of a GGUF file that the format defines and nobody here read.

        They pass where they are off or neutral. A key that the format does not define is one that
        llama.cpp has no name for and cannot read: that is noted, and the key passed over.

        Raises:
          TaskVecError: a defined key, at a value that may change the numbers.
        """
        rest = {
            key: value
            for key, value in self._raw.items()
            if key not in self._read and key not in GGUF_HARMLESS
        }
        refused = sorted(
            key
            for key, value in rest.items()
            if key in _GGUF_KEYS and not _is_off(value) and not (key in _FACTORS and value == 1)
        )
        if refused:
            raise TaskVecError(
                f"{self.where}: this project does not compute what the keys {refused[:12]} ask"
                " for; use another file of this model"
            )
        if unread := tuple(sorted(rest.keys() - _GGUF_KEYS)):
            note(self.where, unread, "the GGUF format")


def gguf_always(keys: GGUFKeys, scale: float, layouts: tuple[str, ...]) -> None:
    """Reads the keys that every architecture of GGUF may have, then calls `finish`.

    Args:
      scale: what this model's scores are multiplied by.

    Raises:
      TaskVecError: tokens that see later ones, scores that are scaled otherwise, a layout of
        tensors that is not in `layouts`, or a key that may change the numbers and was not read.
    """
    said = keys.get("attention.scale", float, 0.0)
    if np.float32(said) not in (np.float32(0), np.float32(scale)):
        raise TaskVecError(
            f"{keys.where}: attention.scale is {said}; allowed: {scale}, or 0 for it"
        )
    keys.require("attention.causal", True, (True,))
    keys.require("tensor_data_layout", layouts[0], layouts)
    if not keys.was_read("rope.scaling.attn_factor"):
        keys.require("rope.scaling.attn_factor", 1.0, (1.0,))
    keys.finish()


def gguf_tied(meta: Mapping[str, Any], shapes: Shapes, where: str) -> bool:
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


def gguf_sizes(
    keys: GGUFKeys, meta: Mapping[str, Any], tensors: Source, *, layer_norm: bool = False
) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that all architectures name alike.

    Args:
      layer_norm: whether the norms are LayerNorms, which have another key for their epsilon.

    Raises:
      TaskVecError: a key or the embedding is missing, or keys and values differ in size.
    """
    shapes = tensors.shapes()
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise TaskVecError(f"{keys.where}: token_embd.weight is missing; the file is not complete")
    width, layers = keys.need_size("embedding_length"), keys.need_size("block_count")
    heads = keys.layers_size("attention.head_count", layers)
    head_dim = keys.get_size("attention.key_length", max(1, width // heads))
    if keys.get_size("attention.value_length", max(1, width // heads)) != head_dim:
        raise TaskVecError(
            f"{keys.where}: attention.key_length is {head_dim} and attention.value_length another"
            f" number (where it is absent, {width} / {heads}); allowed: the same"
        )
    eps = "attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon"
    return {
        "vocab_size": shapes["token_embd.weight"][0],
        "num_layers": layers,
        "width": width,
        "num_heads": heads,
        "num_kv_heads": keys.layers_size("attention.head_count_kv", layers, heads),
        "head_dim": head_dim,
        "mlp_width": keys.layers_size("feed_forward_length", layers),
        "norm_eps": keys.single(eps, None),
        "max_length": keys.need_size("context_length"),
        "tied_unembed": gguf_tied(meta, shapes, keys.where),
    }


def gguf_reader(
    family: str,
    layouts: tuple[str, ...],
    fields: Callable[[GGUFKeys, Mapping[str, Any], Source], dict[str, Any]],
) -> Callable[[Mapping[str, Any], Source, str, str], DecoderConfig]:
    """`Family.config_from_gguf` of a family with RMSNorms whose name is its architecture's too.

    Args:
      layouts: of tensors; see `gguf_always`.
      fields: (keys, what `gguf_sizes` found, the tensors, which tell what has a bias and how the
        rotary frequencies are scaled) -> the fields of the config that this family has besides.

    Returns:
      (metadata, tensors, the file for messages, dtype of the parameters) -> the config. It raises
      TaskVecError where a key is missing or asks for something not supported.
    """

    def config_from_gguf(
        meta: Mapping[str, Any], tensors: Source, where: str, dtype: str
    ) -> DecoderConfig:
        keys = GGUFKeys(meta, family, where)
        known = gguf_sizes(keys, meta, tensors)
        known |= fields(keys, known, tensors)
        config = DecoderConfig(family=family, **known, dtype=dtype)
        gguf_always(keys, config.attention_scale or config.head_dim**-0.5, layouts)
        return config

    return config_from_gguf


def gguf_rotary(
    keys: GGUFKeys, tensors: Source, head_dim: int, base: float = 10_000.0
) -> dict[str, Any]:
    """The rotary fields of a model whose heads rotate whole; `base` where the file has none."""
    return {
        "rope_base": keys.single("rope.freq_base", base),
        "rope_dim": keys.require("rope.dimension_count", head_dim, (head_dim,)),
        "rope_scaling": gguf_rope_scaling(keys, tensors, head_dim),
    }


def gguf_attention_bias(tensors: Source) -> bool:
    """Whether the projections of attention have biases."""
    return "blk.0.attn_q.bias" in tensors.shapes()


def gguf_biases(tensors: Source) -> dict[str, bool]:
    """Whether the projections of attention and of the MLP have biases, as fields of a config."""
    return {
        "attention_bias": gguf_attention_bias(tensors),
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors.shapes(),
    }


def gguf_rotary_and_bias(
    keys: GGUFKeys, known: Mapping[str, Any], tensors: Source
) -> dict[str, Any]:
    """The fields of a family that has no others beside those of all; see `gguf_reader`."""
    return {
        **gguf_rotary(keys, tensors, known["head_dim"]),
        "attention_bias": gguf_attention_bias(tensors),
    }


def gguf_rope_scaling(keys: GGUFKeys, tensors: Source, rope_dim: int) -> RopeScaling | None:
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
