"""The tokenizer that the metadata of a GGUF file describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.prompting.backend import Backend
from taskvec_jax.prompting.sentencepieces import SentencePieces

from .byte_level import PRE_TOKENIZERS, add_tokens, surround
from .sentencepiece_file import Piece, PieceKind, Settings, model_of

_CONTROL = 3  # tokenizer.ggml.token_type of special tokens
_USER_DEFINED = 4
_PRE_BY_ARCHITECTURE = {"gptneox": "gpt-2"}  # its files were written before `pre` existed
_SENTENCEPIECE = {"llama": False, "t5": True}  # tokenizer.ggml.model -> whether it is unigram


def from_gguf(meta: Mapping[str, Any], where: str) -> Backend:
    """Builds the tokenizer that a GGUF file describes.

    Raises:
      TaskVecError: a tokenizer model or pre-tokenizer that is not supported, or missing parts.
    """
    model = meta.get("tokenizer.ggml.model")
    tokens, kinds = meta.get("tokenizer.ggml.tokens"), meta.get("tokenizer.ggml.token_type")
    if model != "gpt2" and model not in _SENTENCEPIECE:
        raise TaskVecError(
            f"{where}: tokenizer {str(model)[:80]!r} is not supported; allowed: 'gpt2' (byte-level"
            " BPE), 'llama' (sentencepiece, BPE), 't5' (sentencepiece, unigram)"
        )
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TaskVecError(f"{where}: its tokenizer has no tokens; fetch it again")
    if (
        not isinstance(kinds, list)
        or len(kinds) != len(tokens)
        or not all(type(kind) is int for kind in kinds)
    ):
        raise TaskVecError(f"{where}: its tokens and token types do not match; fetch it again")
    if model != "gpt2":
        return _sentencepiece(meta, tokens, kinds, where)
    pre = meta.get("tokenizer.ggml.pre")
    if pre is None:
        pre = _PRE_BY_ARCHITECTURE.get(str(meta.get("general.architecture")))
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise TaskVecError(
            f"{where}: pre-tokenizer {str(pre)[:80]!r} is not supported; allowed:"
            f" {', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    try:
        merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
        if len(set(tokens)) != len(tokens):
            raise ValueError("a token is listed twice")
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre == "llama-bpe",
        )
    except Exception as error:  # tokenizers raises bare Exception for a bad vocabulary
        raise TaskVecError(
            f"{where}: its tokenizer is damaged ({first_line(error)}); fetch it again"
        ) from None
    built = tokenizers.Tokenizer(bpe)
    if meta.get("general.architecture") == "gptneox" or pre == "qwen2":
        built.normalizer = normalizers.NFC()  # as in every tokenizer.json of GPT-NeoX and Qwen
    built.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    built.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [t for t, k in zip(tokens, kinds, strict=True) if k == kind]
        add_tokens(built, added, special=special)
    bos = _token(meta, "bos", pre == "llama-bpe", None, tokens, where)
    eos = _token(meta, "eos", False, None, tokens, where)
    around = [None if i is None else tokens[i] for i in (bos, eos)]
    surround(built, around[0], around[1], where)
    return built


def _flag(meta: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = meta.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise TaskVecError(
            f"{where}: tokenizer.ggml.{name} is {str(value)[:80]!r}; allowed: true, false"
        )
    return value


def _token(
    meta: Mapping[str, Any],
    name: str,
    added: bool,
    default: int | None,
    tokens: Sequence[str],
    where: str,
) -> int | None:
    """Id of the BOS or EOS that is put around a text; None: the file says that none is.

    Args:
      name: "bos" or "eos".
      added: whether it is put there where the file says nothing.
      default: its id where the file says nothing.
    """
    if not _flag(meta, f"add_{name}_token", added, where):
        return None
    token = meta.get(f"tokenizer.ggml.{name}_token_id", default)
    if type(token) is not int or not 0 <= token < len(tokens):
        raise TaskVecError(
            f"{where}: its {name.upper()} token is {token!r}, not one of {len(tokens)} tokens"
        )
    return token


def _bytes(meta: Mapping[str, Any], name: str, where: str) -> bytes:
    """An array of bytes, which files hold as signed or unsigned numbers; empty if it is missing."""
    value = meta.get(f"tokenizer.ggml.{name}") or []
    try:
        numbers = np.asarray(value, None if value else np.uint8)
    except (ValueError, OverflowError):  # lists of several lengths, numbers of too many bits
        numbers = np.zeros(0)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not isinstance(value, list):
        raise TaskVecError(f"{where}: its tokenizer.ggml.{name} is not an array of bytes")
    if numbers.size and not -128 <= numbers.min() <= numbers.max() <= 255:
        raise TaskVecError(f"{where}: its tokenizer.ggml.{name} holds numbers that are no bytes")
    return numbers.astype(np.int64).astype(np.uint8).tobytes()


def _sentencepiece(
    meta: Mapping[str, Any], tokens: list[str], kinds: list[int], where: str
) -> SentencePieces:
    """Pieces, scores and kinds are those of the sentencepiece model that the file was made from.

    llama.cpp's converter writes the spaces of user-defined pieces as they are in text.
    """
    scores = meta.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(tokens)
        or not all(isinstance(score, float) for score in scores)
        or not set(kinds) <= set(PieceKind)
    ):
        raise TaskVecError(f"{where}: its token scores or types are damaged; fetch it again")
    unigram = _SENTENCEPIECE[meta["tokenizer.ggml.model"]]
    pieces = [
        Piece(
            token.replace(" ", "▁") if kind == PieceKind.USER_DEFINED else token,
            score,
            PieceKind(kind),
        )
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    ]
    settings = Settings(
        unigram=unigram,
        add_dummy_prefix=_flag(meta, "add_space_prefix", True, where),
        remove_extra_whitespaces=_flag(meta, "remove_extra_whitespaces", False, where),
        charsmap=_bytes(meta, "precompiled_charsmap", where),
    )
    bos = _token(meta, "bos", not unigram, 1, tokens, where)
    eos = _token(meta, "eos", unigram, 2, tokens, where)
    try:
        model = model_of(pieces, settings)
    except (ValueError, OverflowError) as error:  # of struct and of UTF-8 too
        raise TaskVecError(
            f"{where}: its tokenizer is damaged ({first_line(error)}); fetch it again"
        ) from None
    return SentencePieces(model, bos, eos, where)
