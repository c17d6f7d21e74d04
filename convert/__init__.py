"""Conversion: a model in a foreign format -> config, parameter tree, tokenizer.

python -m convert --model=llama-7b            writes checkpoints/llama-7b
python -m convert.verify --model=PATH         parity certificate against Hugging Face
python -m convert.export --model=PATH --out=DIRECTORY
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.backend import Backend
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params

from . import tokenizers
from .families import GGUF_FAMILIES, HF_FAMILIES, llama, meta, names, rules, text_part, tree
from .families.family import Family
from .families.rules import Source
from .families.tree import Place, Share
from .formats import beside, gguf_tokenizer
from .formats.sources import GGUFSource, MetaSource, open_weights, other_forms, read_json

# Suffixes of files that are one part of a model's directory.
_OF_A_DIRECTORY = {".safetensors", ".bin", ".pth", ".pt", ".json"}
MIXTURES = {  # of experts, by names that do not say so
    "mixtral", "deepseek_v2", "deepseek_v3", "deepseek2", "gpt_oss", "gpt-oss", "dbrx", "jamba",
    "llama4", "llama4_text", "grok", "grok-1", "arctic", "qwen3_next", "dots1",
}  # fmt: skip


class Opened(NamedTuple):
    """A model whose config and tokenizer have been read, and its weights not yet.

    Attributes:
      config: with the dtype the parameters will have.
      source: the tensors.
      files: what the source consists of.
      tokenizer: the model's own.
      read: (place, progress, share) -> parameter tree; see `families.tree.to_tree`.
    """

    config: DecoderConfig
    source: Source
    files: list[Path]
    tokenizer: Backend
    read: Callable[[Place, Callable[[int, int], None], Share], Params]


class Converted(NamedTuple):
    """A model in memory: the tree that `Decoder(config).apply` takes."""

    config: DecoderConfig
    params: Params
    tokenizer: Backend


def open_model(path: Path, dtype: str | None) -> Opened:
    """Opens foreign weights, and checks everything that can be checked before reading them.

    Args:
      path: a Hugging Face directory, a .gguf file, or a directory of Meta's consolidated.*.pth.
      dtype: of the parameters, one of `taskvec_jax.transformer.config.DTYPES`. None: the source's
        own if that is half precision, else float32, so that nothing is lost.

    Raises:
      TaskVecError: the path holds no model, an unsupported one, or a damaged one.
    """
    if path.is_file():
        if path.suffix in _OF_A_DIRECTORY:
            raise TaskVecError(
                f"{path}: is one file of a model; give the directory it lies in"
                f" (--model={path.parent}), with config.json and the tokenizer"
            )
        source = GGUFSource(path)
        files = source.files
        beside.refuse_gguf_without_model(source.meta, len(source.shapes()), str(path))
        kind = source.meta.get("general.architecture")
        family = _family(GGUF_FAMILIES, kind, f"{path}: general.architecture")
        assert family.gguf is not None
        assert family.config_from_gguf is not None
        table = family.gguf
        config = family.config_from_gguf(source.meta, source, str(path), dtype or "float32")
        tokenizer = gguf_tokenizer.from_gguf(source.meta, str(path))
    elif (path / "config.json").is_file():
        family, raw, wrapped = _read_hf(path)
        table = family.hf
        source = open_weights(path, _named_weights(raw))
        files = source.files
        if wrapped:
            source = text_part.text_source(source)
        stored = [name for name in source.shapes() if not family.ignored.search(name)]
        beside.refuse_quantized_tensors(stored, str(path))
        config = family.config_from_hf(raw, str(path / "config.json"), dtype or "float32")
        source = names.renamed_source(family, source, config.tied_unembed)
        tokenizer = tokenizers.from_directory(path)
    elif (path / "params.json").is_file() and any(path.glob("consolidated.*.pth")):
        beside.refuse_adapter(path)
        family, source, table = llama.FAMILY, MetaSource(path), llama.META
        files = source.files
        where = str(path / "params.json")
        config = meta.config_from_meta(source.meta, source, where, dtype or "float32")
        tokenizer = tokenizers.from_meta_directory(path)
    else:
        beside.refuse_adapter(path)
        raise TaskVecError(
            f"{path}: no model here; expected a directory with config.json and weights (Hugging"
            " Face), a .gguf file, or Meta's params.json with consolidated.*.pth"
            + other_forms(path)
        )
    tokenizers.check_vocabulary(tokenizer, config.vocab_size, str(path))
    tied = family.tied if table is family.hf else None
    steps = rules.check(table, config, source, family.ignored, tied)
    used = [step.name for step in steps]
    source.check_used(used)
    if dtype is None:
        config = dataclasses.replace(config, dtype=_dtype(source, used))

    def read(place: Place, progress: Callable[[int, int], None], share: Share) -> Params:
        return tree.to_tree(
            table,
            config,
            source,
            ignored=family.ignored,
            tied=tied,
            place=place,
            progress=progress,
            share=share,
        )

    return Opened(config, source, files, tokenizer, read)


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
    return Converted(opened.config, opened.read(place, progress, tree.whole), opened.tokenizer)


def read_config(path: Path) -> DecoderConfig:
    """The config of foreign weights, read without their tensors where the format allows it.

    Raises:
      TaskVecError: the path holds no model, or an unsupported one.
    """
    if (path / "config.json").is_file():
        family, raw, _ = _read_hf(path)
        _named_weights(raw)
        return family.config_from_hf(raw, str(path / "config.json"), "float32")
    return open_model(path, "float32").config


def _family(known: dict[str, Family], kind: Any, what: str) -> Family:
    if isinstance(kind, str) and kind not in known and ("moe" in kind or kind in MIXTURES):
        raise TaskVecError(
            f"{what} is {kind[:80]!r}, a mixture of experts, which is not supported; allowed are"
            f" dense decoders: {', '.join(known)}"
        )
    if not isinstance(kind, str) or kind not in known:
        raise TaskVecError(
            f"{what} is {str(kind)[:80]!r}, an architecture that is not supported; allowed:"
            f" {', '.join(known)}"
        )
    return known[kind]


def _read_hf(path: Path) -> tuple[Family, dict[str, Any], bool]:
    """The family and the raw config.json of a Hugging Face directory, and whether it holds more.

    More is a part for images, beside the text part that is read; the config is then that of text.

    Raises:
      TaskVecError: an architecture that is not supported, perhaps one whose code lies in its own
        repository, quantized weights, or an adapter.
    """
    where = path / "config.json"
    beside.refuse_adapter(path)
    raw = read_json(where)
    kind = raw.get("model_type")
    if raw.get("auto_map") and kind not in (*HF_FAMILIES, *text_part.WRAPPERS):
        raise TaskVecError(
            f"{where}: model_type is {str(kind)[:80]!r}, which brings code of its own (auto_map)"
            " that may compute anything and is not run here; allowed without such code:"
            f" {', '.join(HF_FAMILIES)}"
        )
    text = text_part.text_config(raw, str(where))
    family = _family(HF_FAMILIES, text.get("model_type"), f"{where}: model_type")
    beside.refuse_quantized_config(raw, str(where))
    if "transformers_weights" in raw:
        text["transformers_weights"] = raw["transformers_weights"]
    return family, text, kind in text_part.WRAPPERS


def _named_weights(raw: dict[str, Any]) -> str | None:
    """The file that config.json names as its weights; the key is removed, as it has been used."""
    named = raw.pop("transformers_weights", None)
    return None if named is None else str(named)


def _dtype(source: Source, used: Iterable[str]) -> str:
    """The dtype that loses nothing of the tensors in `used`; other tensors do not count."""
    dtypes = source.dtypes()
    kinds = {dtypes[name] for name in used}
    return kinds.pop() if kinds in ({"float16"}, {"bfloat16"}) else "float32"
