"""Refuses what is no list of texts, or no row of token ids, before a library fails on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError, short_repr


def is_row(value: Any) -> bool:
    """Whether it is a list, a tuple or an array with one axis or more."""
    return isinstance(value, list | tuple | range) or (
        hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape) > 0
    )


def check_texts(texts: Any) -> list[str]:
    """The texts as a list; refuses what is no iterable of strings.

    Raises:
      TaskVecError: something else was given; the message shows it.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TaskVecError(
            f"texts is {short_repr(texts)}; it must be a list of strings, so one text is ['a->']"
        )
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TaskVecError(f"{short_repr(text)} is no text; each must be a string")
    return texts


def check_row(row: Any) -> None:
    """Refuses what is no row of token ids.

    Raises:
      TaskVecError: something else was given; the message shows it.
    """
    if not is_row(row):
        raise TaskVecError(
            f"{short_repr(row)} is no row of token ids; a row is a list, so one text is [[1, 2, 3]]"
            " for pad and [1, 2, 3] for decode"
        )
    for token in row:
        if not isinstance(token, int | np.integer) or token < 0:
            raise TaskVecError(f"{short_repr(token)} is no token id; ids are whole numbers from 0")
