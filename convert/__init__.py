"""Weights in: whatever a model came as -> config, parameter tree, tokenizer.

python -m convert --model=llama-7b            writes checkpoints/llama-7b
python -m convert.verify --model=PATH         parity certificate against Hugging Face
python -m convert.export --model=PATH --out=DIRECTORY
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers as hf_tokenizers

from taskvec_jax.config import DecoderConfig
from taskvec_jax.decoder import Params
from taskvec_jax.errors import TaskVecError

from . import gptj, llama, pythia, rules, tokenizers
from .family import Family
from .rules import Place, Share, Source
from .sources import GGUFSource, MetaSource, open_weights, read_json

HF_FAMILIES: dict[str, Family] = {  # model_type of config.json ->
    "llama": llama.FAMILY,
    "mistral": llama.FAMILY,
    "gpt_neox": pythia.FAMILY,
    "gptj": gptj.FAMILY,
}
GGUF_FAMILIES: dict[str, Family] = {  # general.architecture ->
    "llama": llama.FAMILY,
    "gptneox": pythia.FAMILY,
}
MAX_PADDING = 0.1  # share of rows of an embedding without a token; real models stay below 0.02
ALWAYS_ALLOWED_PADDING = 1000  # rows


class Opened(NamedTuple):
    """A source whose config and tokenizer are read, and whose weights are not yet.

    Attributes:
      config: with the dtype the parameters will have.
      source: the tensors.
      files: what the source consists of.
      tokenizer: the model's own.
      read: (place, progress, share) -> parameter tree; see `rules.to_tree`.
    """

    config: DecoderConfig
    source: Source
    files: list[Path]
    tokenizer: hf_tokenizers.Tokenizer
    read: Callable[[Place, Callable[[int, int], None], Share], Params]


class Converted(NamedTuple):
    """A model in memory: the tree that `Decoder(config).apply` takes."""

    config: DecoderConfig
    params: Params
    tokenizer: hf_tokenizers.Tokenizer


def open_model(path: Path, dtype: str | None) -> Opened:
    """Looks at foreign weights and checks everything that can be checked before reading them.

    Args:
      path: a Hugging Face directory, a .gguf file, or a directory of Meta's consolidated.*.pth.
      dtype: of the parameters, one of `taskvec_jax.config.DTYPES`; None: the dtype the source
        has where that is half precision, else float32, so that nothing is lost.

    Raises:
      TaskVecError: the path holds no model, an unsupported one, or a damaged one.
    """
    if path.is_file():
        source = GGUFSource(path)
        kind = source.meta.get("general.architecture")
        family = _family(GGUF_FAMILIES, kind, f"{path}: general.architecture")
        assert family.gguf is not None
        assert family.config_from_gguf is not None
        table = family.gguf
        config = family.config_from_gguf(source.meta, source, str(path), dtype or _dtype(source))
        tokenizer = tokenizers.from_gguf(source.meta, str(path))
    elif (path / "config.json").is_file():
        raw = read_json(path / "config.json")
        where = str(path / "config.json")
        family = _family(HF_FAMILIES, raw.get("model_type"), f"{where}: model_type")
        table = family.hf
        source = open_weights(path)
        config = family.config_from_hf(raw, where, dtype or _dtype(source))
        tokenizer = tokenizers.from_directory(path)
    elif (path / "params.json").is_file() and any(path.glob("consolidated.*.pth")):
        family, source, table = llama.FAMILY, MetaSource(path), llama.META
        where = str(path / "params.json")
        config = llama.config_from_meta(source.meta, source, where, dtype or _dtype(source))
        tokenizer = tokenizers.from_meta_directory(path)
    else:
        raise TaskVecError(
            f"{path}: no model here; expected a directory with config.json and weights (Hugging"
            " Face), a .gguf file, or Meta's params.json with consolidated.*.pth"
        )
    _check_tokenizer(tokenizer, config, str(path))
    tied = family.tied if table is family.hf else None
    rules.check(table, config, source, family.ignored, tied)

    def read(place: Place, progress: Callable[[int, int], None], share: Share) -> Params:
        return rules.to_tree(
            table,
            config,
            source,
            ignored=family.ignored,
            tied=tied,
            place=place,
            progress=progress,
            share=share,
        )

    return Opened(config, source, source.files, tokenizer, read)


def convert(
    path: Path,
    dtype: str | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    place: Place = lambda path, leaf: leaf,
) -> Converted:
    """Reads foreign weights.

    Args:
      path, dtype: as for `open_model`.
      progress: called with (tensors done, tensors in all).
      place: called with (path, array) of each leaf when it is complete; what it returns is kept.

    Raises:
      TaskVecError: the path holds no model, an unsupported one, or a damaged one.
    """
    opened = open_model(path, dtype)
    return Converted(opened.config, opened.read(place, progress, rules.whole), opened.tokenizer)


def read_config(path: Path) -> DecoderConfig:
    """The shapes of foreign weights, from their config alone where that says everything.

    Raises:
      TaskVecError: the path holds no model, or an unsupported one.
    """
    if (path / "config.json").is_file():
        raw = read_json(path / "config.json")
        where = str(path / "config.json")
        family = _family(HF_FAMILIES, raw.get("model_type"), f"{where}: model_type")
        return family.config_from_hf(raw, where, "float32")
    return open_model(path, "float32").config


def _family(known: dict[str, Family], kind: Any, what: str) -> Family:
    if not isinstance(kind, str) or kind not in known:
        raise TaskVecError(
            f"{what} is {str(kind)[:80]!r}, an architecture that is not supported; allowed:"
            f" {', '.join(known)}"
        )
    return known[kind]


def _dtype(source: Source) -> str:
    """The dtype that loses nothing."""
    kinds = set(source.dtypes().values())
    return kinds.pop() if kinds in ({"float16"}, {"bfloat16"}) else "float32"


def _check_tokenizer(tokenizer: hf_tokenizers.Tokenizer, config: DecoderConfig, where: str) -> None:
    ids = tokenizer.get_vocab().values()
    if not ids or max(ids) >= config.vocab_size:
        raise TaskVecError(
            f"{where}: the tokenizer has token ids up to {max(ids, default=-1)}, the embedding"
            f" only {config.vocab_size} rows; the tokenizer belongs to another model"
        )
    if config.vocab_size - len(ids) > max(ALWAYS_ALLOWED_PADDING, MAX_PADDING * config.vocab_size):
        raise TaskVecError(
            f"{where}: the tokenizer has {len(ids)} tokens, the embedding {config.vocab_size};"
            " the tokenizer belongs to another model"
        )
