"""Files of results, written whole or not at all; a full disk is one line, and nothing is torn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.atomic import write_file


class WriteError(TaskVecError):
    """A file of results cannot be written: no room, no permission, a disk that fails.

    Its own class, because an experiment leaves out a task that raises TaskVecError and goes on;
    without a disk there is nothing to go on with.
    """


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns the OSError of work on `path` into one line.

    Raises:
      WriteError: it names the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another"
            " --out: the same command goes on from what is finished"
        ) from None


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file beside its place, syncs it and moves it there; text is written as UTF-8.

    Raises:
      WriteError: what was at `path` before is there still, and nothing else.
    """
    data = content.encode() if isinstance(content, str) else content
    with told(path):
        write_file(path, data)
