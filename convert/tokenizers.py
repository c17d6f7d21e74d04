"""Tokenizers in: whatever a model came with -> one tokenizer.json, the model's own BOS kept.

The only module that touches `transformers`, and only for Hugging Face directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from taskvec_jax.errors import TaskVecError

_CONTROL = 3  # tokenizer.ggml.token_type of special tokens
_USER_DEFINED = 4


def from_directory(directory: Path) -> tokenizers.Tokenizer:
    """The fast tokenizer of a Hugging Face directory.

    Raises:
      TaskVecError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer  # slow to import, needed by this source only

    try:
        loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a missing or broken file
        raise TaskVecError(
            f"{directory}: no tokenizer can be read from it ({type(error).__name__}: {error});"
            " put the model's tokenizer.json beside the weights"
        ) from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise TaskVecError(
            f"{directory}: its tokenizer has no fast form; put a tokenizer.json beside the weights"
        )
    return backend


# tokenizer.ggml.pre -> what splits text before byte-level BPE.
_PRE_TOKENIZERS: dict[str, list[Any]] = {
    # Every digit on its own, then GPT-2's pattern.
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
}


def from_gguf(meta: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Raises:
      TaskVecError: a tokenizer model or pre-tokenizer that is not supported, or missing parts.
    """
    model, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise TaskVecError(
            f"{where}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; allowed:"
            f" 'gpt2' with {', '.join(map(repr, _PRE_TOKENIZERS))}"
        )
    try:
        tokens: list[str] = meta["tokenizer.ggml.tokens"]
        kinds: list[int] = meta["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
        if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
            raise ValueError("tokens and token types do not match")
        bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    except Exception as error:  # tokenizers raises bare Exception for a bad vocabulary
        raise TaskVecError(f"{where}: its tokenizer is damaged ({error}); fetch it again") from None
    built = tokenizers.Tokenizer(bpe)
    built.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre])
    built.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [t for t, k in zip(tokens, kinds, strict=True) if k == kind]
        built.add_tokens(
            [tokenizers.AddedToken(t, special=special, normalized=False) for t in added]
        )
    if meta.get("tokenizer.ggml.add_bos_token", False):
        bos = int(meta["tokenizer.ggml.bos_token_id"])
        built.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return built
