"""Texts of any number and length, in batches of few shapes, so that few programs are compiled.

Shapes: N texts, B rows of a batch, T tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from taskvec_jax.distributed.sharding import put_rows, rows_for
from taskvec_jax.prompting.tokenizer import PAD
from taskvec_jax.transformer.checks import check_texts
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.edits import Edit, canonical, take_rows
from taskvec_jax.transformer.writes import check_edits

MOST_ROWS = 32  # of a batch, before `data` of a mesh is given whole rows
SHORT_TEXT, TOKENS_STEP, LONG_TEXT, LONG_TEXT_STEP = 8, 16, 128, 64


class Batch(NamedTuple):
    """Some of the texts, laid out for a compiled program.

    Attributes:
      numbers: which texts these are, int [n]; further rows, up to B, repeat the last of them.
      tokens: int32 [B, T], padded on the right; on the devices of a mesh if there is one.
      lengths: int32 [B], how many tokens of each row are its text.
      edits: those of these rows.
      filled: text number of each row, int [B].
    """

    numbers: np.ndarray
    tokens: Any
    lengths: Any
    edits: tuple[Edit, ...]
    filled: np.ndarray


def batches(
    config: DecoderConfig, texts: Sequence[Sequence[int]], edits: Any, mesh: Mesh | None
) -> Iterator[Batch]:
    """The texts, those of similar length together.

    The number of rows is rounded up to a power of 2, the number of tokens to 8, to a
    multiple of 16, or of 64 beyond 128 tokens.

    Args:
      texts: token ids of N texts.
      edits: of all N, in any form that `edits.as_edits` takes.

    Raises:
      TaskVecError: texts that the model cannot read, or edits that do not fit it and them.
    """
    check_texts(config, texts)
    sizes = np.array([len(text) for text in texts], np.int32)
    edits = canonical(edits)
    check_edits(config, edits, len(texts), int(sizes.max()), sizes)
    order = np.argsort(sizes, kind="stable")
    rows = rows_for(mesh, min(MOST_ROWS, 1 << (len(texts) - 1).bit_length()))
    for start in range(0, len(texts), rows):
        numbers = order[start : start + rows]
        filled = np.append(numbers, np.repeat(numbers[-1], rows - len(numbers)))
        length = rounded_length(config, int(sizes[numbers].max()))
        tokens = np.full((rows, length), PAD, np.int32)
        for row, number in zip(tokens, filled.tolist(), strict=True):
            row[: sizes[number]] = texts[number]
        placed, lengths = put_rows(mesh, (tokens, sizes[filled]))
        yield Batch(numbers, placed, lengths, _for_rows(edits, filled, len(texts), length), filled)


def rounded_length(config: DecoderConfig, tokens: int) -> int:
    """The tokens a row is padded to."""
    if tokens <= SHORT_TEXT:
        return min(SHORT_TEXT, config.max_length)
    step = TOKENS_STEP if tokens <= LONG_TEXT else LONG_TEXT_STEP
    return min(-(-tokens // step) * step, config.max_length)


def _for_rows(
    edits: tuple[Edit, ...], filled: np.ndarray, count: int, length: int
) -> tuple[Edit, ...]:
    """The edits of a batch; vectors for all T tokens of the longest text are cut or padded to the
    T of the batch."""

    def fitted(edit: Edit) -> Edit:
        if edit.position is not None or np.ndim(edit.vector) != 3:
            return edit
        vector = np.asarray(edit.vector)[:, :length]
        return dataclasses.replace(
            edit, vector=np.pad(vector, ((0, 0), (0, length - vector.shape[1]), (0, 0)))
        )

    return tuple(map(fitted, take_rows(edits, filled, count)))


def resized(part: np.ndarray, positions: int | None, width: int | None) -> np.ndarray:
    """A text's part, cut or padded to so many positions (with NaN) and attended tokens (0)."""
    for axis, size, fill in ((0, positions, np.nan), (part.ndim - 1, width, 0.0)):
        if size is not None:
            part = np.take(part, range(min(size, part.shape[axis])), axis=axis)
            pad = [(0, 0)] * part.ndim
            pad[axis] = (0, size - part.shape[axis])
            part = np.pad(part, pad, constant_values=fill)
    return part
