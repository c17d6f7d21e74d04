"""Rows of token ids on the host: texts that begin alike become one tree (drawn in programs.py).

Shapes: B rows, T tokens of a row, R branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.prompting.tokenizer import PAD
from taskvec_jax.transformer.context import PADDING, TRUNK


class Rows(NamedTuple):
    """Token rows on the host.

    Attributes:
      tokens, positions, branches: int32 [B, T]; see `context.Layout`.
      ends: int32 [B, R], index in the row of each text's last token.
    """

    tokens: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    ends: np.ndarray


def shared_prefix(texts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all texts share, leaving every text at least its last token.

    Token by token, so that texts which tokenise differently once a query is attached are right.
    """
    limit = min(map(len, texts)) - 1
    for i in range(limit):
        if any(text[i] != texts[0][i] for text in texts):
            return i
    return limit


def tree_length(texts: Sequence[Sequence[int]]) -> int:
    """Tokens of a row that holds these texts."""
    shared = shared_prefix(texts)
    within = [begins(texts, i) for i in range(len(texts))]
    return shared + sum(
        len(text) - shared for text, inside in zip(texts, within, strict=True) if not inside
    )


def begins(texts: Sequence[Sequence[int]], i: int) -> bool:
    """Whether text i begins the text after it, in whose branch it is then read."""
    return i + 1 < len(texts) and list(texts[i + 1][: len(texts[i])]) == list(texts[i])


def lay_out_rows(rows: Sequence[Sequence[Sequence[int]]], length: int, reads: int) -> Rows:
    """Lays texts out as trees.

    Args:
      rows: for each row, the token ids of 1 to `reads` texts; what they share is the trunk. A text
        that begins the one after it has no branch of its own.
      length: T, at least the longest tree.
      reads: R; a row of fewer texts repeats its last one.
    """
    shape = (len(rows), length)
    tokens = np.full(shape, PAD, np.int32)
    positions = np.zeros(shape, np.int32)
    branches = np.full(shape, PADDING, np.int32)
    ends = np.zeros((len(rows), reads), np.int32)
    for i, texts in enumerate(rows):
        shared = shared_prefix(texts)
        tokens[i, :shared] = texts[0][:shared]
        positions[i, :shared] = np.arange(shared)
        branches[i, :shared] = TRUNK
        start = shared
        for branch, text in enumerate(texts, start=1):
            stop = start + len(text) - shared
            ends[i, branch - 1 :] = stop - 1
            if begins(texts, branch - 1):
                continue
            tokens[i, start:stop] = text[shared:]
            positions[i, start:stop] = np.arange(shared, len(text))
            branches[i, start:stop] = branch
            start = stop
    return Rows(tokens, positions, branches, ends)


def pad_rows(texts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [B, T], right-padded to `length`, and the index of each last token, [B]."""
    tokens = np.full((len(texts), length), PAD, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return tokens, np.array([len(text) - 1 for text in texts], np.int32)
