"""What a family of models brings to its conversion: its names, tables of rules, config readers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from taskvec_jax.transformer.config import DecoderConfig

from .rules import Rule, Source


class Family(NamedTuple):
    """One family, in every format it is known to come in.

    Attributes:
      name: `DecoderConfig.family` of its models. The module here that holds the record has this
        name, and so has the module of its block in `taskvec_jax.transformer.blocks`.
      model_types: `model_type` of a config.json -> the keys, separated by spaces, that transformers
        reads for it beside those of every model; `python -m convert.families.read_keys MODEL_TYPE`
        prints them.
      hf: the rules for Hugging Face's names.
      ignored: matches names of tensors that carry no weights (buffers written by old releases).
      tied: (unembedding, embedding) in Hugging Face's names; a file of a tied model holds one of
        the two, or both.
      prefix: the beginning of the names of all tensors of the model but its unembedding; a file
        may leave it out.
      config_from_hf: (raw config.json, where, dtype) -> config.
      config_to_hf: config -> a config.json that transformers reads.
      renamed: name of a tensor in transformers' memory -> its name in files.
      architectures: values of `general.architecture` in GGUF files; empty if there are none.
      gguf: the rules for GGUF's names; None if there are no such files.
      config_from_gguf: (metadata, tensors, where, dtype) -> config.
    """

    name: str
    model_types: Mapping[str, str]
    hf: tuple[Rule, ...]
    ignored: re.Pattern[str]
    tied: tuple[str, str]
    prefix: str
    config_from_hf: Callable[[Mapping[str, Any], str, str], DecoderConfig]
    config_to_hf: Callable[[DecoderConfig], dict[str, Any]]
    renamed: Mapping[str, str] = MappingProxyType({})
    architectures: tuple[str, ...] = ()
    gguf: tuple[Rule, ...] | None = None
    config_from_gguf: Callable[[Mapping[str, Any], Source, str, str], DecoderConfig] | None = None
