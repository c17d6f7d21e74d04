"""Text -> (tokens [B, T], last [B]); the one place that decides BOS, padding and the arrow.

BOS is put where the model's own tokenizer puts it by default: its tokenizer.json says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from taskvec_jax.errors import TaskVecError
from taskvec_jax.wording import short_repr

ARROW = "->"
PAD = 0  # any id does: right padding is invisible under the causal mask


class Tokenizer:
    """A model's tokenizer.

    Attributes:
      sha256: hash of the tokenizer's definition.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.sha256 = hashlib.sha256(backend.to_str().encode()).hexdigest()

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a tokenizer.json.

        Raises:
          TaskVecError: the file is missing or not a tokenizer.
        """
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise TaskVecError(f"{path}: not a tokenizer.json ({error})") from None

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json that `from_file` reads."""
        self._backend.save(str(path))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; at most V of the decoder."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the model's own BOS.

        Raises:
          TaskVecError: not a text.
        """
        _check_texts([text])
        return self._backend.encode(text).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, with the model's own BOS.

        Raises:
          TaskVecError: not a list of texts; a single text, for example.
        """
        _check_texts(texts)
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out.

        Raises:
          TaskVecError: not a list of ids; a single id, for example.
        """
        _check_row(ids)
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def decode_answer(self, token: int) -> str:
        """One predicted token as an answer: decoded, cut at a newline, stripped (paper's code)."""
        return self.decode([token]).split("\n")[0].strip()

    def pieces(self, text: str) -> list[tuple[int, str, tuple[int, int]]]:
        """(id, token, (start, end) characters of the text) of every token, to show a prompt."""
        encoding = self._backend.encode(text)
        return list(zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True))

    def ends_in_arrow(self, text: str) -> bool:
        """Whether the last token holds the end of the arrow and nothing from before it.

        Theta is read and written at that token: one that straddles the arrow and the query would
        carry the query too.
        """
        start, end = self.pieces(text)[-1][2]
        return text.endswith(ARROW) and end == len(text) and start >= len(text) - len(ARROW)

    def continuation(self, prompt: str, answer: str) -> list[int]:
        """The tokens that `answer` adds after `prompt`; empty if the prompt's own tokens change."""
        before, after = self.encode_all([prompt, prompt + answer])
        return after[len(before) :] if after[: len(before)] == before else []

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Right-pads token rows.

        Returns:
          tokens int32 [B, T] and last int32 [B], the index of each row's last token.

        Raises:
          TaskVecError: no rows, an empty one, or something that is no row of ids; a flat list of
            ids, for example.
        """
        if not _is_row(rows):
            raise TaskVecError(
                f"rows is {short_repr(rows)}; it must be a list of rows of token ids"
            )
        for row in rows:
            _check_row(row)
        if not len(rows) or not all(len(row) for row in rows):
            raise TaskVecError("there is no text to tokenize; every prompt needs a token")
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.full((len(rows), lengths.max()), PAD, np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths - 1


def _is_row(value: Any) -> bool:
    """Whether it is a list, a tuple or an array with one axis or more."""
    return isinstance(value, list | tuple | range) or (
        hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape) > 0
    )


def _check_texts(texts: Any) -> None:
    """Refuses what is no list of texts.

    Raises:
      TaskVecError: it shows what was given.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TaskVecError(
            f"texts is {short_repr(texts)}; it must be a list of strings, so one text is ['a->']"
        )
    if isinstance(texts, Sequence) and not all(isinstance(text, str) for text in texts):
        odd = next(text for text in texts if not isinstance(text, str))
        raise TaskVecError(f"{short_repr(odd)} is no text; each must be a string")


def _check_row(row: Any) -> None:
    """Refuses what is no row of token ids.

    Raises:
      TaskVecError: it shows what was given.
    """
    if not _is_row(row):
        raise TaskVecError(
            f"{short_repr(row)} is no row of token ids; a row is a list, so one text is [[1, 2, 3]]"
            " for pad and [1, 2, 3] for decode"
        )
    for token in row:
        if not isinstance(token, int | np.integer) or token < 0:
            raise TaskVecError(f"{short_repr(token)} is no token id; ids are whole numbers from 0")
