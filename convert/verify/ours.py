"""What this project computes on the texts of the certificate."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from taskvec_jax.models.model import Model
from taskvec_jax.transformer.decoder import Decoder

from .certificate import Run

TEXTS = (
    "example:France->Paris\nexample:Italy->Rome\nexample:Japan->",
    "The quick brown fox jumps over the lazy dog, and then",
    "example:go->going\nexample:see->seeing\nexample:make->",
)
MAX_TOKENS = 32


def texts_to_tokens(model: Model) -> list[list[int]]:
    """The texts as this model reads them, cut where it must be; ids, if it cannot read them."""
    limit = min(MAX_TOKENS, model.config.max_length)
    rows = [row[:limit] for row in model.tokenizer.encode_all(TEXTS)]
    return [row or [1] for row in rows]


def run_ours(model: Model, dtype: str, rows: Sequence[Sequence[int]]) -> Run:
    """Runs this project's decoder in a dtype.

    Each position of a text is read as the last position of a row [T]; all rows are the same text.
    """
    decoder = Decoder(dataclasses.replace(model.config, dtype=dtype))
    wide = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
    with wide:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)

        @jax.jit
        def read(params: Any, tokens: jax.Array, places: jax.Array) -> Any:
            residuals, logits = decoder.apply(params, tokens, places, method="read")
            embedded = decoder.apply(params, tokens[0], places, method="embed")
            return embedded, residuals, logits

        run = Run([], [])
        for row in rows:
            tokens = np.tile(np.array(row, np.int32), (len(row), 1))
            embedded, residuals, logits = read(params, tokens, np.arange(len(row), dtype=np.int32))
            sites = np.concatenate([np.asarray(embedded)[None], np.asarray(residuals)])
            run.sites.append(sites.astype(np.float64))
            run.logits.append(np.asarray(logits, np.float64))
    return run
