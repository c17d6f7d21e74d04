"""Reads a foreign config key by key, and refuses what it would otherwise ignore."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from taskvec_jax.config import RopeScaling
from taskvec_jax.errors import TaskVecError

# Keys of a Hugging Face config.json that do not change what the decoder computes at inference.
_HARMLESS = """
    architectures model_type torch_dtype dtype transformers_version _name_or_path use_cache
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    initializer_range output_attentions output_hidden_states return_dict attention_dropout
    hidden_dropout classifier_dropout attention_probs_dropout_prob hidden_dropout_prob
    resid_pdrop embd_pdrop attn_pdrop gradient_checkpointing pretraining_tp
    chunk_size_feed_forward id2label label2id problem_type is_llama_config
    _attn_implementation_autoset attn_implementation transformers.js_config max_sequence_length
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder prefix finetuning_task task_specific_params tokenizer_class
    summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout
    """
HARMLESS_KEYS = frozenset(_HARMLESS.split())
_ROPE_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}


class Rope(NamedTuple):
    """The rotary settings of a Hugging Face config.

    Attributes:
      base: of the frequencies.
      share: of each head's dimensions that rotate.
      scaling: of the frequencies.
    """

    base: float
    share: float
    scaling: RopeScaling | None


class KeyReader:
    """A raw config that remembers which keys were read.

    Attributes:
      where: the file, for messages.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._raw = raw
        self._read: set[str] = set()

    def get(self, key: str, kind: type, default: Any) -> Any:
        """The value of a key, or the default where it is absent or null.

        Raises:
          TaskVecError: the value is not of the kind.
        """
        self._read.add(key)
        value = self._raw.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 1 << 53 else math.inf
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong or (kind is float and not math.isfinite(value)):
            raise TaskVecError(
                f"{self.where}: {key} is {str(value)[:80]!r}; it must be of type {kind.__name__}"
            )
        return value

    def need(self, key: str, kind: type) -> Any:
        """The value of a key that must be there."""
        value = self.get(key, kind, None)
        if value is None:
            raise TaskVecError(f"{self.where}: {key} is missing; the file is not complete")
        return value

    def need_size(self, key: str) -> int:
        """A whole number above 0 that must be there."""
        return self._size(key, self.need(key, int))

    def get_size(self, key: str, default: int) -> int:
        """A whole number above 0, or the default."""
        return self._size(key, self.get(key, int, default))

    def _size(self, key: str, value: int) -> int:
        if value < 1:
            raise TaskVecError(f"{self.where}: {key} is {value}; it must be above 0")
        return value

    def require(self, key: str, default: Any, allowed: Iterable[Any]) -> Any:
        """The value of a key of which only some values are supported."""
        self._read.add(key)
        value = self._raw.get(key)
        value = default if value is None else value
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            raise TaskVecError(
                f"{self.where}: {key} is {str(value)[:80]!r}, which is not supported; allowed:"
                f" {', '.join(map(repr, allowed))}"
            )
        return value

    def single(self, key: str, default: float | None) -> float:
        """A number that GGUF stored in single precision: 9.99999975e-06 is 1e-05."""
        value = self.need(key, float) if default is None else self.get(key, float, default)
        return float(str(np.float32(value)))

    def rope(self, base_key: str, share_key: str, default_share: float) -> Rope:
        """The rotary settings, wherever this release of transformers kept them.

        transformers 5 moved them into `rope_parameters`; earlier releases had them at the top and
        kept only scaling in `rope_scaling`.

        Args:
          base_key, share_key: what the family called them at the top.
          default_share: of the dimensions that rotate.

        Raises:
          TaskVecError: a kind of scaling that is not supported, or keys that are not known.
        """
        base = self.get(base_key, float, self.get("rope_theta", float, 10_000.0))
        share = self.get(share_key, float, self.get("partial_rotary_factor", float, default_share))
        old, new = self.get("rope_scaling", dict, {}), self.get("rope_parameters", dict, {})
        inner = KeyReader({**old, **new}, f"{self.where}: rope_parameters")
        base = inner.get("rope_theta", float, base)
        share = inner.get("partial_rotary_factor", float, share)
        kind = inner.require("rope_type", None, ("default", "linear", "llama3", None))
        legacy_kind = inner.require("type", None, ("default", "linear", "llama3", None))
        kind = kind or legacy_kind or "default"
        scaling = None
        if kind == "linear":
            scaling = RopeScaling("linear", factor=inner.need("factor", float))
        elif kind == "llama3":
            scaling = RopeScaling(
                "llama3",
                factor=inner.need("factor", float),
                low_freq_factor=inner.need("low_freq_factor", float),
                high_freq_factor=inner.need("high_freq_factor", float),
                original_max_length=inner.need_size("original_max_position_embeddings"),
            )
        inner.finish(_ROPE_KEYS if scaling is None else ())
        return Rope(base, share, scaling)

    def finish(self, harmless: Iterable[str]) -> None:
        """Refuses keys that nobody read and that are not known to be harmless."""
        unknown = sorted(
            key
            for key, value in self._raw.items()
            if key not in self._read and key not in harmless and value is not None
        )
        if unknown:
            raise TaskVecError(
                f"{self.where}: keys {unknown[:12]} are not known to this converter and might"
                " change the mathematics; remove them if they do not, or add them to the family's"
                " reader"
            )


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """The inverse of `KeyReader.rope`, as transformers 5 writes it.

    Raises:
      TaskVecError: scaling that Hugging Face has no words for.
    """
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.base}
    if rope.share != 1.0:
        values["partial_rotary_factor"] = rope.share
    if rope.scaling is None:
        return values
    values |= {"rope_type": rope.scaling.kind, "factor": rope.scaling.factor}
    if rope.scaling.kind == "divisors":
        raise TaskVecError(
            "this model came from a GGUF file that stores only the result of its rope scaling,"
            " which a Hugging Face config cannot say; export it from its original weights"
        )
    if rope.scaling.kind == "llama3":
        values |= {
            "low_freq_factor": rope.scaling.low_freq_factor,
            "high_freq_factor": rope.scaling.high_freq_factor,
            "original_max_position_embeddings": rope.scaling.original_max_length,
        }
    return values
