"""The tiktoken format (tokenizer.model of Llama 3): a line for each token, its bytes and its rank.

    IQ== 0

Bytes are in base64; ranks count from 0. tiktoken joins the two neighbours whose union has the
lowest rank, until there are none.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from taskvec_jax.errors import TaskVecError

from .byte_level import PRE_TOKENIZERS, add_tokens, surround

MAX_BYTES = 64 << 20
_LLAMA_3_SPECIALS = 256
_LLAMA_3_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}  # the others are never in a prompt
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+=* 0\r?\n")


def is_tiktoken(path: Path) -> bool:
    """Whether the first line is one of tiktoken's; that of a sentencepiece model is not."""
    with path.open("rb") as file:
        return bool(_FIRST_LINE.match(file.read(100)))


def read_tiktoken(path: Path) -> list[bytes]:
    """The tokens in order of rank.

    Raises:
      TaskVecError: the file is not a whole tiktoken file; every single byte must be a token.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes; allowed: {MAX_BYTES}")
        tokens = []
        for number, line in enumerate(path.read_bytes().splitlines()):
            text, _, rank = line.partition(b" ")
            if rank != b"%d" % number:
                raise ValueError(f"line {number + 1} has rank {rank[:20]!r}, expected {number}")
            tokens.append(base64.b64decode(text, validate=True))
        if len(set(tokens)) != len(tokens):
            raise ValueError("a token is listed twice")
        if missing := {bytes([n]) for n in range(256)} - set(tokens):
            raise ValueError(f"{len(missing)} of the 256 single bytes are missing")
    except (OSError, ValueError) as error:
        raise TaskVecError(f"{path}: not a whole tiktoken file ({error}); fetch it again") from None
    return tokens


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
    built.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS["llama-bpe"])
    built.decoder = decoders.ByteLevel()
    special = [
        _LLAMA_3_SPECIAL.get(i, f"<|reserved_special_token_{i}|>") for i in range(_LLAMA_3_SPECIALS)
    ]
    add_tokens(built, special, special=True)
    surround(built, special[0], None, str(path))
    return built


def _byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for each byte: the byte itself if it is printable."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _merges(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Merge rules in the order in which tiktoken would apply them.

    tiktoken has no list of merges: it joins the two neighbours whose union is the token of
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
