"""GGUF files of both architectures, in every type, give Hugging Face's numbers; so do their
tokenizers."""

# Long because: GGUF files are written here by hand, field by field.

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import hf
import numpy as np
import pytest
import tokenizers
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from convert import convert
from convert.families.llama import FAMILY
from convert.formats.gguf_file import read_header, read_tensor
from convert.formats.gguf_tokenizer import from_gguf
from experiments.bench.synthetic_model import add_word_tokenizer
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.prompting.sentencepieces import read_sentencepieces
from taskvec_jax.transformer.decoder import flatten
from taskvec_jax.transformer.rope import rope_divisors

TOKENS = np.array([5, 71, 2, 33, 99, 14, 14, 60])
Kind = GGMLQuantizationType


def llama_names(name: str) -> str:
    for ours, theirs in {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }.items():
        name = name.replace(ours + ".", theirs + ".")
    return name


def permuted(x: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k."""
    half = x.shape[0] // heads // 2
    return x.reshape(heads, 2, half, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


Encode = Callable[[np.ndarray], tuple[np.ndarray, Kind | None]]


def as_float32(x: np.ndarray) -> tuple[np.ndarray, Kind | None]:
    return x.astype(np.float32), None


def quantized(kind: Kind) -> Encode:
    """Rows that the type's blocks divide are quantized, the others stay float32, as usual."""

    def encode(x: np.ndarray) -> tuple[np.ndarray, Kind | None]:
        if x.ndim < 2 or x.shape[-1] % GGML_QUANT_SIZES[kind][0]:
            return as_float32(x)
        return gguf.quantize(x.astype(np.float32), kind), kind

    return encode


def write_llama(
    model: Any,
    path: Path,
    encode: Encode = as_float32,
    freqs: Sequence[float] | None = None,
    extra: Mapping[str, str | int] | None = None,
) -> Path:
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    for key, value in (extra or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    add_word_tokenizer(writer, c.vocab_size)
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", np.array(freqs, np.float32))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        value = tensor.float().numpy()
        if ".q_proj." in name:
            value = permuted(value, c.num_attention_heads)
        if ".k_proj." in name:
            value = permuted(value, c.num_key_value_heads)
        data, kind = encode(value)
        writer.add_tensor(llama_names(name), data, raw_dtype=kind)
    return finish(writer, path)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_neox(model: Any, path: Path) -> Path:
    c = model.config
    head_dim = c.hidden_size // c.num_attention_heads
    writer = gguf.GGUFWriter(path, "gptneox")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_rope_dimension_count(int(head_dim * c.rope_parameters["partial_rotary_factor"]))
    writer.add_head_count(c.num_attention_heads)
    writer.add_parallel_residual(c.use_parallel_residual)
    writer.add_layer_norm_eps(c.layer_norm_eps)
    add_word_tokenizer(writer, c.vocab_size)
    names = {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "lm_head": "output",  # embed_out in files, lm_head in transformers 5's memory
        "gpt_neox.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if "query_key_value" in name:  # llama.cpp's converter: all q, then all k, then all v
            parts = value.reshape(c.num_attention_heads, 3, head_dim, -1)
            value = np.concatenate([parts[:, i].reshape(-1, parts.shape[-1]) for i in range(3)])
            value = value.reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours + ".", theirs + ".")
        writer.add_tensor(name, np.ascontiguousarray(value))
    return finish(writer, path)


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-tied", "llama-all-heads", "llama-head-dim-wide", "llama-all-biases-tied"],
)
def test_llama_gguf_equals_hugging_face(name: str, tmp_path: Path) -> None:
    theirs = hf.random_model(hf.CONFIGS[name]())
    ours = load_model(write_llama(theirs, tmp_path / "m.gguf"))
    hf.assert_same(hf.run_ours(ours, TOKENS), hf.run_hf(theirs, TOKENS))


@pytest.mark.parametrize("name", ["neox", "neox-sequential"])
def test_gptneox_gguf_equals_hugging_face(name: str, tmp_path: Path) -> None:
    theirs = hf.random_model(hf.CONFIGS[name]())
    ours = load_model(write_neox(theirs, tmp_path / "m.gguf"))
    hf.assert_same(hf.run_ours(ours, TOKENS), hf.run_hf(theirs, TOKENS))


def test_rope_freqs_of_a_gguf_are_llama_3_scaling(tmp_path: Path) -> None:
    theirs = hf.random_model(hf.CONFIGS["llama-rope-llama3"]())
    (tmp_path / "hf").mkdir()
    config = convert(hf.save(theirs, tmp_path / "hf"), None).config
    divisors = rope_divisors(config.rope_base, config.rope_dim, config.rope_scaling)
    assert 1 < divisors.max() <= 8
    ours = load_model(write_llama(theirs, tmp_path / "m.gguf", freqs=list(divisors)))
    hf.assert_same(hf.run_ours(ours, TOKENS), hf.run_hf(theirs, TOKENS))
    plain = load_model(write_llama(theirs, tmp_path / "plain.gguf", freqs=[1.0] * 7))
    assert plain.config.rope_scaling is None
    with pytest.raises(TaskVecError, match=r"rope_freqs\.weight has shape \(3,\)"):
        load_model(write_llama(theirs, tmp_path / "bad.gguf", freqs=[1.0] * 3))
    with pytest.raises(TaskVecError, match="a Hugging Face config cannot say"):
        FAMILY.config_to_hf(ours.config)


QUANTIZABLE = ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]


@pytest.mark.parametrize("kind", ["F16", *QUANTIZABLE])
def test_every_type_that_gguf_quantizes_reads_as_its_dequantized_self(
    kind: str, tmp_path: Path
) -> None:
    """The file's numbers are those of a float32 file of what the gguf package dequantizes."""
    config = hf.llama(
        vocab_size=61, hidden_size=256, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, intermediate_size=256, num_hidden_layers=2,
    )  # fmt: skip
    theirs, which = hf.random_model(config), Kind[kind]
    encode = quantized(which) if kind != "F16" else lambda x: (x.astype(np.float16), None)
    ours = load_model(write_llama(theirs, tmp_path / "m.gguf", encode))
    c = theirs.config
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            value = tensor.numpy()
            heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
            count = next((n for part, n in heads.items() if part in name), None)
            stored = value if count is None else permuted(value, count)
            data, used = encode(stored)
            plain = data.astype(np.float32) if used is None else gguf.dequantize(data, used)
            if count is not None:  # the inverse permutation
                half = plain.shape[0] // count // 2
                plain = plain.reshape(count, half, 2, -1).swapaxes(1, 2).reshape(value.shape)
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(plain)))
    plain = flatten(load_model(write_llama(theirs, tmp_path / "plain.gguf")).params)
    for path, leaf in flatten(ours.params).items():
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), plain[path], path)


def test_every_type_that_gguf_dequantizes_is_read(tmp_path: Path) -> None:
    """K and IQ types have no quantizer in Python: random blocks, against gguf's own reader."""
    kinds = list(gguf.quants._type_traits)
    assert len(kinds) >= 20
    rng = np.random.default_rng(7)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in kinds:
        block, size = GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 60, (3, max(1, 512 // block) * size), dtype=np.uint8)
        writer.add_tensor(f"t.{kind.name}", data, raw_dtype=kind)
    finish(writer, path)
    _, entries = read_header(path)
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert entries.keys() == reader.keys()
    for name, entry in entries.items():
        theirs = reader[name]
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(theirs.data, theirs.tensor_type)
        got = read_tensor(path, name, entry)
        np.testing.assert_array_equal(got.astype(np.float32), expected.reshape(got.shape))
        assert got.shape == tuple(reversed([int(n) for n in theirs.shape]))


def test_a_type_that_gguf_cannot_dequantise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    block, size = GGML_QUANT_SIZES[Kind.Q8_K]
    writer.add_tensor("x", np.zeros((2, size), np.uint8), raw_dtype=Kind.Q8_K)
    finish(writer, path)
    _, entries = read_header(path)
    assert entries["x"].shape == (2, block)
    with pytest.raises(TaskVecError, match="tensor x is of type Q8_K"):
        read_tensor(path, "x", entries["x"])


def test_unknown_keys_and_scaling_are_refused(tmp_path: Path) -> None:
    theirs = hf.random_model(hf.llama())
    for key, value, message in (
        ("llama.rope.scaling.type", "yarn", "rope.scaling.type is 'yarn'"),
        ("llama.expert_count", 8, r"keys \['expert_count'\]"),
        ("llama.logit_scale", 3, r"keys \['logit_scale'\]"),
    ):
        path = tmp_path / f"{key}.gguf"
        write_llama(theirs, path, extra={key: value})
        with pytest.raises(TaskVecError, match=message):
            load_model(path)


# Tokenizers


PIECES = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3),
    *[(f"<0x{i:02X}>", 0.0, 6) for i in range(256)],
    ("▁a", -1.0, 1), ("th", -2.0, 1), ("▁th", -3.0, 1), ("▁the", -4.0, 1), ("he", -5.0, 1),
    ("▁t", -6.0, 1), ("->", -7.0, 1), ("▁▁", -8.0, 1), ("at", -9.0, 1), ("cat", -10.0, 1),
    ("▁", -11.0, 1), *[(c, -12.0 - i, 1) for i, c in enumerate("aehtc->xyz:b")],
]  # fmt: skip


def spm_by_hand(text: str) -> list[int]:
    """Sentencepiece's BPE as its authors define it: join the best-scored neighbours, leftmost
    first, until no union is a piece; what is not a piece becomes bytes."""
    ids = {piece: i for i, (piece, _, _) in enumerate(PIECES)}
    score = {piece: value for piece, value, kind in PIECES if kind == 1}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [
            (-score[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in score
        ]
        if not joins:
            break
        _, i = min(joins)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    out = [1]
    for part in parts:
        out += [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]
    return out


TEXTS = ["the cat", "a  the->", "that hat: the", "x->é\n", "", "catthe cat", "->->-->", "ü"]


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + np.float32(value).tobytes()
    return varint(number << 3) + varint(value)


def sentencepiece_file(path: Path, kind: int = 2, **normalizer: int) -> Path:
    body = b"".join(
        field(1, field(1, piece.encode()) + field(2, score) + field(3, type_))
        for piece, score, type_ in PIECES
    )
    body += field(2, field(3, kind) + field(35, 1) + field(41, 1))
    settings = {"add_dummy_prefix": 1, "remove_extra_whitespaces": 0, **normalizer}
    body += field(
        3,
        field(3, settings["add_dummy_prefix"]) + field(4, settings["remove_extra_whitespaces"]),
    )
    path.write_bytes(body)
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_a_bare_tokenizer_model_reads_as_sentencepiece_does(text: str, tmp_path: Path) -> None:
    built = read_sentencepieces(sentencepiece_file(tmp_path / "tokenizer.model"), add_bos=True)
    assert built.encode(text).ids == (spm_by_hand(text) if text else [1])


def spm_meta(**changes: Any) -> dict[str, Any]:
    pieces, scores, kinds = zip(*PIECES, strict=True)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.token_type": list(kinds),
        "tokenizer.ggml.bos_token_id": 1,
        **changes,
    }


@pytest.mark.parametrize("text", TEXTS[:4])
def test_a_gguf_sentencepiece_tokenizer_is_the_same(text: str, tmp_path: Path) -> None:
    bare = read_sentencepieces(sentencepiece_file(tmp_path / "tokenizer.model"), add_bos=True)
    built = from_gguf(spm_meta(), "here")
    assert built.encode(text).ids == bare.encode(text).ids == spm_by_hand(text)
    without = from_gguf(spm_meta(**{"tokenizer.ggml.add_bos_token": False}), "here")
    assert without.encode(text).ids == spm_by_hand(text)[1:]


def test_text_comes_back_from_sentencepiece_tokens(tmp_path: Path) -> None:
    built = read_sentencepieces(sentencepiece_file(tmp_path / "tokenizer.model"), add_bos=True)
    for text in ("the cat", "a  the->", "x->é", " that"):
        assert built.decode(built.encode(text).ids) == text


def test_extra_whitespace_is_dropped_where_the_model_says_so(tmp_path: Path) -> None:
    path = sentencepiece_file(tmp_path / "tokenizer.model", remove_extra_whitespaces=1)
    built = read_sentencepieces(path, add_bos=True)
    assert built.encode("  the   cat ").ids == spm_by_hand("the cat")


def test_a_directory_with_a_bare_tokenizer_model_loads(tmp_path: Path) -> None:
    theirs = hf.random_model(hf.llama(vocab_size=len(PIECES)))
    directory = hf.save(theirs, tmp_path)
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    sentencepiece_file(directory / "tokenizer.model")
    ours = load_model(directory)
    assert ours.tokenizer.encode("the cat") == spm_by_hand("the cat")
    (directory / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert load_model(directory).tokenizer.encode("the cat") == spm_by_hand("the cat")[1:]


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0b", b"IQ==\n0", b"\xff" * 30],
)
def test_a_damaged_tokenizer_model_is_refused(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(damage)
    with pytest.raises(TaskVecError, match="not a whole sentencepiece model"):
        read_sentencepieces(tmp_path / "tokenizer.model", add_bos=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer 'rwkv' is not supported"),
        ({"tokenizer.ggml.tokens": None}, "has no tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "do not match"),
        ({"tokenizer.ggml.scores": None}, "scores or types are damaged"),
        ({"tokenizer.ggml.scores": [float("nan")] * len(PIECES)}, "the score of '<unk>' is nan"),
        ({"tokenizer.ggml.bos_token_id": 10**9}, "BOS token is 1000000000"),
        ({"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": -1}, "EOS token is"),
        ({"tokenizer.ggml.precompiled_charsmap": [1, 256]}, "precompiled_charsmap holds numbers"),
        ({"tokenizer.ggml.precompiled_charsmap": "abc"}, "precompiled_charsmap is not an array"),
        ({"tokenizer.ggml.add_bos_token": 7}, "add_bos_token is '7'; allowed: true, false"),
        ({"tokenizer.ggml.tokens": ["<unk>"] * len(PIECES)}, "not a whole sentencepiece model"),
        ({"tokenizer.ggml.model": "gpt2"}, "pre-tokenizer 'None' is not supported"),
    ],
)
def test_damaged_gguf_tokenizers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskVecError, match=message):
        from_gguf(spm_meta(**changes), "here")


def test_llama_3_splits_digits_in_threes_and_begins_with_bos() -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "12", "123", "45", "<|begin|>"]
    meta = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.merges": ["1 2", "12 3", "4 5"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
    }
    built = from_gguf(meta, "here")
    assert built.encode("12345").tokens == ["<|begin|>", "123", "45"]
    assert built.decode(built.encode("12345 é").ids) == "12345 é"


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_gguf_that_adds_eos_adds_it(model: str) -> None:
    meta = spm_meta(
        **{
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": True,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )
    built = from_gguf(meta, "here")
    plain = built.encode("a", add_special_tokens=False).ids
    assert built.encode("a").ids == [1, *plain, 2]


def test_a_gptneox_file_of_before_pre_tokenizers_splits_as_gpt_2(tmp_path: Path) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    meta = {
        "general.architecture": "gptneox",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*alphabet, "ab"],
        "tokenizer.ggml.token_type": [1] * (len(alphabet) + 1),
        "tokenizer.ggml.merges": ["a b"],
    }
    assert from_gguf(meta, "here").encode("ab b").tokens == ["ab", "Ġ", "b"]


def test_the_weights_of_a_gguf_are_cast_on_the_way(tmp_path: Path) -> None:
    path = write_llama(hf.random_model(hf.llama()), tmp_path / "m.gguf")
    leaves = flatten(convert(path, "bfloat16").params)
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"bfloat16"}
