"""Tokenizers in: whatever a model came with -> one tokenizer, the model's own BOS kept.

A tokenizer.json is used as it stands, a sentencepiece model through sentencepiece itself. The only
module that touches `transformers`, and only where a Hugging Face directory has neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.prompting.sentencepieces import (
    CONFIG,
    MODEL,
    SentencePieces,
    flag,
    read_sentencepieces,
    read_settings,
    token_text,
)
from taskvec_jax.prompting.tokenizer import FILE, Backend, read_tokenizer_json

from .formats.sentencepiece_file import Piece, PieceKind, Settings, model_of
from .formats.tiktoken_file import is_tiktoken, read_tiktoken

_log = logging.getLogger(__name__)
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
MAX_PADDING = 0.1  # share of rows of an embedding without a token; real models stay below 0.02
ALWAYS_ALLOWED_PADDING = 1000  # rows
_PROBES = (  # texts in which readers of a sentencepiece model are known to differ
    "example:Apple->Red\nexample:Lime->Green\nexample:Corn->",
    "-> ->->\n\n->",
    "  two  spaces\tand a tab \n ends ",
    "Ångström café, ﬁne ５ 東京 🙂 e\u0301",
)


def from_directory(directory: Path) -> Backend:
    """The tokenizer of a Hugging Face directory.

    tokenizer.json as it stands; where there is none, tokenizer.model as sentencepiece (or tiktoken)
    reads it; where there is neither, what transformers makes of vocab.json and merges.txt.

    Raises:
      TaskVecError: there is none, or it is damaged.
    """
    if (directory / FILE).is_file():
        return _from_tokenizer_json(directory / FILE)
    if (directory / MODEL).is_file():
        return _from_tokenizer_model(directory / MODEL)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _from_transformers(directory)
    raise TaskVecError(
        f"{directory}: no tokenizer here; put the model's tokenizer.json beside the weights (or its"
        " tokenizer.model, or vocab.json and merges.txt)"
    )


def _from_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json as it stands.

    tokenizer_config.json is asked for one thing that the file may leave open: a file that has no
    post-processor, or one of byte-level offsets alone, puts nothing around a text, and
    `add_bos_token` or `add_eos_token` may do so.
    """
    backend = read_tokenizer_json(path)
    if backend.post_processor is not None and not isinstance(
        backend.post_processor, processors.ByteLevel
    ):
        return backend
    config = path.with_name(CONFIG)
    settings = read_settings(config)
    added: dict[str, str | None] = {}
    for name in ("bos", "eos"):
        text = token_text(settings.get(f"{name}_token"))
        added[name] = text if flag(settings, f"add_{name}_token", config) else None
    _surround(backend, added["bos"], added["eos"], str(config))
    return backend


def _from_tokenizer_model(path: Path) -> Backend:
    if is_tiktoken(path):
        return from_tiktoken(path)
    built = read_sentencepieces(path)
    _tell_differences(path, built)
    return built


def _tell_differences(path: Path, ours: SentencePieces) -> None:
    """Says so if transformers reads other token ids from the same sentencepiece model."""
    try:
        with _quiet_transformers() as transformers:
            loaded = transformers.AutoTokenizer.from_pretrained(path.parent, local_files_only=True)
            theirs = {text: list(loaded(text)["input_ids"]) for text in _PROBES}
            version = transformers.__version__
    except Exception:  # it raises many kinds for what it cannot read: nothing to compare with
        return
    for text, ids in theirs.items():
        own = ours.encode(text).ids
        if own != ids:
            at = next((i for i, (a, b) in enumerate(zip(own, ids, strict=False)) if a != b), -1)
            _log.warning(
                "%s: transformers %s gives other token ids than sentencepiece, whose ids are used:"
                " %r is %d tokens there and %d here, the first difference at token %d",
                path,
                version,
                text,
                len(ids),
                len(own),
                at if at >= 0 else min(len(own), len(ids)),
            )
            return


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not here
    import transformers  # slow to import, needed by few sources

    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield transformers
    finally:
        transformers.utils.logging.set_verbosity(level)


def _from_transformers(directory: Path) -> tokenizers.Tokenizer:
    """vocab.json and merges.txt: how text is split before them is the class's affair."""
    try:
        with _quiet_transformers() as transformers:
            loaded = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a missing or broken file
        raise TaskVecError(
            f"{directory}: no tokenizer can be read from it ({type(error).__name__}:"
            f" {first_line(error)}); put the model's tokenizer.json beside the weights"
        ) from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer) or not backend.encode("example:a->").ids:
        raise TaskVecError(
            f"{directory}: transformers makes no tokenizer of its vocab.json and merges.txt; put a"
            " tokenizer.json beside the weights"
        )
    return backend


def from_meta_directory(directory: Path) -> Backend:
    """The tokenizer.model of one of Meta's own releases: in the directory, or one above it.

    That of LLaMA 1 and 2 is sentencepiece's, that of Llama 3 tiktoken's.

    Raises:
      TaskVecError: there is none.
    """
    for place in (directory, directory.absolute().parent):
        if (place / FILE).is_file():
            return _from_tokenizer_json(place / FILE)
        path = place / MODEL
        if path.is_file():
            return from_tiktoken(path) if is_tiktoken(path) else from_sentencepiece(path)
    raise TaskVecError(
        f"{directory}: no tokenizer.model here or in the directory above; put Meta's there"
    )


def from_sentencepiece(path: Path, add_bos: bool = True) -> SentencePieces:
    """The tokenizer that a bare sentencepiece model describes; see `read_sentencepieces`.

    Raises:
      TaskVecError: the file is not a sentencepiece model.
    """
    return read_sentencepieces(path, add_bos)


def check_vocabulary(tokenizer: Backend, num_rows: int, where: str) -> None:
    """A tokenizer and an embedding that belong together.

    A token that stands in the vocabulary's list of added tokens alone, as one for padding often
    does, may be beyond the embedding: a text that holds it is refused when it comes.

    Args:
      num_rows: rows of the embedding.

    Raises:
      TaskVecError: ordinary tokens are beyond the embedding, or far fewer than it has rows.
    """
    vocabulary = tokenizer.get_vocab()
    if isinstance(tokenizer, SentencePieces):
        ordinary = [i for i in vocabulary.values() if tokenizer.is_ordinary(i)]
    else:
        added = tokenizer.get_added_tokens_decoder().keys()
        ordinary = [i for i in vocabulary.values() if i not in added]
    within = sum(i < num_rows for i in vocabulary.values())
    if not within or max(ordinary, default=0) >= num_rows:
        raise TaskVecError(
            f"{where}: the tokenizer has token ids up to {max(ordinary, default=-1)}, the embedding"
            f" only {num_rows} rows; the tokenizer belongs to another model"
        )
    if num_rows - within > max(ALWAYS_ALLOWED_PADDING, MAX_PADDING * num_rows):
        raise TaskVecError(
            f"{where}: the tokenizer has {within} tokens, the embedding {num_rows};"
            " the tokenizer belongs to another model"
        )


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
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab={text: rank for rank, text in enumerate(texts)},
            merges=_merges(texts),
            ignore_merges=True,
        )
    )
    built.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS["llama-bpe"])
    built.decoder = decoders.ByteLevel()
    special = [
        _LLAMA_3_SPECIAL.get(i, f"<|reserved_special_token_{i}|>") for i in range(_LLAMA_3_SPECIALS)
    ]
    _add_tokens(built, special, special=True)
    _surround(built, special[0], None, str(path))
    return built


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself if it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _merges(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Merge rules in the order in which tiktoken would apply them.

    tiktoken has no list of merges: it joins the two neighbours whose union is the token of the
    lowest rank. So every way to cut a token in two tokens is a merge, ranked by the token.
    """
    rank = {token: i for i, token in enumerate(tokens)}
    found: list[tuple[int, int, int, str, str]] = []
    for token, i in rank.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in rank and right in rank:
                found.append((i, rank[left], rank[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(backend: tokenizers.Tokenizer, texts: Sequence[str], *, special: bool) -> None:
    backend.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])


def _surround(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None, where: str) -> None:
    """Puts tokens before and after every text; None: nothing.

    Raises:
      TaskVecError: a token is not in the vocabulary.
    """
    named = [token for token in (bos, eos) if token is not None]
    if not named:
        return
    ids = {token: backend.token_to_id(token) for token in named}
    for token, i in ids.items():
        if i is None:
            raise TaskVecError(
                f"{where}: {token[:80]!r} is to be put around every text, but is none of the"
                f" {backend.get_vocab_size()} tokens; name one of them, or set add_bos_token and"
                " add_eos_token to false"
            )
    before, after = [[token] if token is not None else [] for token in (bos, eos)]
    single = [*before, "$A", *after]
    around = processors.TemplateProcessing(
        single=[f"{part}:0" for part in single],
        pair=[
            *[f"{part}:0" for part in single],
            *[f"{part}:1" for part in [*before, "$B", *after]],
        ],
        special_tokens=list(ids.items()),
    )
    own = backend.post_processor
    backend.post_processor = around if own is None else processors.Sequence([own, around])


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
    bos = _gguf_token(meta, "bos", pre == "llama-bpe", None, tokens, where)
    eos = _gguf_token(meta, "eos", False, None, tokens, where)
    around = [None if i is None else tokens[i] for i in (bos, eos)]
    _surround(built, around[0], around[1], where)
    return built


def _gguf_flag(meta: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = meta.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise TaskVecError(
            f"{where}: tokenizer.ggml.{name} is {str(value)[:80]!r}; allowed: true, false"
        )
    return value


def _gguf_token(
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
    if not _gguf_flag(meta, f"add_{name}_token", added, where):
        return None
    token = meta.get(f"tokenizer.ggml.{name}_token_id", default)
    if type(token) is not int or not 0 <= token < len(tokens):
        raise TaskVecError(
            f"{where}: its {name.upper()} token is {token!r}, not one of {len(tokens)} tokens"
        )
    return token


def _gguf_bytes(meta: Mapping[str, Any], name: str, where: str) -> bytes:
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


def _sentencepiece_from_gguf(
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
        add_dummy_prefix=_gguf_flag(meta, "add_space_prefix", True, where),
        remove_extra_whitespaces=_gguf_flag(meta, "remove_extra_whitespaces", False, where),
        charsmap=_gguf_bytes(meta, "precompiled_charsmap", where),
    )
    bos = _gguf_token(meta, "bos", not unigram, 1, tokens, where)
    eos = _gguf_token(meta, "eos", unigram, 2, tokens, where)
    try:
        model = model_of(pieces, settings)
    except (ValueError, OverflowError) as error:  # of struct and of UTF-8 too
        raise TaskVecError(
            f"{where}: its tokenizer is damaged ({first_line(error)}); fetch it again"
        ) from None
    return SentencePieces(model, bos, eos, where)
