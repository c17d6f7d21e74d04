"""What a family of models brings to its conversion: tables of rules, and readers of configs."""

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
      hf: the rules for Hugging Face's names.
      ignored: names of tensors that carry no weights (buffers written by old releases).
      tied: (unembedding, embedding) in Hugging Face's names: a tied model may store both.
      prefix: what begins the names of all tensors of the model without its unembedding; a file
        may leave it out.
      renamed: what transformers calls a tensor in memory -> what it calls it in files.
      config_from_hf: (raw config.json, where, dtype) -> config.
      config_to_hf: config -> a config.json that transformers reads.
      gguf: the rules for GGUF's names; None where there is no such architecture.
      config_from_gguf: (metadata, tensors, where, dtype) -> config.
    """

    hf: tuple[Rule, ...]
    ignored: re.Pattern[str]
    tied: tuple[str, str]
    prefix: str
    config_from_hf: Callable[[Mapping[str, Any], str, str], DecoderConfig]
    config_to_hf: Callable[[DecoderConfig], dict[str, Any]]
    renamed: Mapping[str, str] = MappingProxyType({})
    gguf: tuple[Rule, ...] | None = None
    config_from_gguf: Callable[[Mapping[str, Any], Source, str, str], DecoderConfig] | None = None
