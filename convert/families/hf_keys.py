"""Keys of a Hugging Face config.json: what is read is used, what may matter and is not is refused.

Whether a key may matter is decided by what transformers reads: config_keys.py lists the keys that
it reads for every model, and a family's record those that it reads for this family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig

from .config_keys import COMMON, TRANSFORMERS
from .hf_rope import RopeKeys
from .keys import note

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
    summary_proj_to_labels summary_first_dropout summary_last_dropout
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


class HFKeys(RopeKeys):
    """A raw config.json, or an object inside it."""

    def layers_alike(self, kind: str) -> None:
        """Refuses layer_types that are not of one kind throughout."""
        kinds = self.get("layer_types", list, [], null=True)
        if any(found != kind for found in kinds):
            raise TaskVecError(
                f"{self.where}: layer_types is {str(kinds)[:80]}; allowed: {kind} throughout"
            )

    def window_layers(self, default: Sequence[bool]) -> tuple[bool, ...]:
        """Which layers have a sliding window.

        Args:
          default: the same where layer_types says nothing, one for each layer.

        Raises:
          TaskVecError: layer_types has other kinds of layers, or another number of them.
        """
        names = {"full_attention": False, "sliding_attention": True}
        kinds = self.get("layer_types", list, None, null=True)
        if kinds is None:
            return tuple(default)
        if len(kinds) != len(default) or any(kind not in names for kind in kinds):
            raise TaskVecError(
                f"{self.where}: layer_types is {str(kinds)[:80]}; allowed: one of"
                f" {', '.join(names)} for each of {len(default)} layers"
            )
        return tuple(names[kind] for kind in kinds)

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


def layer_types(config: DecoderConfig) -> list[str]:
    """What config.json calls each layer; the inverse of `HFKeys.window_layers`."""
    everywhere = (config.sliding_window is not None,) * config.num_layers
    windowed = config.window_layers or everywhere
    return ["sliding_attention" if one else "full_attention" for one in windowed]


_GPT2_NAMES = {  # transformers' common name -> that of GPT-2 and GPT-J
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def gpt2_keys(raw: Mapping[str, Any], where: str) -> HFKeys:
    """The keys of a config.json that has GPT-2's names; where it has transformers' common name for
    the same too, the common name counts.

    Raises:
      TaskVecError: a key that generation keeps in memory has a wrong type, or layers differ.
    """
    common = {_GPT2_NAMES[name]: value for name, value in raw.items() if name in _GPT2_NAMES}
    keys = HFKeys({**{k: v for k, v in raw.items() if k not in _GPT2_NAMES}, **common}, where)
    for unused in ("head_dim", "num_key_value_heads", "sliding_window"):  # of what generation keeps
        keys.get(unused, int, 0, null=True)
    keys.layers_alike("full_attention")
    return keys
