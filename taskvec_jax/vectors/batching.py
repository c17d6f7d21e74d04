"""Runs a compiled program over many rows in chunks; where memory is short, chunks are halved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from taskvec_jax.distributed.processes import anywhere, to_host
from taskvec_jax.distributed.sharding import rows_for, shape_of
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params
from taskvec_jax.vectors.account import ACCOUNT, Work

_log = logging.getLogger(__name__)


@runtime_checkable
class Loaded(Protocol):
    """What the programs need of a model in memory; `models.Model` has it."""

    @property
    def config(self) -> DecoderConfig:
        """Shapes and dtype."""
        ...

    @property
    def params(self) -> Params:
        """What `Decoder.apply` takes first."""
        ...

    @property
    def mesh(self) -> Mesh | None:
        """What parameters and rows are split over; None: one device."""
        ...


def round_up(n: int, step: int, first: int = 0) -> int:
    """The smallest of first, first + step, first + 2 step ... that is at least n."""
    return first + max(0, -(-(n - first) // step)) * step


def evenly(count: int, most: int) -> int:
    """The size of the parts if `count` is cut into as few as possible, each of at most `most`, and
    all of about one size."""
    return -(-count // -(-count // most))


ROWS_ON_CPU = 25  # the sums of more are hardly faster
SHORT_ROW = 8  # tokens; a call of 25 rows shorter than this is slower than one of 50


def rows_a_call(batch_size: int, tokens: int, most: int = ROWS_ON_CPU) -> int:
    """How many rows of so many tokens a call works on, of the `batch_size` that are allowed.

    On a CPU `most` or fewer: rows are sorted by length, so those of a small chunk are more alike,
    and are padded less. Short rows are the exception: too few of them in a call make it slower.
    """
    if jax.default_backend() != "cpu" or tokens < SHORT_ROW:
        return batch_size
    return evenly(batch_size, most)


def _chunks(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers, sorted by length, in chunks; so that rows are padded to similar lengths."""
    return in_chunks(sorted(range(len(lengths)), key=lambda i: (lengths[i], i)), batch_size)


def in_chunks(order: list[int], most: int) -> list[list[int]]:
    """Row numbers in chunks of at most `most`, none much smaller than another."""
    size = evenly(max(1, len(order)), most)
    return [order[i : i + size] for i in range(0, len(order), size)]


def fill_up(chunk: list[int], batch_size: int) -> list[int]:
    """A chunk of exactly `batch_size` rows, its last row repeated: one compiled shape."""
    return chunk + chunk[-1:] * (batch_size - len(chunk))


# FLOPs of half a second or more, which is what a shape costs: .2 to .6 s of tracing in every
# process that uses it, and .5 to 2 s of compiling once on a machine. On a CPU, and elsewhere.
WORTH_COMPILING, WORTH_COMPILING_ELSEWHERE = 10**11, 5 * 10**14


def worth_compiling() -> int:
    """FLOPs that another compiled shape has to save."""
    return WORTH_COMPILING if jax.default_backend() == "cpu" else WORTH_COMPILING_ELSEWHERE


def _rows_of(chunk: int, rows: int, calls_flops: int, least: int) -> int:
    """How many rows a call for a chunk is of: what is missing is filled up with repetitions, which
    cost as much as others. So the rows are halved, up to twice, where the chunk still fits and what
    is saved is worth another compiled shape.

    Args:
      calls_flops: FLOPs of one row, times the number of calls.
    """
    for _ in range(2):
        half = -(-rows // (2 * least)) * least  # a multiple of the devices
        if half < chunk or (rows - half) * calls_flops < worth_compiling():
            break
        rows = half
    return rows


# Program, model and mesh -> the most rows a call that fitted, once one did not.
_fitting: dict[tuple[str, DecoderConfig, str], int] = {}


def run_in_chunks(
    program: str,
    model: Loaded,
    lengths: Sequence[int],
    batch_size: int,
    call: Callable[[list[int], int], Any],
    keep: Callable[[list[int], Any], None],
    work: Work,
) -> None:
    """Calls a program on all rows, chunk by chunk; one that does not fit in memory is halved.

    Each halving is logged, and remembered for later calls. It changes no result, because no row
    depends on another. Several processes halve together: if a chunk does not fit on one of them,
    all of them repeat it. A process that runs out of memory in the middle of a collective over the
    `model` axis cannot tell the others; as shards are of equal size, that takes devices of unequal
    memory.

    Args:
      call: (row numbers, rows the program is to work on) -> arrays on the devices.
      keep: (row numbers, the same arrays on the host), which may have more rows -> None.
      work: what is entered in the account of work.

    Raises:
      TaskVecError: one row at a time does not fit.
    """
    key = (program, model.config, str(shape_of(model.mesh)))
    least = shape_of(model.mesh).data  # a row a device
    rows = rows_for(model.mesh, min(batch_size, _fitting.get(key, batch_size)))
    chunks = _chunks(lengths, rows)
    calls = len(chunks)
    while chunks:
        refused = None
        made = None
        longest = max(lengths[i] for i in chunks[0])
        filled = _rows_of(len(chunks[0]), rows, calls * work.done(longest), least)
        try:
            made = jax.block_until_ready(call(chunks[0], filled))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            refused = first_line(error)
        if not anywhere(refused is not None):
            keep(chunks[0], jax.tree.map(to_host, made))
            ACCOUNT.add(f"{program} {hash(model.config)}", work, chunks[0], filled, longest)
            chunks = chunks[1:]
            continue
        made = None
        refused = refused or "in another process"
        if rows == least:
            raise TaskVecError(
                f"{program}: one prompt at a time does not fit in the device's memory ({refused});"
                " use more devices, --quantization=int8, --dtype=bfloat16, or shorter prompts"
            )
        # Only here, with the error and the arrays its frames held gone, is their memory free.
        left = [i for chunk in chunks for i in chunk]
        rows = rows_for(model.mesh, rows // 2)
        _fitting[key] = rows
        _log.warning("out of memory: %s goes on with %d prompts a call", program, rows)
        chunks = in_chunks(left, rows)
        calls = len(chunks)
