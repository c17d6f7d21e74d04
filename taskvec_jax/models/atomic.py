"""Directories that are written by one process at a time, and replaced whole or not at all; and
files that are."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from taskvec_jax.distributed.processes import all_or_none, from_first_process, is_first_process
from taskvec_jax.errors import TaskVecError

SCRATCH = "partial."  # part of the name of directories that are not complete yet
OLD = ".old"  # end of the name of what is being replaced


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes this process the only one that writes `path`, waiting for another to finish.

    What writers that were killed have left behind is cleared away; the lock dies with them. One
    killed between its two renames had moved `path` away: it is put back. Of several processes that
    work together the first one has the lock, the others wait for it.

    Raises:
      TaskVecError: the parent directory cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with all_or_none():
            if is_first_process():
                stack.enter_context(_alone(path))
        yield


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """`writing`, of one process."""
    name = path.parent / f".{path.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(name)
    except OSError as error:
        raise TaskVecError(unwritable(path.parent, error)) from None
    with lock:
        _clear(path)
        try:
            yield
        finally:
            _clear(path)  # a failed write may still have been at work when it was taken away
            name.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    leftovers = sorted(path.parent.glob(f".{glob.escape(path.name)}.{SCRATCH}*"))
    if not path.exists():
        for old in [leftover for leftover in leftovers if leftover.suffix == OLD][:1]:
            os.replace(old, path)
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def _locked(name: Path) -> TextIO:
    """An open and locked file; one that its last owner removed meanwhile is no lock."""
    while True:
        lock = name.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), name.stat()):
                return lock
        lock.close()


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path`, for what is fetched; cleared like a partial `path`.

    Several processes get the same one.

    Raises:
      TaskVecError: the parent directory cannot be written, or not all processes see it.
    """
    name = ""
    with all_or_none():
        if is_first_process():
            try:
                name = tempfile.mkdtemp(prefix=f".{path.name}.{SCRATCH}", dir=path.parent)
            except OSError as error:
                raise TaskVecError(unwritable(path.parent, error)) from None
    made = Path(os.fsdecode(from_first_process(os.fsencode(name))))
    try:
        with all_or_none():
            if not made.is_dir():
                raise TaskVecError(
                    f"{path.parent}: not all processes see the same directory there; set"
                    " TASKVEC_CHECKPOINTS to one on a disk they share"
                )
        yield made
    finally:
        if is_first_process():
            shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling directory that takes the place of `path` if the body succeeds.

    To be used within `writing(path)`; of several processes, in all.

    Raises:
      TaskVecError: the parent directory cannot be written.
    """
    with scratch(path) as made:
        with all_or_none():
            yield made
        with all_or_none():  # none goes on before `path` is there
            if is_first_process():
                made.chmod(0o755)
                if path.exists():  # moved away whole: a reader must not meet it half deleted
                    os.replace(path, f"{made}{OLD}")
                os.replace(made, path)
                shutil.rmtree(f"{made}{OLD}", ignore_errors=True)


def unwritable(path: Path, error: OSError) -> str:
    """The message for a directory that cannot be written."""
    return (
        f"{path}: cannot be written ({error.strerror}); set TASKVEC_CHECKPOINTS to a directory"
        " that can, with room for the model"
    )


def write_file(path: Path, data: bytes) -> None:
    """Writes a file beside its place, syncs it and moves it there.

    Raises:
      OSError: it cannot be written; what was at `path` before is there still, and nothing else.
    """
    scratch = None
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        if scratch is not None:
            with contextlib.suppress(OSError):
                os.unlink(scratch)
        raise
