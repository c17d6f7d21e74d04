# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""A model in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from taskvec_jax.models.verbs import Verbs
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params


@dataclasses.dataclass(frozen=True, repr=False)
class Model(Verbs):
    """A model in memory; what one does with it (`read`, `generate` ...) stands in verbs.py.

    Attributes:
      name: as it was asked for.
      decoder: `decoder.apply(params, tokens, override)` gives logits.
      params: {"params": ...}, what `apply` takes first.
      tokenizer: the model's own.
      config: shapes and dtype; the same as `decoder.config`.
      weights_sha256: hash over all parameters in the dtype they were converted to.
      mesh: what parameters and prompts are split over; None: all is on one device.
      revision: of the hub, as it was asked for; None: the default one, or not of the hub.
      source: where the weights come from, as far as it is known: "source", "revision", "commit".
    """

    name: str
    decoder: Decoder
    params: Params
    tokenizer: Tokenizer
    config: DecoderConfig
    weights_sha256: str
    mesh: Mesh | None = None
    revision: str | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
