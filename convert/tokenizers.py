"""Tokenizers in: whatever a model came with -> one tokenizer.json, the model's own BOS kept.

The only module that touches `transformers`, and only for Hugging Face directories.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from convert.sentencepiece_file import Piece, PieceKind, SentencePiece, read_sentencepiece
from convert.tiktoken_file import is_tiktoken, read_tiktoken
from taskvec_jax.errors import TaskVecError, first_line

_LLAMA_3_SPECIALS = 256
_LLAMA_3_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}  # the others are never in a prompt
_CONTROL = 3  # tokenizer.ggml.token_type of special tokens
_USER_DEFINED = 4


def from_directory(directory: Path) -> tokenizers.Tokenizer:
    """The fast tokenizer of a Hugging Face directory, or one built from its tokenizer.model.

    Raises:
      TaskVecError: there is none, or transformers cannot read it.
    """
    if (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file():
        return from_sentencepiece(directory / "tokenizer.model", _adds_bos(directory))
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not here
    from transformers import AutoTokenizer  # slow to import, needed by this source only

    try:
        loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a missing or broken file
        raise TaskVecError(
            f"{directory}: no tokenizer can be read from it ({type(error).__name__}:"
            f" {first_line(error)}); put the model's tokenizer.json beside the weights"
        ) from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise TaskVecError(
            f"{directory}: its tokenizer has no fast form; put a tokenizer.json beside the weights"
        )
    return backend


def from_meta_directory(directory: Path) -> tokenizers.Tokenizer:
    """The tokenizer.model of one of Meta's own releases: in the directory, or one above it.

    That of LLaMA 1 and 2 is sentencepiece's, that of Llama 3 tiktoken's.

    Raises:
      TaskVecError: there is none.
    """
    for place in (directory, directory.absolute().parent):
        if (place / "tokenizer.json").is_file():
            return from_directory(place)
        path = place / "tokenizer.model"
        if path.is_file():
            return (
                from_tiktoken(path) if is_tiktoken(path) else from_sentencepiece(path, add_bos=True)
            )
    raise TaskVecError(
        f"{directory}: no tokenizer.model here or in the directory above; put Meta's there"
    )


def _adds_bos(directory: Path) -> bool:
    """What tokenizer_config.json says; LLaMA's tokenizer adds BOS where it says nothing."""
    from convert.sources import read_json

    path = directory / "tokenizer_config.json"
    value = read_json(path).get("add_bos_token") if path.is_file() else None
    return value if isinstance(value, bool) else True


def from_sentencepiece(path: Path, add_bos: bool) -> tokenizers.Tokenizer:
    """Builds the tokenizer that a bare sentencepiece model describes.

    Raises:
      TaskVecError: the file is not a sentencepiece model of kind BPE or unigram.
    """
    return _from_pieces(read_sentencepiece(path), add_bos, str(path))


def from_tiktoken(path: Path) -> tokenizers.Tokenizer:
    """Builds Llama 3's tokenizer from the file that Meta released.

    Its 256 special tokens are not in the file: they follow the others (llama3/tokenizer.py of
    Meta's release), and the first begins every text.

    Raises:
      TaskVecError: the file is damaged.
    """
    ranked = read_tiktoken(path)
    letters = _byte_letters()
    texts = ["".join(letters[byte] for byte in token) for token in ranked]
    pieces = [Piece(text, -rank, PieceKind.NORMAL) for rank, text in enumerate(texts)]
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab={text: rank for rank, text in enumerate(texts)},
            merges=_merges(pieces),
            ignore_merges=True,
        )
    )
    built.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS["llama-bpe"])
    built.decoder = decoders.ByteLevel()
    special = [
        _LLAMA_3_SPECIAL.get(i, f"<|reserved_special_token_{i}|>") for i in range(_LLAMA_3_SPECIALS)
    ]
    _add_tokens(built, special, special=True)
    _add_bos(built, texts + special, len(texts), str(path))
    return built


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself if it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _from_pieces(model: SentencePiece, add_bos: bool, where: str) -> tokenizers.Tokenizer:
    pieces = model.pieces
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    unknown = [i for i, piece in enumerate(pieces) if piece.kind == PieceKind.UNKNOWN]
    if len(vocab) != len(pieces) or len(unknown) != 1:
        raise TaskVecError(
            f"{where}: its tokenizer is damaged ({len(pieces)} pieces, {len(vocab)} of them"
            f" different, {len(unknown)} for the unknown); fetch it again"
        )
    bytes_too = any(piece.kind == PieceKind.BYTE for piece in pieces)
    try:
        if model.unigram:
            backend = tokenizers.Tokenizer(
                models.Unigram([(p.text, p.score) for p in pieces], unknown[0], bytes_too)
            )
        else:
            backend = tokenizers.Tokenizer(
                models.BPE(
                    vocab=vocab,
                    merges=_merges(pieces),
                    unk_token=pieces[unknown[0]].text,
                    fuse_unk=True,
                    byte_fallback=bytes_too,
                )
            )
        steps: list[Any] = []
        if model.charsmap:
            steps.append(normalizers.Precompiled(model.charsmap))
    except Exception as error:  # tokenizers raises bare Exception for a bad vocabulary
        raise TaskVecError(f"{where}: its tokenizer is damaged ({error}); fetch it again") from None
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    steps.append(normalizers.Replace(" ", "▁"))
    backend.normalizer = normalizers.Sequence(steps)
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        ends.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(ends)
    special = (PieceKind.CONTROL, PieceKind.UNKNOWN)
    _add_tokens(backend, [p.text for p in pieces if p.kind in special], special=True)
    user = [p.text for p in pieces if p.kind == PieceKind.USER_DEFINED]
    _add_tokens(backend, user, special=False)
    if add_bos:
        _add_bos(backend, [piece.text for piece in pieces], model.bos, where)
    return backend


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Merge rules in the order in which sentencepiece would apply them.

    Sentencepiece has no list of merges: it joins the two neighbours whose union is the piece of
    the highest score. So every way to cut a piece in two pieces is a merge, ranked by its score.
    """
    rank = {
        p.text: i
        for i, p in enumerate(pieces)
        if p.kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)
    }
    found: list[tuple[float, int, int, str, str]] = []
    for text, i in rank.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in rank and right in rank:
                found.append((-pieces[i].score, rank[left], rank[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(backend: tokenizers.Tokenizer, texts: Sequence[str], *, special: bool) -> None:
    backend.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])


def _add_bos(backend: tokenizers.Tokenizer, tokens: Sequence[str], bos: Any, where: str) -> None:
    if type(bos) is not int or not 0 <= bos < len(tokens):
        raise TaskVecError(f"{where}: its BOS token is {bos!r}, not one of {len(tokens)} tokens")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{tokens[bos]}:0 $A:0",
        pair=f"{tokens[bos]}:0 $A:0 {tokens[bos]}:1 $B:1",
        special_tokens=[(tokens[bos], bos)],
    )


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


_LLAMA_3 = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> what splits text before byte-level BPE.
_PRE_TOKENIZERS: dict[str, list[Any]] = {
    # Every digit on its own, then GPT-2's pattern.
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _byte_level()],
    "gpt-2": [_byte_level()],
    "olmo": [_byte_level()],  # GPT-NeoX's vocabulary goes by this name too
    "llama-bpe": [
        pre_tokenizers.Split(_LLAMA_3, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
_PRE_BY_ARCHITECTURE = {"gptneox": "gpt-2"}  # its files were written before `pre` existed


def from_gguf(meta: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Raises:
      TaskVecError: a tokenizer model or pre-tokenizer that is not supported, or missing parts.
    """
    model = meta.get("tokenizer.ggml.model")
    tokens, kinds = meta.get("tokenizer.ggml.tokens"), meta.get("tokenizer.ggml.token_type")
    if model not in ("gpt2", "llama"):
        raise TaskVecError(
            f"{where}: tokenizer {str(model)[:80]!r} is not supported; allowed: 'gpt2' (byte-level"
            " BPE), 'llama' (sentencepiece)"
        )
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TaskVecError(f"{where}: its tokenizer has no tokens; fetch it again")
    if (
        not isinstance(kinds, list)
        or len(kinds) != len(tokens)
        or not all(type(kind) is int for kind in kinds)
    ):
        raise TaskVecError(f"{where}: its tokens and token types do not match; fetch it again")
    if model == "llama":
        return _sentencepiece_from_gguf(meta, tokens, kinds, where)
    pre = meta.get("tokenizer.ggml.pre")
    if pre is None:
        pre = _PRE_BY_ARCHITECTURE.get(str(meta.get("general.architecture")))
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        raise TaskVecError(
            f"{where}: pre-tokenizer {str(pre)[:80]!r} is not supported; allowed:"
            f" {', '.join(map(repr, _PRE_TOKENIZERS))}"
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
    if meta.get("general.architecture") == "gptneox":
        built.normalizer = normalizers.NFC()  # as in every tokenizer.json of GPT-NeoX
    built.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre])
    built.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [t for t, k in zip(tokens, kinds, strict=True) if k == kind]
        _add_tokens(built, added, special=special)
    if meta.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        _add_bos(built, tokens, meta.get("tokenizer.ggml.bos_token_id"), where)
    return built


def _sentencepiece_from_gguf(
    meta: Mapping[str, Any], tokens: list[str], kinds: list[int], where: str
) -> tokenizers.Tokenizer:
    scores = meta.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(tokens)
        or not all(isinstance(score, float) for score in scores)
        or not set(kinds) <= set(PieceKind)
    ):
        raise TaskVecError(f"{where}: its token scores or types are damaged; fetch it again")
    pieces = [
        Piece(token, score, PieceKind(kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    ]
    model = SentencePiece(
        pieces=pieces,
        unigram=False,
        add_dummy_prefix=bool(meta.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(meta.get("tokenizer.ggml.remove_extra_whitespaces", False)),
        charsmap=b"",
        bos=meta.get("tokenizer.ggml.bos_token_id", 1),
    )
    return _from_pieces(model, bool(meta.get("tokenizer.ggml.add_bos_token", True)), where)
