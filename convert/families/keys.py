"""Reads a foreign config key by key: what is read is used, what may matter and is not is refused.

Whether a key of a config.json may matter is decided by convert/families/config_keys.py, the table of what
transformers reads; for GGUF by the `gguf` package, which lists the keys that the format defines.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import gguf
import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import RopeScaling

from .config_keys import READ, ROPE_READ, TRANSFORMERS

_log = logging.getLogger(__name__)

# Keys of a Hugging Face config.json with which no value changes what the decoder computes for a
# whole prompt at once. transformers may read them; nothing is said where they occur.
_HARMLESS = """
    architectures auto_map model_type torch_dtype dtype transformers_version transformers.js_config
    name_or_path _name_or_path _commit_hash is_llama_config tokenizer_class
    attn_implementation _attn_implementation _attn_implementation_internal
    _attn_implementation_autoset experts_implementation _experts_implementation
    _experts_implementation_internal base_model_tp_plan base_model_pp_plan pretraining_tp
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    initializer_range initializer_factor init_std gradient_checkpointing
    attention_dropout hidden_dropout classifier_dropout attention_probs_dropout_prob
    hidden_dropout_prob resid_pdrop embd_pdrop attn_pdrop
    use_cache output_attentions _output_attentions output_hidden_states return_dict
    tie_last_hidden_states chunk_size_feed_forward
    id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
    is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    max_sequence_length summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout
    embed_dim num_heads num_channels features_only out_indices pretrained_cfg
    """
HARMLESS_KEYS = frozenset(_HARMLESS.split())
# Keys that transformers reads, and the values with which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "per_layer_config": ({},),
    "fusion_config": ({},),
    "configuration_files": ([],),
}

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


@functools.cache
def _note(where: str, keys: tuple[str, ...], reader: str) -> None:
    """Says once which keys were passed over."""
    _log.warning("%s: %s does not read %s; passed over", where, reader, ", ".join(keys))


def _shown(value: Any) -> str:
    return "null" if value is None else repr(str(value)[:80])


def _is_off(value: Any) -> bool:
    """0, false, an empty list, or a list of these: what the format writes for "not there"."""
    if isinstance(value, list):
        return all(map(_is_off, value))
    return isinstance(value, (bool, int, float)) and not value


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

    def __contains__(self, key: str) -> bool:
        """Whether the key is there, perhaps as null."""
        return key in self._raw

    def get(self, key: str, kind: type, default: Any, *, null: bool = False) -> Any:
        """The value of a key, or the default where it is absent.

        Args:
          null: whether null, too, stands for the default; transformers refuses it elsewhere.

        Raises:
          TaskVecError: the value is not of the kind.
        """
        self._read.add(key)
        value = self._raw.get(key)
        if value is None and (null or key not in self._raw):
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 1 << 53 else math.inf
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong or (kind is float and not math.isfinite(value)):
            raise TaskVecError(
                f"{self.where}: {key} is {_shown(value)}; it must be of type {kind.__name__}"
            )
        return value

    def need(self, key: str, kind: type) -> Any:
        """The value of a key that must be there."""
        if self._raw.get(key) is None:
            raise TaskVecError(f"{self.where}: {key} is missing; the file is not complete")
        return self.get(key, kind, None)

    def need_size(self, key: str) -> int:
        """A whole number above 0 that must be there."""
        return self._size(key, self.need(key, int))

    def get_size(self, key: str, default: int, *, null: bool = False) -> int:
        """A whole number above 0, or the default."""
        return self._size(key, self.get(key, int, default, null=null))

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

    def _size(self, key: str, value: int) -> int:
        if value < 1:
            raise TaskVecError(f"{self.where}: {key} is {value}; it must be above 0")
        return value

    def require(self, key: str, default: Any, allowed: Iterable[Any]) -> Any:
        """The value of a key of which only some values are supported."""
        self._read.add(key)
        value = self._raw.get(key, default)
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            raise TaskVecError(
                f"{self.where}: {key} is {_shown(value)}, which is not supported; allowed:"
                f" {', '.join(map(repr, allowed))}"
            )
        return value

    def agree(self, key: str, used: float) -> None:
        """Refuses a number that says something else than the one that is used.

        Raises:
          TaskVecError: it is another one.
        """
        if (value := self.get(key, float, used, null=True)) != used:
            raise TaskVecError(
                f"{self.where}: {key} is {value}, but {used} is what transformers computes with;"
                " remove the key, or correct it"
            )

    def single(self, key: str, default: float | None) -> float:
        """A number that GGUF stored in single precision: 9.99999975e-06 is 1e-05."""
        value = self.need(key, float) if default is None else self.get(key, float, default)
        return float(str(np.float32(value)))

    def rope(self, base_key: str, share_key: str, default_share: float, max_length: int) -> Rope:
        """The rotary settings, wherever the release of transformers kept them.

        transformers 5 moved them into `rope_parameters`; earlier releases had them at the top and
        kept only scaling in `rope_scaling`, which counts alone where both are there.

        Args:
          base_key, share_key: what the family calls them at the top.
          default_share: of the dimensions that rotate.
          max_length: in tokens; what "llama3" takes for the length of before the scaling where
            the config gives none.

        Raises:
          TaskVecError: a kind of scaling that is not supported, or a value that is not.
        """
        base = self.get(base_key, float, 10_000.0)
        share = self.get(share_key, float, default_share)
        new = self.get("rope_parameters", dict, {}, null=True)
        old = self.get("rope_scaling", dict, {}, null=True)
        name = "rope_scaling" if old else "rope_parameters"
        inner = KeyReader(old or new, f"{self.where}: {name}")
        base = inner.get("rope_theta", float, base)
        share = inner.get("partial_rotary_factor", float, share)
        if base_key != "rope_theta":  # a family with words of its own does not read the common ones
            self.agree("rope_theta", base)
            self.agree("partial_rotary_factor", share)
        kinds = ("default", "linear", "llama3")
        if "rope_type" in inner:  # it then counts, and an older "type" beside it does not
            kind = inner.require("rope_type", "default", kinds)
            inner.get("type", str, "", null=True)
        else:
            kind = inner.require("type", "default", kinds)
        scaling = None
        if kind == "linear":
            scaling = RopeScaling("linear", factor=inner.need("factor", float))
        elif kind == "llama3":
            before = inner.get_size("original_max_position_embeddings", max_length)
            scaling = RopeScaling(
                "llama3",
                factor=inner.need("factor", float),
                low_freq_factor=inner.need("low_freq_factor", float),
                high_freq_factor=inner.need("high_freq_factor", float),
                original_max_length=self.get_size("original_max_position_embeddings", before),
            )
        else:
            self.get("original_max_position_embeddings", int, 0, null=True)
        inner.finish_rope(kind)
        return Rope(base, share, scaling)

    def finish_rope(self, kind: str) -> None:
        """Notes the keys inside rope_parameters that transformers does not read for this kind.

        Raises:
          TaskVecError: settings of their own for some layers.
        """
        for key, value in self._raw.items():
            if isinstance(value, dict):
                raise TaskVecError(
                    f"{self.where}: {key} has rotary settings of its own; allowed: the same for all"
                    " layers"
                )
        unread = self._raw.keys() - self._read - ROPE_READ[""] - ROPE_READ[kind]
        if unread:
            _note(self.where, tuple(sorted(unread)), f'the rope type "{kind}" of transformers')

    def layers_alike(self, kind: str) -> None:
        """Refuses layer_types that are not of one kind throughout."""
        kinds = self.get("layer_types", list, [], null=True)
        if any(found != kind for found in kinds):
            raise TaskVecError(
                f"{self.where}: layer_types is {str(kinds)[:80]}; allowed: {kind} throughout"
            )

    def finish(self, model_type: str) -> None:
        """Refuses keys of a config.json that transformers reads and nobody here did.

        A key that transformers does not read for this `model_type` cannot change its numbers: that
        is noted, and the key passed over.

        Raises:
          TaskVecError: a key that is read there, at a value that may change the numbers.
        """
        self.require("is_causal", True, (True,))  # null, too, lets every token see every other
        rest = {
            key: value
            for key, value in self._raw.items()
            if key not in self._read and key not in HARMLESS_KEYS
        }
        refused = sorted(
            key
            for key, value in rest.items()
            if key in READ[model_type] and value is not None and value not in _NEUTRAL.get(key, ())
        )
        if "quantization_config" in refused:
            settings = rest["quantization_config"]
            method = settings.get("quant_method") if isinstance(settings, dict) else settings
            raise TaskVecError(
                f"{self.where}: its weights are quantized ({str(method)[:40]}), which is not"
                " supported in a Hugging Face directory; use the original weights, or a GGUF file"
            )
        if refused:
            raise TaskVecError(
                f"{self.where}: transformers reads the keys {refused[:12]}, this project does not"
                " compute what they ask for; remove them only where they change nothing"
            )
        if unread := tuple(sorted(rest.keys() - READ[model_type])):
            _note(self.where, unread, f"the {model_type} of transformers {TRANSFORMERS}")

    def finish_meta(self, harmless: Iterable[str]) -> None:
        """Refuses keys of Meta's params.json that nobody read and that may change the numbers."""
        unknown = sorted(self._raw.keys() - self._read - set(harmless))
        if unknown := [key for key in unknown if self._raw[key] is not None]:
            raise TaskVecError(
                f"{self.where}: this project does not compute what the keys {unknown[:12]} ask for;"
                " remove them only where they change nothing"
            )

    def finish_gguf(self) -> None:
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
            _note(self.where, unread, "the GGUF format")


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
