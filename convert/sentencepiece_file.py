"""The sentencepiece format (tokenizer.model): as much of its protobuf as a tokenizer needs.

sentencepiece itself is no dependency: it would serve this one file only.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from taskvec_jax.errors import TaskVecError

MAX_BYTES = 64 << 20


class PieceKind(enum.IntEnum):
    """What a piece is for; GGUF counts the same way."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One token."""

    text: str
    score: float
    kind: PieceKind


class SentencePiece(NamedTuple):
    """A sentencepiece model.

    Attributes:
      pieces: the vocabulary, in order of id.
      unigram: the most probable segmentation; else BPE, the best merge first.
      add_dummy_prefix: a text is read as if it began with a space.
      remove_extra_whitespaces: spaces at the ends, and runs of them, are dropped.
      charsmap: the compiled normaliser; empty for none.
      bos: id of the token that begins a text.
    """

    pieces: list[Piece]
    unigram: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes
    bos: int


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one message; groups and unknown wire types are refused."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"a length of {size} bytes where {len(data) - at} are left")
        yield key >> 3, data[at : at + size]
        at += size


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    text, score = fields[1], fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("a piece without text")
    (number,) = struct.unpack("<f", score)
    if not math.isfinite(number):
        raise ValueError(f"a score of {number}")
    return Piece(text.decode("utf-8"), number, PieceKind(fields.get(3, 1)))


def read_sentencepiece(path: Path) -> SentencePiece:
    """Reads a tokenizer.model.

    Raises:
      TaskVecError: it is not a sentencepiece model of kind BPE or unigram.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes; allowed: {MAX_BYTES}")
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for number, value in _fields(path.read_bytes()):
            if number > 5 or not isinstance(value, bytes):
                raise ValueError(f"field {number}")
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        if not pieces:
            raise ValueError("no pieces")
        kind = trainer.get(3, 1)
        if kind not in (1, 2):
            raise ValueError(f"kind {kind!r}; allowed: 1 (unigram), 2 (BPE)")
        charsmap, bos = normalizer.get(2, b""), trainer.get(41, 1)
        if not isinstance(charsmap, bytes) or not isinstance(bos, int):
            raise ValueError("its settings")
        return SentencePiece(
            pieces=pieces,
            unigram=kind == 1,
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
            charsmap=charsmap,
            bos=bos,
        )
    except (OSError, ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise TaskVecError(
            f"{path}: not a whole sentencepiece model ({error}); fetch it again, or put a"
            " tokenizer.json beside it"
        ) from None
