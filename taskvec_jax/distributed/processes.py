"""Several processes that compute together: what each has to agree on with the others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from taskvec_jax.errors import TaskVecError

T = TypeVar("T")
PCI = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus
TPUS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f")  # v2 and v3, v4, v5p, v5e, v6e


def found_cluster(environment: Mapping[str, str] = os.environ, pci: Path = PCI) -> str | None:
    """What started this process as one of several, if something says so: "Slurm" or "Cloud TPU".

    `jax.distributed.initialize()` then finds the others without being told. A step of Slurm counts
    if it has several tasks. On a TPU VM there is one process a host, alone or not: JAX asks the
    cloud how many there are.
    """
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in environment:
        return "Slurm"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _has_tpu(pci):
        return "Cloud TPU"
    return None


def _has_tpu(pci: Path) -> bool:
    """Whether a TPU is on the PCI bus of this host."""
    for device in pci.glob("*") if pci.is_dir() else ():
        with contextlib.suppress(OSError):
            found = [(device / name).read_text().strip() for name in ("vendor", "device")]
            if found[0] == GOOGLE and found[1] in TPUS:
                return True
    return False


def to_host(array: Any) -> np.ndarray:
    """The whole array in the memory of every host; a collective if devices of others hold parts."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def least(number: int) -> int:
    """The smallest of the numbers (below 2^31) that the processes pass; a collective."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).min())


def anywhere(flag: bool) -> bool:
    """Whether the flag is True in any process; a collective."""
    return not least(not flag)


class _AgreedError(TaskVecError):
    """An error that all processes have been told of already."""


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Runs the body on every process; if it raises on any of them, raises on all.

    This is a barrier. Do not call a collective inside the body: a process that raised before it
    would never join, and the others would hang. A collective inside a nested `all_or_none` is
    safe, because a process that raised outside of the nested body makes it raise on the others.

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
    """The text of each process, in order of process; a collective."""
    content = text.encode()
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(content))))
    buffer = np.zeros(sizes.max(), np.uint8)
    buffer[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(buffer)).reshape(len(sizes), -1)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def from_first_process(content: bytes) -> bytes:
    """The bytes that the first process passes, in every process; a collective."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    if not size:
        return b""
    buffer = np.zeros(size, np.uint8)
    if is_first_process():
        buffer[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes()


def decided_by_first(look: Callable[[], bool]) -> bool:
    """The answer of the first process, in every process; a collective.

    Args:
      look: is called in the first process only; what it raises is raised in all.
    """
    with all_or_none():
        found = is_first_process() and look()
    return bool(from_first_process(b"yes" if found else b""))
