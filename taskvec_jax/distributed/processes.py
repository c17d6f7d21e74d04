"""taskvec_jax.distributed.processes"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from taskvec_jax.errors import TaskVecError

T = TypeVar("T")


def to_host(array: Any) -> np.ndarray:
    """An array on the host, whole, in every process; all processes must ask for it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def least(number: int) -> int:
    """The smallest of the numbers (below 2^31) that the processes have; all must ask for it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).min())


def anywhere(flag: bool) -> bool:
    """Whether the flag is up in any process; all processes must ask for it."""
    return not least(not flag)


class _AgreedError(TaskVecError):
    """What stopped a step of all processes, and all of them know it."""


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """A step of all processes that fails in all of them if it fails in one.

    Who is done waits for the others. Within the step no process may wait for another, or a failure
    there is never heard of; unless in a step within the step: who fails outside of it ends it for
    the others.

    Raises:
      TaskVecError: what went wrong in the first process that failed; a process whose own error is
        of another kind keeps it.
    """
    if jax.process_count() == 1:
        yield
        return
    caught: Exception | None = None
    try:
        yield
    except _AgreedError:
        raise
    except Exception as error:
        caught = error
    if anywhere(caught is not None):
        ours = str(caught) if isinstance(caught, TaskVecError) else repr(caught)
        message = "" if caught is None else f"{ours} (process {jax.process_index()})"
        said = _gather_text(message)
        if caught is None or isinstance(caught, TaskVecError):
            raise _AgreedError(next(filter(None, said))) from None
        raise caught


def _gather_text(text: str) -> list[str]:
    """What each process says; all processes must ask for it."""
    content = text.encode()
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(content))))
    buffer = np.zeros(sizes.max(), np.uint8)
    buffer[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(buffer)).reshape(len(sizes), -1)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def from_first_process(content: bytes) -> bytes:
    """What the first process has; all processes must ask for it."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    if not size:
        return b""
    buffer = np.zeros(size, np.uint8)
    if is_first_process():
        buffer[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes()
