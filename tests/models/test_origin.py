"""A converted model stands for the files it was made from, not for a name."""

# Long because: all tests share two models that differ in their numbers alone.
from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hf
import huggingface_hub
import pytest

import convert.__main__ as command
from convert.fetch import wheel
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint, converting, names, origin
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.names import checkpoint_path
from taskvec_jax.models.registry import NAMED_MODELS, NamedModel, WheelFile

NAME = "SomeOrg/tiny"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one shape and one name: files of the same names and sizes."""
    top = tmp_path_factory.mktemp("two")
    made = [
        hf.save(hf.random_model(hf.llama(), seed), top / run / "final")
        for seed, run in enumerate(("runA", "runB"))
    ]
    return made[0], made[1]


@pytest.fixture(scope="module")
def hashes(two: tuple[Path, Path]) -> tuple[str, str]:
    """Of the weights of both, loaded straight from their source."""
    first, second = (load_model(path).weights_sha256 for path in two)
    assert first != second
    return first, second


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TASKVEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def copied(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def put_into_place(source: Path, target: Path) -> None:
    """The contents of another directory, in files that look as old as those they replace."""
    for path in source.iterdir():
        state = (target / path.name).stat()
        (target / path.name).write_bytes(path.read_bytes())
        os.utime(target / path.name, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_two_directories_of_one_name_are_two_models(two, hashes, monkeypatch) -> None:
    targets = []
    for path, expected in zip(two, hashes, strict=True):
        asked = SimpleNamespace(out=None, model=str(path), revision=None)
        monkeypatch.setattr(command, "FLAGS", asked)
        targets.append(command.target())
        assert targets[-1].name.startswith("final-")
        convert_model(path, targets[-1])
        assert load_model(targets[-1]).weights_sha256 == expected
    assert load_model(targets[0]).weights_sha256 == hashes[0]
    assert targets[0] != targets[1]


def test_a_path_written_in_another_way_is_the_same_model(two, tmp_path, monkeypatch) -> None:
    (tmp_path / "link").symlink_to(two[0])
    monkeypatch.chdir(two[0].parent)
    assert checkpoint_path("final") == checkpoint_path(str(two[0]))
    assert checkpoint_path(str(tmp_path / "link")) == checkpoint_path(str(two[0]))


def test_no_two_names_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("llama-7b.gguf", "SomeOrg--tiny", "pythia-14m"):
        (tmp_path / name).mkdir()
    asked = ["llama-7b", "./pythia-14m", "SomeOrg/tiny", "./SomeOrg--tiny", "./llama-7b.gguf"]
    asked += ["pythia-14m", "EleutherAI/pythia-14m", "/", "."]
    paths = [checkpoint_path(name) for name in asked]
    paths += [checkpoint_path(NAME, revision) for revision in ("a/b", "a--b", "a%2Fb")]
    assert len(set(paths)) == len(paths)
    assert {path.parent for path in paths} == {names.checkpoints_directory()}


def test_a_source_with_other_content_is_converted_again(two, hashes, tmp_path) -> None:
    source, out = copied(two[0], tmp_path / "source"), tmp_path / "out"
    convert_model(source, out)
    put_into_place(two[1], source)  # same names, sizes and times
    convert_model(source, out)
    assert checkpoint.read_manifest(out)["weights_sha256"] == hashes[1]
    assert load_model(out).weights_sha256 == hashes[1]


def test_a_source_with_another_tokenizer_or_config_is_converted_again(two, tmp_path) -> None:
    source, out = copied(two[0], tmp_path / "source"), tmp_path / "out"
    convert_model(source, out)
    before = load_model(out)
    raw = (source / "tokenizer.json").read_text()
    assert '"w1"' in raw
    (source / "tokenizer.json").write_text(raw.replace('"w1"', '"W1"'))
    convert_model(source, out)
    after = load_model(out)
    assert after.tokenizer.sha256 != before.tokenizer.sha256
    assert after.tokenizer.sha256 == load_model(source).tokenizer.sha256
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    convert_model(source, out)
    assert load_model(out).config.norm_eps == 0.25


def test_the_same_files_are_not_converted_again_wherever_they_lie(two, tmp_path) -> None:
    source, out = copied(two[0], tmp_path / "source"), tmp_path / "out"
    convert_model(source, out)
    made = (out / "manifest.json").stat().st_ino
    for path in source.iterdir():
        path.touch()
    (source / "README.md").write_text("what a model card says changes no number")
    convert_model(source, out)
    convert_model(source.rename(tmp_path / "moved"), out)
    assert (out / "manifest.json").stat().st_ino == made


def test_another_model_in_the_same_place_is_refused(two, hashes, tmp_path) -> None:
    convert_model(two[0], tmp_path / "out")
    with pytest.raises(TaskVecError, match=r"made from .*runA/final, not from .*runB/final; cho"):
        convert_model(two[1], tmp_path / "out")
    assert load_model(tmp_path / "out").weights_sha256 == hashes[0]


def test_a_manifest_without_hashes_vouches_for_nothing(two, hashes, tmp_path) -> None:
    source, out = copied(two[0], tmp_path / "source"), tmp_path / "out"
    convert_model(source, out)
    manifest = checkpoint.read_manifest(out)
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    (out / "manifest.json").write_text(json.dumps({**manifest, "files": sizes, "stat": {}}))
    put_into_place(two[1], source)
    convert_model(source, out)
    assert load_model(out).weights_sha256 == hashes[1]


def test_every_file_that_decides_the_model_is_recorded_with_size_and_hash(two, tmp_path) -> None:
    convert_model(two[0], tmp_path / "out")
    manifest = checkpoint.read_manifest(tmp_path / "out")
    assert manifest["source"] == str(two[0])
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(manifest["files"]) == expected
    for name, entry in manifest["files"].items():
        assert entry == {
            "bytes": (two[0] / name).stat().st_size,
            "sha256": wheel.sha256_of(two[0] / name),
        }


def test_a_file_is_read_again_only_if_it_may_have_changed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(origin, "SETTLED_SECONDS", -1e6)  # as if it had lain there for long
    path, digest = tmp_path / "weights", origin.hashlib.file_digest
    path.write_bytes(b"first")
    read: list[Any] = []
    monkeypatch.setattr(
        origin.hashlib, "file_digest", lambda file, how: read.append(file.name) or digest(file, how)
    )
    files, state = {"weights": path}, path.stat()
    made, states = origin.record(files)
    manifest = {"files": made, "stat": states}
    assert origin.is_same(files, manifest)
    assert len(read) == 1
    path.write_bytes(b"other")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not origin.is_same(files, manifest)
    assert len(read) == 2
    path.write_bytes(b"longer than that")
    assert not origin.is_same(files, manifest)
    assert len(read) == 2  # its size says enough


def test_the_state_of_a_file_that_has_just_changed_is_not_relied_on(tmp_path) -> None:
    """Two writes within one tick of the file system's clock leave one time."""
    (tmp_path / "weights").write_bytes(b"first")
    assert origin.record({"weights": tmp_path / "weights"})[1] == {}


def test_a_source_that_is_written_to_meanwhile_is_refused(two, tmp_path, monkeypatch) -> None:
    source = copied(two[0], tmp_path / "source")
    read = converting.read_foreign

    def disturbed(*args: Any) -> Any:
        put_into_place(two[1], source)
        return read(*args)

    monkeypatch.setattr(converting, "read_foreign", disturbed)
    with pytest.raises(TaskVecError, match=r"changed while it was read; convert again"):
        convert_model(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Cache:
    """The hub's own cache with one repository, and no network."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = path / f"models--{NAME.replace('/', '--')}"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

        def local(repository: str, revision: str | None = None, **how: Any) -> str:
            commit = (self.folder / "refs" / (revision or "main")).read_text()
            return str(self.folder / "snapshots" / commit)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", local)

    def put(self, files: Path, commit: str, revision: str = "main") -> Path:
        snapshot = self.folder / "snapshots" / commit
        if not snapshot.exists():
            shutil.copytree(files, snapshot)
        (self.folder / "refs").mkdir(exist_ok=True)
        (self.folder / "refs" / revision).write_text(commit)
        return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    return Cache(tmp_path / "hub", monkeypatch)


def test_a_branch_of_the_hub_that_has_moved_is_converted_again(cache, two, hashes) -> None:
    cache.put(two[0], "c0ffee")
    model = load_model(NAME)
    assert model.weights_sha256 == hashes[0]
    assert model.source == {"source": NAME, "revision": "default", "commit": "c0ffee"}
    files = checkpoint.read_manifest(checkpoint_path(NAME))["files"]
    assert files["model.safetensors"]["sha256"] == wheel.sha256_of(two[0] / "model.safetensors")
    snapshot = cache.put(two[1], "decade")
    (snapshot / "model.safetensors").rename(snapshot / "not-yet")
    assert load_model(NAME).weights_sha256 == hashes[0]  # the newer one is not whole
    (snapshot / "not-yet").rename(snapshot / "model.safetensors")
    again = load_model(NAME)
    assert again.weights_sha256 == hashes[1]
    assert again.source["commit"] == "decade"


def test_two_revisions_are_two_models(cache, two, hashes) -> None:
    cache.put(two[0], "c0ffee", "step0")
    cache.put(two[1], "decade", "step1")
    for revision, expected in (("step0", hashes[0]), ("step1", hashes[1]), ("step0", hashes[0])):
        model = load_model(NAME, revision=revision)
        assert (model.weights_sha256, model.revision) == (expected, revision)


def test_a_name_is_not_answered_with_a_model_from_elsewhere(two) -> None:
    convert_model(two[0], checkpoint_path(NAME))
    with pytest.raises(TaskVecError, match=r"made from .*runA/final, not from SomeOrg/tiny"):
        load_model(NAME)


def test_a_model_of_a_package_is_known_by_the_hash_of_its_file(two, monkeypatch) -> None:
    source = WheelFile("tiny==1.0", "0", "tiny/weights", 1, "5" * 64)
    config = load_model(two[0]).config
    monkeypatch.setattr(wheel, "fetch", lambda source, scratch: two[0])
    monkeypatch.setitem(NAMED_MODELS, "tiny", NamedModel(config, source))
    load_model("tiny")
    manifest = checkpoint.read_manifest(checkpoint_path("tiny"))
    assert (manifest["source"], manifest["file_sha256"]) == ("tiny==1.0", "5" * 64)
    assert manifest["files"]["model.safetensors"]["sha256"]
    newer = dataclasses.replace(source, sha256="6" * 64)
    monkeypatch.setitem(NAMED_MODELS, "tiny", NamedModel(config, newer))
    with pytest.raises(TaskVecError, match=r"made from tiny==1\.0"):
        load_model("tiny")


def test_weights_that_were_rounded_do_not_stand_for_those_that_were_not(cache, two, hashes) -> None:
    cache.put(two[0], "c0ffee")
    convert_model(NAME, checkpoint_path(NAME), dtype="bfloat16")
    assert checkpoint.read_manifest(checkpoint_path(NAME))["rounded_from"] == ["float32"]
    load_model(NAME, "bfloat16")
    assert checkpoint.read_config(checkpoint_path(NAME)).dtype == "bfloat16"  # it was enough
    assert load_model(NAME, "float32").weights_sha256 == hashes[0]
    assert "rounded_from" not in checkpoint.read_manifest(checkpoint_path(NAME))


@pytest.mark.parametrize(
    ("kinds", "stored", "lost"),
    [
        (["float32"], "float32", []),
        (["bfloat16", "int64"], "bfloat16", []),
        (["float16"], "bfloat16", ["float16"]),
        (["bfloat16", "float32"], "bfloat16", ["float32"]),
        (["float16", "bfloat16"], "float32", []),
    ],
)
def test_half_precision_holds_its_own_numbers_only(kinds, stored, lost) -> None:
    assert origin.rounded_from(kinds, stored) == lost
