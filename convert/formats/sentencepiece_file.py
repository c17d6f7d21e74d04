"""A sentencepiece model (tokenizer.model) made from the vocabulary that another file holds."""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple


class PieceKind(enum.IntEnum):
    """What a piece is for, as sentencepiece_model.proto counts; GGUF counts the same way."""

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


class Settings(NamedTuple):
    """How a text is cut in pieces.

    Attributes:
      unigram: the most probable segmentation; else BPE, the best merge first.
      add_dummy_prefix: a text is read as if it began with a space.
      remove_extra_whitespaces: spaces at the ends, and runs of them, are dropped.
      charsmap: the compiled normaliser; empty for none.
    """

    unigram: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes


def model_of(pieces: Sequence[Piece], settings: Settings) -> bytes:
    """The tokenizer.model with these pieces, in order of id: a ModelProto of protobuf.

    Raises:
      ValueError: a score is not a finite number, or a piece is not text.
    """
    out = bytearray()
    for piece in pieces:
        if not math.isfinite(piece.score):
            raise ValueError(f"the score of {piece.text[:80]!r} is {piece.score}")
        text = _bytes(1, piece.text.encode("utf-8"))
        out += _bytes(1, text + b"\x15" + struct.pack("<f", piece.score) + _int(3, piece.kind))
    with_bytes = any(piece.kind == PieceKind.BYTE for piece in pieces)
    out += _bytes(2, _int(3, 1 if settings.unigram else 2) + _int(35, with_bytes))  # TrainerSpec
    normalizer = _bytes(2, settings.charsmap)
    normalizer += _int(3, settings.add_dummy_prefix) + _int(4, settings.remove_extra_whitespaces)
    return bytes(out + _bytes(3, normalizer))  # NormalizerSpec


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _int(number: int, value: int) -> bytes:
    """A field of wire type 0."""
    return _varint(number << 3) + _varint(int(value))


def _bytes(number: int, value: bytes) -> bytes:
    """A field of wire type 2: bytes, text or another message."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value
