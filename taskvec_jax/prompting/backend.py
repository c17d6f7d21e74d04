"""The two libraries that tokenize: tokenizers, and sentencepiece behind the same methods."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import tokenizers

from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.prompting.sentencepieces import SentencePieces

FILE = "tokenizer.json"
Backend = tokenizers.Tokenizer | SentencePieces


def unknown_token(backend: Backend) -> int | None:
    """Id of the token that stands for text the vocabulary cannot spell; None: there is none."""
    if isinstance(backend, SentencePieces):
        return backend.unknown
    if isinstance(backend.model, tokenizers.models.Unigram):  # has its id in the file alone
        return json.loads(backend.to_str())["model"].get("unk_id")
    text = getattr(backend.model, "unk_token", None)
    return None if text is None else backend.token_to_id(text)


def read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json unchanged.

    Raises:
      TaskVecError: the file is missing or not a tokenizer.
    """
    with one_line_errors(f"{path}: not a tokenizer.json that can be read"):
        return tokenizers.Tokenizer.from_file(str(path))


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turns whatever tokenizers and sentencepiece raise into a TaskVecError of one line.

    They raise several kinds of exception. For some damage that is found late, tokenizers raises a
    panic of Rust, which is a BaseException.

    Args:
      what: the failure, as the message says it; the library's reason follows in brackets.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TaskVecError):
        raise
    except BaseException as error:
        raise TaskVecError(f"{what} ({first_line(error)})") from None
