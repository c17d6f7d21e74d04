"""Random LLaMA weights in every format that is converted: what conversion_benchmark.py measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import tokenizers

from convert.families import llama, rules
from convert.families.rules import Rule
from convert.formats import safetensors_file
from taskvec_jax.transformer.config import DecoderConfig

KINDS = ("safetensors", "bin", "pth", "gguf")
FILES = {"safetensors": 4, "bin": 4, "pth": 2}  # the weights are in
POOL = 1 << 23  # random numbers the weights are cut from; a multiple of GGUF's blocks
QUANTISED = gguf.GGMLQuantizationType.Q8_0

Shape = tuple[int, ...]


def make_config(layers: int, width: int, vocabulary: int) -> DecoderConfig:
    """TinyLlama's proportions: heads of 64 numbers, four to a key/value head.

    Args:
      layers: how many.
      width: a multiple of 64.
      vocabulary: rows of the embedding.
    """
    return DecoderConfig(
        family="llama",
        vocab_size=vocabulary,
        num_layers=layers,
        width=width,
        num_heads=width // 64,
        num_kv_heads=width // 64 // 4 or 1,
        head_dim=64,
        mlp_width=width * 11 // 4,
        norm_eps=1e-5,
        rope_base=10_000.0,
        rope_dim=64,
        max_length=2048,
        dtype="bfloat16",
    )


def write(directory: Path, config: DecoderConfig, kind: str) -> Path:
    """Writes a model in bfloat16 (GGUF: Q8_0), one tensor after the other where the format allows.

    Args:
      directory: is made.
      config: see `make_config`.
      kind: one of KINDS; "bin" and "pth" need torch.

    Returns:
      What `load_model` takes.
    """
    directory.mkdir(parents=True)
    if kind == "gguf":
        return _write_gguf(directory / "model.gguf", config)
    vocab = {f"w{i}": i for i in range(config.vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0"))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    writers = {"safetensors": _write_safetensors, "bin": _write_bin, "pth": _write_pth}
    writers[kind](directory, config)
    return directory


def _shapes(config: DecoderConfig, table: tuple[Rule, ...]) -> dict[str, Shape]:
    steps = rules.applicable_steps(table, config)
    return {step.name: rules.source_shape(config, step) for step in steps}


def _pool() -> np.ndarray:
    """float32[POOL]"""
    return np.random.default_rng(0).standard_normal(POOL, np.float32) * np.float32(0.02)


def _bfloat16() -> Callable[[Shape], np.ndarray]:
    """Shape -> random numbers."""
    rng, pool = np.random.default_rng(1), _pool().astype(ml_dtypes.bfloat16)

    def random(shape: Shape) -> np.ndarray:
        return np.resize(np.roll(pool, int(rng.integers(POOL))), int(np.prod(shape))).reshape(shape)

    return random


def _parts(config: DecoderConfig, stem: str, end: str) -> Iterator[tuple[str, dict[str, Shape]]]:
    """The files of a Hugging Face directory, and what is in each."""
    shapes, count = _shapes(config, llama.HF), FILES[end]
    names = list(shapes)
    for i in range(count):
        part = names[i * len(names) // count : (i + 1) * len(names) // count]
        yield f"{stem}-{i + 1:05d}-of-{count:05d}.{end}", {name: shapes[name] for name in part}


def _write_index(directory: Path, config: DecoderConfig, stem: str, end: str) -> None:
    index = {name: file for file, part in _parts(config, stem, end) for name in part}
    (directory / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / "config.json").write_text(json.dumps(llama.config_to_hf(config)))


def _write_safetensors(directory: Path, config: DecoderConfig) -> None:
    random = _bfloat16()
    for file, part in _parts(config, "model", "safetensors"):
        tensors = [(name, shape, lambda shape=shape: random(shape)) for name, shape in part.items()]
        safetensors_file.write(directory / file, ml_dtypes.bfloat16, tensors)
    _write_index(directory, config, "model", "safetensors")


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    import torch

    torch.save(
        {
            name: torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
            for name, x in tensors.items()
        },
        path,
    )


def _write_bin(directory: Path, config: DecoderConfig) -> None:
    random = _bfloat16()
    for file, part in _parts(config, "pytorch_model", "bin"):
        _save(directory / file, {name: random(shape) for name, shape in part.items()})
    _write_index(directory, config, "pytorch_model", "bin")


def _write_pth(directory: Path, config: DecoderConfig) -> None:
    """Every file holds its columns or rows of each matrix, as in LLaMA 1 and 2."""
    random, count = _bfloat16(), FILES["pth"]
    norms = {s: random(s) for s in set(_shapes(config, llama.META).values()) if len(s) == 1}
    for i in range(count):
        part = {}
        for name, shape in _shapes(config, llama.META).items():
            sizes = list(shape)
            columns = name.endswith(("tok_embeddings.weight", "wo.weight", "w2.weight"))
            sizes[columns and len(sizes) > 1] //= count
            part[name] = norms[shape] if len(shape) == 1 else random(tuple(sizes))
        _save(directory / f"consolidated.{i:02d}.pth", part)
    about = {
        "dim": config.width,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "norm_eps": config.norm_eps,
        "vocab_size": -1,  # as Meta's say
    }
    (directory / "params.json").write_text(json.dumps(about))


def add_word_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """Gives a GGUF file the least tokenizer of this many tokens that byte-level BPE allows."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["w", "0", "w0", *(f"x{i}" for i in range(size - 3))])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["w 0"])


def _write_gguf(path: Path, config: DecoderConfig) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rope_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    add_word_tokenizer(writer, config.vocab_size)
    shapes = _shapes(config, llama.GGUF)
    block, size = gguf.GGML_QUANT_SIZES[QUANTISED]
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            in_bytes = (*shape[:-1], shape[-1] // block * size)
            dtype = np.dtype(np.uint8)
            writer.add_tensor_info(name, in_bytes, dtype, int(np.prod(in_bytes)), QUANTISED)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    plain = _pool()
    packed = gguf.quantize(plain.reshape(-1, block), QUANTISED)  # [blocks, size]
    rng = np.random.default_rng(1)
    for shape in shapes.values():
        if len(shape) == 1:
            writer.write_tensor_data(plain[: shape[0]])
        else:
            rolled = np.roll(packed, int(rng.integers(len(packed))), axis=0)
            count = int(np.prod(shape)) // block
            writer.write_tensor_data(np.resize(rolled, (count, size)))
    writer.close()
    return path
