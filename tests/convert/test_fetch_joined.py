"""A file in parts is fetched part by part, goes on where it stopped, and is whole or not there."""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convert.fetch import wheel
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.registry_types import JoinedFile, WheelFile

PARTS = [bytes([65 + i]) * (1000 + i) for i in range(4)]
WHOLE = b"".join(PARTS)


@pytest.fixture
def file(tmp_path: Path) -> JoinedFile:
    """Four parts, each in a wheel of its own in tmp_path/index."""
    (tmp_path / "index").mkdir()
    parts = []
    for i, content in enumerate(PARTS):
        packed = tmp_path / "index" / f"made{i}.whl"
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(f"made{i}/data/part{i}.bin", content)
        parts.append(
            WheelFile(
                requirement=f"made{i}==1.0",
                wheel_sha256=wheel.sha256_of(packed),
                member=f"made{i}/data/part{i}.bin",
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    return JoinedFile("made.gguf", tuple(parts), hashlib.sha256(WHOLE).hexdigest(), "Own terms")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip is asked for; "broken" in it stands for parts that cannot be fetched."""
    names: list[str] = []

    def run(command: list[str], **how: Any) -> SimpleNamespace:
        del how
        requirement = command[-1]
        if f"broken {requirement}" in names:
            return SimpleNamespace(returncode=1, stderr="no route to host")
        names.append(requirement)
        packed = tmp_path / "index" / f"{requirement.removesuffix('==1.0')}.whl"
        shutil.copy(packed, command[command.index("--dest") + 1])
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(wheel.subprocess, "run", run)
    return names


@pytest.fixture
def fetch(file: JoinedFile, tmp_path: Path) -> Callable[[], Path]:
    (tmp_path / "into").mkdir()
    return lambda: wheel.fetch_joined(file, tmp_path / "into", tmp_path / "partial")


def test_parts_are_joined_in_order_and_nothing_else_is_left(
    asked: list[str], fetch: Callable[[], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert fetch().read_bytes() == WHOLE
    assert asked == [f"made{i}==1.0" for i in range(4)]
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["made.gguf"]
    assert not (tmp_path / "partial").exists()
    assert "in 4 parts" in caplog.text
    assert "Own terms" in caplog.text


@pytest.mark.parametrize("more", [b"", b"half of a part"])
def test_what_is_here_is_not_fetched_again(
    more: bytes, asked: list[str], fetch: Callable[[], Path], tmp_path: Path
) -> None:
    asked.append("broken made2==1.0")
    with pytest.raises(TaskVecError, match=r"cannot fetch made2==1\.0 \(no route to host\)"):
        fetch()
    assert (tmp_path / "partial").read_bytes() == PARTS[0] + PARTS[1]
    assert list((tmp_path / "into").iterdir()) == []
    with (tmp_path / "partial").open("ab") as partial:  # a process that was killed in a part
        partial.write(more)
    asked.clear()
    assert fetch().read_bytes() == WHOLE
    assert asked == ["made2==1.0", "made3==1.0"]


def test_a_part_with_another_hash_is_refused_and_not_joined(
    asked: list[str], fetch: Callable[[], Path], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "index" / "made1.whl", "w") as archive:
        archive.writestr("made1/data/part1.bin", b"x" * len(PARTS[1]))
    with pytest.raises(TaskVecError, match=r"made1\.whl: sha256 is"):
        fetch()
    assert (tmp_path / "partial").read_bytes() == PARTS[0]


def test_joined_parts_that_are_another_file_are_deleted(
    asked: list[str], file: JoinedFile, tmp_path: Path
) -> None:
    other = JoinedFile(file.name, file.parts, "0" * 64, file.terms)
    with pytest.raises(TaskVecError, match="have another sha256 than expected"):
        wheel.fetch_joined(other, tmp_path, tmp_path / "partial")
    assert not (tmp_path / "partial").exists()
    assert not (tmp_path / "made.gguf").exists()


def test_a_disk_without_room_is_refused_before_anything_is_fetched(
    asked: list[str], fetch: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(TaskVecError, match=r"made\.gguf needs 0\.00 GB there"):
        fetch()
    assert asked == []
