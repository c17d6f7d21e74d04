"""Weights in: a Hugging Face directory or a GGUF file -> config, parameter tree, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers as hf_tokenizers

from convert import llama, pythia, rules, tokenizers
from convert.sources import GGUFSource, SafetensorsSource, read_json
from taskvec_jax.config import DecoderConfig
from taskvec_jax.errors import TaskVecError


class Converted(NamedTuple):
    """A model in memory: NumPy arrays in the tree that `Decoder(config).apply` takes."""

    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: hf_tokenizers.Tokenizer


class _Family(NamedTuple):
    module: Any
    ignored: re.Pattern[str]


_HF_TYPES = {
    "llama": _Family(llama, llama.IGNORED),
    "gpt_neox": _Family(pythia, pythia.IGNORED),
}
_GGUF_TYPES = {"llama": _Family(llama, llama.IGNORED)}


def convert(
    path: Path,
    dtype: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Reads foreign weights.

    Args:
      path: a Hugging Face directory (config.json, safetensors, tokenizer), or a .gguf file.
      dtype: of the parameters, one of `taskvec_jax.config.DTYPES`.
      progress: called with (tensors done, tensors in all).

    Raises:
      TaskVecError: the path holds no model, an unsupported one, or a damaged one.
    """
    if path.suffix == ".gguf" and path.is_file():
        source = GGUFSource(path)
        kind = source.meta.get("general.architecture")
        family = _family(_GGUF_TYPES, kind, f"{path}: general.architecture")
        config = family.module.config_from_gguf(source.meta, source.shapes(), str(path), dtype)
        tokenizer = tokenizers.from_gguf(source.meta, str(path))
        table = family.module.GGUF
    elif (path / "config.json").is_file():
        raw = read_json(path / "config.json")
        family = _family(_HF_TYPES, raw.get("model_type"), f"{path / 'config.json'}: model_type")
        config = family.module.config_from_hf(raw, str(path / "config.json"), dtype)
        source = SafetensorsSource(path)
        tokenizer = tokenizers.from_directory(path)
        table = family.module.HF
    else:
        raise TaskVecError(
            f"{path}: no model here; expected a directory with config.json and"
            " model.safetensors, or a .gguf file"
        )
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise TaskVecError(
            f"{path}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the embedding only"
            f" {config.vocab_size}; the tokenizer belongs to another model"
        )
    params = rules.to_tree(table, config, source, ignored=family.ignored, progress=progress)
    return Converted(config, params, tokenizer)


def _family(known: dict[str, _Family], kind: Any, what: str) -> _Family:
    if kind not in known:
        raise TaskVecError(
            f"{what} is {kind!r}, an architecture that is not supported; allowed:"
            f" {', '.join(known)}"
        )
    return known[kind]
