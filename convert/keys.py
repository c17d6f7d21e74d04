"""Reads a foreign config key by key, and refuses what it would otherwise ignore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec_jax.errors import TaskVecError

# Keys of a Hugging Face config.json that do not change what the decoder computes at inference.
HARMLESS_KEYS = frozenset(
    """
    architectures model_type torch_dtype dtype transformers_version _name_or_path use_cache
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id initializer_range
    output_attentions output_hidden_states return_dict attention_dropout hidden_dropout
    classifier_dropout chunk_size_feed_forward id2label label2id problem_type is_llama_config
    _attn_implementation_autoset attn_implementation transformers.js_config max_sequence_length
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder prefix finetuning_task task_specific_params tokenizer_class
    """.split()
)


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
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TaskVecError(
                f"{self.where}: {key} is {value!r}; it must be of type {kind.__name__}"
            )
        return value

    def need(self, key: str, kind: type) -> Any:
        """The value of a key that must be there."""
        value = self.get(key, kind, None)
        if value is None:
            raise TaskVecError(f"{self.where}: {key} is missing; the file is not complete")
        return value

    def require(self, key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """The value of a key of which only some values are supported."""
        self._read.add(key)
        value = self._raw.get(key)
        value = default if value is None else value
        if value not in allowed:
            raise TaskVecError(
                f"{self.where}: {key} is {value!r}, which is not supported; allowed:"
                f" {', '.join(map(repr, allowed))}"
            )
        return value

    def _rope(self) -> Mapping[str, Any]:
        # transformers 5 moved the rotary settings into rope_parameters; earlier releases had
        # them at the top and kept only scaling in rope_scaling.
        self._read |= {"rope_parameters", "rope_scaling"}
        rope = {**(self._raw.get("rope_scaling") or {}), **(self._raw.get("rope_parameters") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise TaskVecError(
                f"{self.where}: rope_type is {kind!r}, which is not supported; allowed: 'default'"
            )
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"}
        if unknown := sorted(set(rope) - known):
            raise TaskVecError(f"{self.where}: rope_parameters has unknown keys {unknown}")
        return rope

    def rope_base(self, legacy_key: str) -> float:
        """The base of the rotary frequencies, wherever this release kept it."""
        legacy = self.get(legacy_key, float, self.get("rope_theta", float, 10_000.0))
        return float(self._rope().get("rope_theta", legacy))

    def rope_share(self, legacy_key: str, default: float) -> float:
        """The share of each head's dimensions that rotate."""
        legacy = self.get(legacy_key, float, self.get("partial_rotary_factor", float, default))
        return float(self._rope().get("partial_rotary_factor", legacy))

    def finish(self, harmless: frozenset[str] | set[str]) -> None:
        """Refuses keys that nobody read and that are not known to be harmless."""
        unknown = sorted(
            key
            for key, value in self._raw.items()
            if key not in self._read and key not in harmless and value is not None
        )
        if unknown:
            raise TaskVecError(
                f"{self.where}: keys {unknown} are not known to this converter and might change"
                " the mathematics; remove them if they do not, or add them to the family's reader"
            )
