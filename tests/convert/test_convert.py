"""Weights survive the way here and back, whatever they came in, and damage is named."""

# Long because: every format is made, converted and compared in the same way.

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import hf
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from convert import convert, open_model
from convert.export import export
from convert.families.llama import config_from_hf
from convert.formats import safetensors_file
from convert.formats.sources import open_weights
from convert.formats.torch_file import TorchFile
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.decoder import flatten

TOKENS = np.array([5, 71, 2, 33, 99, 14, 14, 60])


@pytest.fixture(scope="module")
def llama_model() -> Any:
    return hf.random_model(hf.llama(tie_word_embeddings=False))


@pytest.fixture
def llama_directory(llama_model: Any, tmp_path: Path) -> Path:
    return hf.save(llama_model, tmp_path / "llama")


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(directory / "model.safetensors")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def back(directory: Path, out: Path, dtype: str | None = None) -> None:
    converted = convert(directory, dtype)
    export(converted.config, converted.params, Tokenizer(converted.tokenizer), out)


@pytest.mark.parametrize("name", hf.CONFIGS)
def test_the_round_trip_is_bit_exact(name: str, tmp_path: Path) -> None:
    source = hf.save(hf.random_model(hf.CONFIGS[name]()), tmp_path / "source")
    back(source, tmp_path / "back")
    before, after = tensors_of(source), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        assert value.dtype == after[tensor].dtype
        np.testing.assert_array_equal(value, after[tensor], err_msg=tensor)
    again, first = convert(tmp_path / "back", None), convert(source, None)
    assert again.config == first.config


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "neox", "gptj"])
def test_half_precision_makes_the_round_trip_bit_for_bit(
    name: str, dtype: str, tmp_path: Path
) -> None:
    model = hf.random_model(hf.CONFIGS[name]()).to(getattr(torch, dtype))
    source = hf.save(model, tmp_path / "source")
    assert open_model(source, None).config.dtype == dtype
    back(source, tmp_path / "back")
    before = (source / "model.safetensors", tmp_path / "back" / "model.safetensors")
    one, two = (safetensors_file.read_header(path) for path in before)
    assert one.keys() == two.keys()
    for tensor in one:
        a = safetensors_file.read_tensor(before[0], one[tensor])
        b = safetensors_file.read_tensor(before[1], two[tensor])
        assert a.tobytes() == b.tobytes(), tensor


@pytest.mark.parametrize("name", ["llama-rope-llama3", "neox-sequential", "gptj"])
def test_transformers_reads_what_we_export(name: str, tmp_path: Path) -> None:
    theirs = hf.random_model(hf.CONFIGS[name]())
    back(hf.save(theirs, tmp_path / "source"), tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    hf.assert_same(hf.run_hf(again, TOKENS), hf.run_hf(theirs, TOKENS), 1e-6)


def test_shards_with_an_index_equal_one_file(llama_model: Any, tmp_path: Path) -> None:
    one = hf.save(llama_model, tmp_path / "one")
    many = hf.save(llama_model, tmp_path / "many", max_shard_size="40KB")
    assert len(list(many.glob("model-*.safetensors"))) > 2
    assert_same_leaves(one, many)


def assert_same_leaves(one: Path, two: Path) -> None:
    a, b = convert(one, "float32"), convert(two, "float32")
    assert a.config == b.config
    for path, leaf in flatten(a.params).items():
        np.testing.assert_array_equal(leaf, flatten(b.params)[path], err_msg=path)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_old_bin_files_equal_safetensors(
    llama_model: Any, tmp_path: Path, sharded: bool, dtype: str
) -> None:
    model = hf.random_model(hf.llama()).to(getattr(torch, dtype))
    one = hf.save(model, tmp_path / "one")
    old = tmp_path / "old"
    shutil.copytree(one, old)
    (old / "model.safetensors").unlink()
    save_bin(model.state_dict(), old, 3 if sharded else 1)
    assert_same_leaves(one, old)


def save_bin(state: dict[str, torch.Tensor], directory: Path, shards: int) -> None:
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return
    index = {}
    for i in range(shards):
        name = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(state.items())[i::shards])
        torch.save(part, directory / name)
        index |= dict.fromkeys(part, name)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def test_bin_files_of_before_torch_1_6_are_read(llama_model: Any, tmp_path: Path) -> None:
    one = hf.save(llama_model, tmp_path / "one")
    old = tmp_path / "old"
    shutil.copytree(one, old)
    (old / "model.safetensors").unlink()
    torch.save(
        llama_model.state_dict(), old / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    assert_same_leaves(one, old)


class Hostile:
    def __reduce__(self) -> Any:
        return (open, ("/tmp/taskvec-hostile-pickle", "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    llama_directory: Path, zipped: bool
) -> None:
    (llama_directory / "model.safetensors").unlink()
    path = llama_directory / "pytorch_model.bin"
    if zipped:
        torch.save({"x": Hostile()}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Hostile()}))
    with pytest.raises(TaskVecError, match="not a whole torch file of plain tensors"):
        load_model(llama_directory)
    assert not Path("/tmp/taskvec-hostile-pickle").exists()


def test_torchs_files_are_read_without_torch_but_those_of_before_1_6(
    llama_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {name: tensor.numpy() for name, tensor in llama_model.state_dict().items()}
    save_bin(llama_model.state_dict(), tmp_path, 2)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    source = open_weights(tmp_path)
    assert source.shapes().keys() == saved.keys()
    for name, tensor in saved.items():
        np.testing.assert_array_equal(source.read(name), tensor, name)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"no zip")
    with pytest.raises(TaskVecError, match=r"only torch reads .*'taskvec-jax\[torch\]'"):
        open_weights(tmp_path)


def test_tensors_of_a_torch_file_may_be_views(tmp_path: Path) -> None:
    x = torch.arange(42.0).reshape(6, 7)
    saved = {
        "whole": x,
        "turned": x.T,
        "part": x[2:4, 1:6:2],
        "parameter": torch.nn.Parameter(x[0]),
        "none": x[:0],
        "number": x[3, 3],
        "bfloat16": x.bfloat16(),
        "bool": x > 9,
    }
    torch.save(saved, tmp_path / "x.bin")
    file = TorchFile(tmp_path / "x.bin")
    assert file.entries.keys() == saved.keys()
    for name, tensor in saved.items():
        got = file.read(name)
        assert (got.shape, got.dtype) == (tuple(tensor.shape), file.entries[name].dtype), name
        np.testing.assert_array_equal(got.astype(np.float32), tensor.detach().float().numpy(), name)
    torch.save({"much of little": torch.zeros(1).expand(2**40)}, tmp_path / "x.bin")
    with pytest.raises(TaskVecError, match=r"a tensor of shape .* has 1 numbers"):
        TorchFile(tmp_path / "x.bin")


def meta_state(model: Any) -> dict[str, torch.Tensor]:
    """Names and row order of Meta's own release, from Hugging Face's: the inverse of what
    transformers' convert_llama_weights_to_hf does to it."""
    c = model.config
    names = {
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
        "model.layers": "layers",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = {}
    for name, value in model.state_dict().items():
        for heads, end in ((c.num_attention_heads, "q_proj"), (c.num_key_value_heads, "k_proj")):
            if end in name:
                width = value.shape[1]
                value = value.view(heads, 2, -1, width).transpose(1, 2).reshape(-1, width)
        for ours, theirs in names.items():
            name = name.replace(ours + ".", theirs + ".")
        state[name] = value.clone()
    state["rope.freqs"] = torch.ones(3)
    return state


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("split_rows_of_embedding", [False, True])
def test_metas_own_release_equals_hugging_face(
    tmp_path: Path, shards: int, split_rows_of_embedding: bool
) -> None:
    config = hf.llama(
        hidden_size=84, head_dim=14, num_key_value_heads=2, intermediate_size=58, vocab_size=102
    )
    theirs = hf.random_model(config)
    one = hf.save(theirs, tmp_path / "one")
    meta = tmp_path / "meta" / "7B"
    meta.mkdir(parents=True)
    params = {"dim": 84, "n_heads": 6, "n_kv_heads": 2, "n_layers": 3, "norm_eps": 1e-5}
    (meta / "params.json").write_text(json.dumps({**params, "vocab_size": -1, "multiple_of": 2}))
    shutil.copy(one / "tokenizer.json", tmp_path / "meta" / "tokenizer.json")
    shutil.copy(one / "tokenizer_config.json", tmp_path / "meta" / "tokenizer_config.json")
    for i in range(shards):
        part = {}
        for name, value in meta_state(theirs).items():
            axis = 1 if name.endswith(("wo.weight", "w2.weight")) else 0
            if name == "tok_embeddings.weight" and not split_rows_of_embedding:
                axis = 1
            part[name] = value if value.ndim < 2 else value.chunk(shards, axis)[i].clone()
        torch.save(part, meta / f"consolidated.{i:02d}.pth")
    ours = load_model(meta)
    hf.assert_same(hf.run_ours(ours, TOKENS), hf.run_hf(theirs, TOKENS))
    for path, leaf in flatten(convert(one, "float32").params).items():
        np.testing.assert_array_equal(leaf, flatten(ours.params)[path], err_msg=path)


def rewrite(directory: Path, change: Any) -> None:
    tensors = {name: value.copy() for name, value in tensors_of(directory).items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")


def test_a_tied_model_may_store_its_unembedding_too(tmp_path: Path) -> None:
    source = hf.save(hf.random_model(hf.llama(tie_word_embeddings=True)), tmp_path)
    plain = convert(source, None)

    def store(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    rewrite(source, store)
    stored = convert(source, None)
    assert plain.config == stored.config
    np.testing.assert_array_equal(
        flatten(plain.params)["embed/embedding"], flatten(stored.params)["embed/embedding"]
    )

    def differ(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"][3, 4] += 1e-3

    rewrite(source, differ)
    with pytest.raises(TaskVecError, match=r"the config ties lm_head\.weight .* differ"):
        convert(source, None)


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), f"missing {Q}"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), r"unknown extra \(3,\)"),
        (lambda t: t.update({Q: t[Q][:-1]}), "has shape"),
        (lambda t: t.update({Q: t[Q].T.copy()}), "has shape"),
        (lambda t: t.update({Q: np.full_like(t[Q], np.nan)}), "values that are not finite"),
        (lambda t: t.update({Q: np.full_like(t[Q], np.inf)}), "values that are not finite"),
        (lambda t: t.update({Q: t[Q].astype(np.int32)}), "is of type int32"),
    ],
)
def test_damaged_tensors_are_named(llama_directory: Path, change: Any, message: str) -> None:
    rewrite(llama_directory, change)
    with pytest.raises(TaskVecError, match=message):
        load_model(llama_directory)


def test_values_that_overflow_in_the_chosen_dtype_are_refused(llama_directory: Path) -> None:
    rewrite(llama_directory, lambda t: t.update({Q: t[Q] + 1e5}))
    assert convert(llama_directory, "bfloat16").config.dtype == "bfloat16"
    with pytest.raises(TaskVecError, match="overflows in float16"):
        convert(llama_directory, "float16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({Q: "../outside.safetensors"}), "allowed: files of its own directory"),
        (lambda m: m.update({Q: "/etc/passwd"}), "allowed: files of its own directory"),
        (lambda m: m.update({Q: 3}), "allowed: files of its own directory"),
        (lambda m: m.update({Q: "model-00009-of-00009.safetensors"}), "not there"),
        (lambda m: m.pop(Q), "index and its files disagree"),
        (lambda m: m.clear(), "has no weight_map"),
        (lambda m: swap(m), "index and its files disagree"),
    ],
)
def test_a_wrong_index_is_refused(
    llama_model: Any, tmp_path: Path, change: Any, message: str
) -> None:
    many = hf.save(llama_model, tmp_path / "many", max_shard_size="40KB")
    index = many / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    change(raw["weight_map"])
    index.write_text(json.dumps(raw))
    with pytest.raises(TaskVecError, match=message):
        load_model(many)


def swap(weight_map: dict[str, str]) -> None:
    files = sorted(set(weight_map.values()))
    weight_map[Q] = next(name for name in files if name != weight_map[Q])


def test_a_tensor_in_two_shards_is_refused(llama_model: Any, tmp_path: Path) -> None:
    many = hf.save(llama_model, tmp_path / "many", max_shard_size="40KB")
    first, second, *_ = sorted(many.glob("model-*.safetensors"))
    tensors = safetensors.numpy.load_file(second) | safetensors.numpy.load_file(first)
    safetensors.numpy.save_file(tensors, second)
    with pytest.raises(TaskVecError, match="is in two files"):
        load_model(many)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, "type is 'spiral'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor is missing"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantized by an unnamed method"),
        ({"text_config": {"hidden_size": 3}}, r"reads the keys \['text_config'\]"),
        ({"num_hidden_layers": 10**12}, "layers"),
        ({"num_attention_heads": 0}, "must be above 0"),
        ({"rms_norm_eps": 1e400}, "rms_norm_eps"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"head_dim": 15}, "rope_dim is 15"),
        ({"num_key_value_heads": 4}, "does not divide"),
    ],
)
def test_configs_that_change_the_mathematics_are_refused(
    llama_directory: Path, changes: dict[str, Any], message: str
) -> None:
    edit(llama_directory / "config.json", **changes)
    with pytest.raises(TaskVecError, match=message):
        load_model(llama_directory)


def test_the_tokenizer_of_another_model_is_refused(llama_directory: Path) -> None:
    hf.save_tokenizer(llama_directory, 102)
    with pytest.raises(TaskVecError, match="the tokenizer has token ids up to 101"):
        load_model(llama_directory)


def test_a_tokenizer_much_too_small_is_refused(tmp_path: Path) -> None:
    source = hf.save(hf.random_model(hf.llama(vocab_size=4001)), tmp_path)
    hf.save_tokenizer(source, 2903)
    with pytest.raises(TaskVecError, match="the tokenizer has 2903 tokens, the embedding 4001"):
        load_model(source)


def test_a_sliding_window_is_its_own_setting_and_the_context_stays(tmp_path: Path) -> None:
    ours = load_model(hf.save(hf.random_model(hf.mistral(sliding_window=7)), tmp_path))
    assert (ours.config.sliding_window, ours.config.max_length) == (7, 83)
    with pytest.raises(TaskVecError, match="84 tokens in a text; this model reads at most 83"):
        ours.decoder.apply(ours.params, np.ones((1, 84), np.int32))


@pytest.mark.parametrize(
    ("said", "window"), [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 5}, 5)]
)
def test_an_absent_window_is_transformers_default_and_null_is_none(
    said: dict[str, Any], window: int | None
) -> None:
    raw = {**hf.mistral().to_dict(), "sliding_window": None}
    raw = {key: value for key, value in raw.items() if key != "sliding_window"}
    assert config_from_hf({**raw, **said}, "config.json", "float32").sliding_window == window


def test_leaves_are_handed_on_as_soon_as_they_are_complete(llama_directory: Path) -> None:
    seen: list[str] = []
    alive: list[int] = []

    def place(path: str, leaf: np.ndarray) -> str:
        seen.append(path)
        alive.append(leaf.nbytes)
        return path

    converted = convert(llama_directory, "float32", place=place)
    assert flatten(converted.params) == {path: path for path in sorted(seen)}
    assert len(seen) == len(set(seen))
