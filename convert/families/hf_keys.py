"""Keys of a Hugging Face config.json: what is read is used, what may matter and is not is refused.

Whether a key may matter is decided by what transformers reads: config_keys.py lists the keys that
it reads for every model, and a family's record those that it reads for this family.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import RopeScaling

from .config_keys import COMMON, ROPE_READ, TRANSFORMERS
from .keys import KeyReader, note

# Name of an activation in transformers -> `DecoderConfig.gelu`.
GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
# Keys of a Hugging Face config.json with which no value changes what the decoder computes for a
# whole prompt at once. transformers may read them; no warning is given for them.
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


class HFKeys(KeyReader):
    """A raw config.json, or an object inside it."""

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
        inner = HFKeys(old or new, f"{self.where}: {name}")
        base = inner.get("rope_theta", float, base)
        share = inner.get("partial_rotary_factor", float, share)
        if base_key != "rope_theta":  # a family with its own names does not read the common ones
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
            note(self.where, tuple(sorted(unread)), f'the rope type "{kind}" of transformers')

    def layers_alike(self, kind: str) -> None:
        """Refuses layer_types that are not of one kind throughout."""
        kinds = self.get("layer_types", list, [], null=True)
        if any(found != kind for found in kinds):
            raise TaskVecError(
                f"{self.where}: layer_types is {str(kinds)[:80]}; allowed: {kind} throughout"
            )

    def finish(self, model_type: str, own: str) -> None:
        """Refuses the keys that transformers reads and this reader did not.

        A key that transformers does not read for this `model_type` cannot change its numbers; it is
        ignored, and a warning says so.

        Args:
          model_type: of the config.json, for the warning.
          own: the keys, separated by spaces, that transformers reads for this `model_type` beside
            those it reads for every one.

        Raises:
          TaskVecError: a key that is read there, at a value that may change the numbers.
        """
        self.require("is_causal", True, (True,))  # null, too, lets every token see every other
        read = COMMON | set(own.split())
        rest = {
            key: value
            for key, value in self._raw.items()
            if key not in self._read and key not in HARMLESS_KEYS
        }
        refused = sorted(
            key
            for key, value in rest.items()
            if key in read and value is not None and value not in _NEUTRAL.get(key, ())
        )
        if refused:
            raise TaskVecError(
                f"{self.where}: transformers reads the keys {refused[:12]}, this project does not"
                " compute what they ask for; remove them only where they change nothing"
            )
        if unread := tuple(sorted(rest.keys() - read)):
            note(self.where, unread, f"the {model_type} of transformers {TRANSFORMERS}")


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """The inverse of `HFKeys.rope`, as transformers 5 writes it.

    Raises:
      TaskVecError: scaling that Hugging Face's config cannot express.
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
