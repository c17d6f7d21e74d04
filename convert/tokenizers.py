"""The tokenizer of a model in a foreign format, with the model's own BOS.

A tokenizer.json is used unchanged, a sentencepiece model through sentencepiece itself.
`transformers` is imported only to compare with a sentencepiece model, and where a directory has
neither file.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.prompting.backend import FILE, Backend, read_tokenizer_json
from taskvec_jax.prompting.sentencepieces import (
    CONFIG,
    MODEL,
    SentencePieces,
    flag,
    read_sentencepieces,
    read_settings,
    token_text,
)

from .formats.byte_level import surround
from .formats.tiktoken_file import from_tiktoken, is_tiktoken

_log = logging.getLogger(__name__)
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

    tokenizer.json unchanged; where there is none, tokenizer.model as sentencepiece (or tiktoken)
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
    """A tokenizer.json, unchanged but for BOS and EOS that it leaves open.

    A file without a post-processor, or with one of byte-level offsets alone, puts nothing around a
    text; then `add_bos_token` and `add_eos_token` of tokenizer_config.json say what is put there.
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
    surround(backend, added["bos"], added["eos"], str(config))
    return backend


def _from_tokenizer_model(path: Path) -> Backend:
    if is_tiktoken(path):
        return from_tiktoken(path)
    built = read_sentencepieces(path)
    _warn_of_differences(path, built)
    return built


def _warn_of_differences(path: Path, ours: SentencePieces) -> None:
    """Warns if transformers reads other token ids from the same sentencepiece model."""
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
    """vocab.json and merges.txt; the tokenizer's class decides how text is split before them."""
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
            return from_tiktoken(path) if is_tiktoken(path) else read_sentencepieces(path)
    raise TaskVecError(
        f"{directory}: no tokenizer.model here or in the directory above; put Meta's there"
    )


def check_vocabulary(tokenizer: Backend, num_rows: int, where: str) -> None:
    """Refuses a tokenizer that does not belong to an embedding.

    An added token, such as one for padding, may have an id beyond the embedding; a text that holds
    it is refused when it is tokenized.

    Args:
      num_rows: rows of the embedding.

    Raises:
      TaskVecError: ordinary tokens are beyond the embedding, or far fewer than it has rows.
    """
    vocabulary = tokenizer.get_vocab()
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
