"""What byte-level BPE tokenizers are built of, when a file has only their tokens and merges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, pre_tokenizers, processors

from taskvec_jax.errors import TaskVecError


def add_tokens(backend: tokenizers.Tokenizer, texts: Sequence[str], *, special: bool) -> None:
    """Adds tokens that are found in a text before it is split."""
    backend.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])


def surround(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None, where: str) -> None:
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


_LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3 = Regex(_LLAMA_3_PATTERN)
QWEN_2_PATTERN = _LLAMA_3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")  # every digit on its own
# tokenizer.ggml.pre -> what splits text before byte-level BPE.
PRE_TOKENIZERS: dict[str, list[Any]] = {
    # Every digit on its own, then GPT-2's pattern.
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _byte_level()],
    "gpt-2": [_byte_level()],
    "olmo": [_byte_level()],  # GPT-NeoX's vocabulary goes by this name too
    "llama-bpe": [
        pre_tokenizers.Split(_LLAMA_3, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(QWEN_2_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
