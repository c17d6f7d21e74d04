"""The tiktoken format (tokenizer.model of Llama 3): a line for each token, its bytes and its rank.

    IQ== 0

Bytes are in base64; ranks count from 0. tiktoken joins the two neighbours whose union has the
lowest rank, until there are none.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from taskvec_jax.errors import TaskVecError

MAX_BYTES = 64 << 20
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+=* 0\r?\n")


def is_tiktoken(path: Path) -> bool:
    """Whether the file looks like one; sentencepiece's do not."""
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
