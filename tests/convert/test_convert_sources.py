"""Which files a model is read from, and what lies beside them: as transformers and llama.cpp do."""

# Long because: every combination of files in a directory is a case.

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import hf
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from test_convert_gguf import finish, write_llama

from convert import convert, open_model, read_config
from convert.fetch import hub
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.decoder import flatten

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 12,
    "head_dim": 4,
    "intermediate_size": 17,
}
TOKENS = np.array([5, 7, 2, 30, 14, 14, 6])


def model(seed: int, **changes: Any) -> Any:
    return hf.random_model(hf.llama(**{**SMALL, **changes}), seed=seed)


def embedding_of(directory: Path) -> np.ndarray:
    return np.asarray(flatten(convert(directory, "float32").params)["embed/embedding"])


def embedding_in(theirs: Any) -> np.ndarray:
    """V x D, as transformers has it in memory."""
    return theirs.get_input_embeddings().weight.detach().numpy()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Which of several files


FORMS = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
         "pytorch_model.bin.index.json"]  # fmt: skip


def save_form(saved: Any, directory: Path, form: str) -> None:
    """The weights in one of four forms, every one under the names that transformers gives it."""
    state = {name: value.contiguous() for name, value in saved.state_dict().items()}
    if not form.endswith(".index.json"):
        parts = {form: state}
    else:
        stem, end = form.removesuffix(".index.json").split(".")
        names = [f"{stem}-0000{i + 1}-of-00002.{end}" for i in range(2)]
        parts = {name: dict(list(state.items())[i::2]) for i, name in enumerate(names)}
        index = {tensor: name for name, part in parts.items() for tensor in part}
        (directory / form).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for name, part in parts.items():
        if name.endswith(".bin"):
            torch.save(part, directory / name)
        else:
            safetensors.torch.save_file(part, directory / name, metadata={"format": "pt"})


def test_of_several_forms_the_one_is_read_that_transformers_reads(tmp_path: Path) -> None:
    """All four at first, then without the one that was read, and so on."""
    directory = hf.save(model(0), tmp_path / "all")
    (directory / "model.safetensors").unlink()
    for seed, form in enumerate(FORMS):
        save_form(model(seed), directory, form)
    for form in FORMS:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
        right = embedding_in(theirs)
        np.testing.assert_array_equal(embedding_of(directory), right, err_msg=form)
        (directory / form).unlink()


def test_weights_that_the_config_names_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    directory = hf.save(model(1), tmp_path)
    safetensors.torch.save_file(
        dict(model(2).state_dict()), directory / "other.safetensors", metadata={"format": "pt"}
    )
    edit(directory / "config.json", transformers_weights="other.safetensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    right = embedding_in(theirs)
    np.testing.assert_array_equal(embedding_of(directory), right)
    for named in ("../other.safetensors", "nowhere.safetensors", "config.json", 3):
        edit(directory / "config.json", transformers_weights=named)
        with pytest.raises(TaskVecError, match="names the weights"):
            convert(directory, None)


def test_a_distributed_checkpoint_is_refused_for_transformers_reads_it_first(
    tmp_path: Path,
) -> None:
    directory = hf.save(model(1), tmp_path)
    name = "shard-00000-model-00001-of-00001.safetensors"
    shutil.copy(directory / "model.safetensors", directory / name)
    with pytest.raises(TaskVecError, match=f"holds a distributed checkpoint .{name}"):
        convert(directory, None)


def test_weights_in_other_forms_are_named_where_none_is_read(tmp_path: Path) -> None:
    directory = hf.save(model(1), tmp_path / "hf")
    (directory / "model.safetensors").rename(directory / "model.fp16.safetensors")
    with pytest.raises(TaskVecError, match=r"no weights here.*Here are model\.fp16\.safetensors"):
        convert(directory, None)
    write_llama(model(1), directory / "m.gguf")
    with pytest.raises(TaskVecError, match=r"give a \.gguf file by its own path"):
        convert(directory, None)
    (directory / "config.json").unlink()
    with pytest.raises(TaskVecError, match=r"no model here.*m\.gguf"):
        convert(directory, None)
    with pytest.raises(TaskVecError, match="give the directory it lies in"):
        convert(directory / "model.fp16.safetensors", None)


# Only what is used is looked at


def sharded(directory: Path, saved: Any) -> dict[str, Any]:
    hf.save(saved, directory, max_shard_size="4KB")
    return json.loads((directory / "model.safetensors.index.json").read_text())


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight", "extra.buffer"]
)
def test_an_index_may_name_what_is_not_used(tmp_path: Path, name: str) -> None:
    """A buffer of an old release, or an unembedding that a tied model's shards leave out."""
    saved = model(1, tie_word_embeddings=True)
    index = sharded(tmp_path, saved)
    index["weight_map"][name] = next(iter(index["weight_map"].values()))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(
        embedding_of(tmp_path), saved.get_input_embeddings().weight.detach().numpy()
    )


def test_a_buffer_may_lie_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path, model(1))
    for path in sorted(tmp_path.glob("model-*.safetensors"))[:2]:
        tensors = safetensors.torch.load_file(path)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        safetensors.torch.save_file(tensors, path)
    np.testing.assert_array_equal(
        embedding_of(tmp_path), model(1).get_input_embeddings().weight.detach().numpy()
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_dtype_is_that_of_the_parameters(tmp_path: Path, tied: bool) -> None:
    directory = hf.save(model(1, tie_word_embeddings=tied).bfloat16(), tmp_path)
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].float()
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    assert open_model(directory, None).config.dtype == "bfloat16"
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    assert open_model(directory, None).config.dtype == "float32"


def test_a_file_that_is_gone_when_its_tensors_are_read_is_one_line(tmp_path: Path) -> None:
    source = open_model(hf.save(model(1), tmp_path), None).source
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TaskVecError, match=r"model\.safetensors: cannot be read .No such file"):
        source.read("model.norm.weight")


# Split GGUF files


def split_gguf(whole: Path, directory: Path, first: int = 5) -> list[Path]:
    """What llama.cpp's gguf-split makes: metadata in the first part, tensors in order."""
    reader = gguf.GGUFReader(whole)
    tensors = list(reader.tensors)
    cuts = [0, first, len(tensors) // 2, len(tensors)]
    paths = [directory / f"m-0000{i + 1}-of-00003.gguf" for i in range(3)]
    directory.mkdir(exist_ok=True)
    for i, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if i:
            writer.kv_data[0].clear()
        else:
            for key, field in reader.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    inner = field.types[1] if len(field.types) > 1 else None
                    writer.add_key_value(key, field.contents(), field.types[0], inner)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[cuts[i] : cuts[i + 1]]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        finish(writer, path)
    return paths


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(model(1), tmp_path_factory.mktemp("whole") / "m.gguf")


@pytest.mark.parametrize("first", [0, 5])
def test_a_split_gguf_is_read_whole_whichever_part_is_named(
    whole: Path, tmp_path: Path, first: int
) -> None:
    expected = convert(whole, None)
    parts = split_gguf(whole, tmp_path / "parts", first)
    for part in parts:
        opened = open_model(part, None)
        assert opened.files == parts
        got = convert(part, None)
        assert got.config == expected.config
        assert not got.config.tied_unembed
        assert Tokenizer(got.tokenizer).sha256 == Tokenizer(expected.tokenizer).sha256
        for path, leaf in flatten(expected.params).items():
            np.testing.assert_array_equal(leaf, flatten(got.params)[path], err_msg=path)


def test_what_the_gguf_package_splits_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full(3, i, np.float32))
    finish(writer, tmp_path / "x.gguf")
    from convert.formats.sources import GGUFSource

    source = GGUFSource(tmp_path / "x-00002-of-00003.gguf")
    assert [source.read(f"t{i}").tolist() for i in range(5)] == [[float(i)] * 3 for i in range(5)]


def drop(parts: list[Path]) -> None:
    parts[1].unlink()


def rename(parts: list[Path]) -> None:
    for part in parts:
        shutil.copy(part, part.with_name(part.name.replace("m-", "").replace(".gguf", "x.gguf")))
        part.rename(part.with_name(f"p{part.name[6]}.gguf"))


def repeat(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])


def swap(parts: list[Path]) -> None:
    data = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(data)


def of_another_model(parts: list[Path]) -> None:
    other = write_llama(model(1, num_hidden_layers=2), parts[0].with_name("o.gguf"))
    shutil.copy(split_gguf(other, parts[0].with_name("other"))[2], parts[2])


def of_another_split(parts: list[Path]) -> None:
    other = write_llama(model(1), parts[0].with_name("o.gguf"))
    shutil.copy(split_gguf(other, parts[0].with_name("other"), first=7)[0], parts[0])


def of_another_name(parts: list[Path]) -> None:
    for part in parts:
        part.rename(part.with_name(part.name.replace("of-00003", "of-00004")))


def cut(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[2].read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"split GGUF of 3 files, of which m-00002-of-00003\.gguf are not there"),
        (rename, r"are named NAME-00001-of-00003\.gguf"),
        (of_another_name, r"are named NAME-00001-of-00003\.gguf"),
        (repeat, r"m-00003-of-00003\.gguf: is a part of a split GGUF that does not fit"),
        (swap, r"m-00002-of-00003\.gguf: is a part of a split GGUF that does not fit"),
        (of_another_model, r"m-00003-of-00003\.gguf: is a part of a split GGUF that does not fit"),
        (of_another_split, "is a part of a split GGUF that does not fit the others: tensor"),
        (cut, r"m-00003-of-00003\.gguf: not a whole GGUF file"),
    ],
)
def test_parts_that_do_not_make_a_model_are_refused_by_that_name(
    whole: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    parts = split_gguf(whole, tmp_path / "parts")
    damage(parts)
    named = sorted((tmp_path / "parts").glob("*.gguf"))[0]
    with pytest.raises(TaskVecError, match=message):
        load_model(named)


@pytest.mark.parametrize(
    ("extra", "name", "message"),
    [
        ({"split.count": 2}, "m-00001-of-00002.gguf", r"m-00002-of-00002\.gguf are not there"),
        ({"split.count": 2}, "m.gguf", "is a part of a split GGUF of 2 files"),
        ({"split.count": "2"}, "m.gguf", r"split\.count is '2'"),
        ({"split.count": 2**31}, "m.gguf", r"split\.count is '2147483648'"),
        ({"split.no": 1}, "m.gguf", "are those of a part"),
        ({"split.tensors.count": 99}, "m.gguf", "are those of a part"),
        ({}, "m-00001-of-00002.gguf", "is a part of a split GGUF by its name"),
    ],
)
def test_one_part_alone_is_never_taken_for_a_model(
    tmp_path: Path, extra: Any, name: str, message: str
) -> None:
    path = write_llama(model(1, tie_word_embeddings=True), tmp_path / name, extra=extra)
    with pytest.raises(TaskVecError, match=message):
        load_model(path)


def test_a_split_of_one_file_is_a_model(tmp_path: Path) -> None:
    extra = {"split.no": 0, "split.count": 1}
    path = write_llama(model(1), tmp_path / "m-00001-of-00001.gguf", extra=extra)
    assert open_model(path, None).config.num_layers == 3


# What is no model, or not this one alone


def add_adapter(directory: Path, *names: str) -> None:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text('{"peft_type": "LORA"}')


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize("names", [ADAPTER, ADAPTER[:1], ADAPTER[1:], ("adapter_model.bin",)])
def test_an_adapter_is_refused_with_the_way_to_merge_it(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    directory = hf.save(model(1), tmp_path / "beside")
    add_adapter(directory, *names)
    add_adapter(tmp_path / "alone", *names)
    for place in (directory, tmp_path / "alone"):
        with pytest.raises(TaskVecError, match=r"holds an adapter .*merge_and_unload"):
            load_model(place)
    with pytest.raises(TaskVecError, match="holds an adapter"):
        read_config(directory)


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("llama", {"general.type": "adapter", "adapter.type": "lora"}, "is a LoRA adapter"),
        ("llama", {"adapter.type": "lora"}, "is a LoRA adapter"),
        ("llama", {"general.type": "imatrix"}, "is an importance matrix"),
        ("llama", {"general.type": "dataset"}, "general.type is 'dataset'"),
        ("controlvector", {"controlvector.model_hint": "llama"}, "is a control vector"),
        ("clip", {"general.type": "mmproj"}, "encoder of a multimodal model"),
        ("clip", {}, "encoder of a multimodal model"),
    ],
)
def test_gguf_files_that_hold_no_model_are_called_what_they_are(
    tmp_path: Path, architecture: str, keys: dict[str, str], message: str
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", architecture)
    for key, value in keys.items():
        writer.add_string(key, value)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 12), np.float32))
    finish(writer, tmp_path / "x.gguf")
    with pytest.raises(TaskVecError, match=message):
        load_model(tmp_path / "x.gguf")


def test_a_gguf_of_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(3)
    finish(writer, tmp_path / "x.gguf")
    with pytest.raises(TaskVecError, match="holds no tensors"):
        load_model(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quantization_config", {"quant_method": "fp8"}, "quantized by FP8"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "quantized by GPTQ"),
        ("quantization_config", {"quant_method": "awq"}, "quantized by AWQ"),
        ("quantization_config", {"quant_method": "mxfp4"}, "quantized by MXFP4"),
        (
            "quantization_config",
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "quantized by bitsandbytes 4-bit",
        ),
        ("quantization_config", {"load_in_8bit": True}, "quantized by bitsandbytes 8-bit"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "by compressed-tensors"),
        ("quantization", {"group_size": 64, "bits": 4}, "quantized by an unnamed method"),
    ],
)
def test_quantized_weights_are_refused_by_their_method(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    directory = hf.save(model(1), tmp_path)
    edit(directory / "config.json", **{key: value})
    for load in (load_model, read_config):
        with pytest.raises(TaskVecError, match=rf"{message}.*Use the original weights"):
            load(directory)
    edit(directory / "config.json", **{key: None})
    assert open_model(directory, None).config.num_layers == 3


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        ("q_proj.weight_scale_inv", "FP8"), ("q_proj.qweight", "GPTQ or AWQ"),
        ("q_proj.SCB", "bitsandbytes"), ("q_proj.weight.absmax", "bitsandbytes"),
        ("q_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("q_proj.weight_packed", "compressed-tensors"), ("q_proj_blocks", "MXFP4"),
    ],
)  # fmt: skip
def test_quantized_tensors_are_named_where_the_config_is_silent(
    tmp_path: Path, suffix: str, method: str
) -> None:
    directory = hf.save(model(1), tmp_path)
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    tensors[f"model.layers.0.self_attn.{suffix}"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    with pytest.raises(TaskVecError, match=f"quantized by {method} .tensor model.layers.0"):
        load_model(directory)


def test_fp8_numbers_are_named_where_the_config_is_silent(tmp_path: Path) -> None:
    directory = hf.save(model(1), tmp_path)
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    tensors = {n: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for n, v in tensors.items()}
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    with pytest.raises(TaskVecError, match=r"'F8_E4M3' \(FP8\).*use the original weights") as e:
        load_model(directory)
    assert "fetch it again" not in str(e.value)


# The hub


class Hub:
    """A repository in memory and its cache; what is asked of the network is written down."""

    def __init__(self, files: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files, self.snapshot, self.asked, self.online = files, snapshot, [], True
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def download(self, repository: str, revision: str | None = None, **how: Any) -> str:
        del repository, revision
        if not how.get("local_files_only"):
            self.asked.append("files")
            for name in how["allow_patterns"]:
                if not (self.snapshot / name).exists():
                    shutil.copy(self.files / name, self.snapshot / name)
        return str(self.snapshot)

    def list_repo_files(self, repository: str, revision: str | None = None) -> list[str]:
        del repository, revision
        if not self.online:
            raise ConnectionError("no route to host")
        self.asked.append("list")
        return [path.name for path in self.files.iterdir()]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    files = hf.save(model(1), tmp_path / "files")
    (files / "special_tokens_map.json").write_text("{}")
    (tmp_path / "snapshot").mkdir()
    return Hub(files, tmp_path / "snapshot", monkeypatch)


@pytest.mark.parametrize(
    "missing",
    ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"],
)
def test_what_a_snapshot_lacks_is_fetched(repository: Hub, missing: str) -> None:
    for path in repository.files.iterdir():
        if path.name != missing:
            shutil.copy(path, repository.snapshot)
    found = hub.fetch("Org/tiny", None)
    assert repository.asked == ["list", "files"]
    assert (found / missing).is_file()
    repository.asked.clear()
    assert hub.fetch("Org/tiny", None) == found
    assert repository.asked == []


def test_a_snapshot_whose_tokenizer_may_be_complete_is_used_without_a_network(
    repository: Hub,
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(repository.files / name, repository.snapshot)
    repository.online = False
    with pytest.raises(TaskVecError, match="is not on this machine and cannot be fetched"):
        hub.fetch("Org/tiny", None)
    (repository.snapshot / "tokenizer.model").write_bytes(b"x")
    assert hub.fetch("Org/tiny", None) == repository.snapshot


def test_a_repository_with_an_adapter_is_refused_before_its_weights_are_fetched(
    repository: Hub,
) -> None:
    add_adapter(repository.files, *ADAPTER)
    with pytest.raises(TaskVecError, match="Org/tiny: holds an adapter"):
        hub.fetch("Org/tiny", None)
    assert repository.asked == ["list"]


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "spiece.model", "spm.model", "sentencepiece.bpe.model", "vocab.json",
        "merges.txt", "vocab.txt", "tekken.json", "adapter_config.json",
    ],
)  # fmt: skip
def test_every_file_of_a_tokenizer_is_fetched(name: str) -> None:
    assert name in hub.wanted_files(["config.json", "model.safetensors", name])
    assert f"deep/{name}" not in hub.wanted_files(["model.safetensors", f"deep/{name}"])


def test_shards_are_fetched_with_their_index() -> None:
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    names = ["config.json", *shards, "pytorch_model.bin.index.json"]
    assert hub.wanted_files(names) == names
    assert hub.wanted_files([*names, "pytorch_model.bin"]) == ["config.json", "pytorch_model.bin"]
