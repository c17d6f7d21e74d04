"""Memory of the sweep's programs as the compiler for the devices at hand tells it.

Programs are compiled from shapes alone, with graded scores, for the longest rows that a run has.

Shapes: B rows, T tokens, L layers, D width, R places of a row that are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from taskvec_jax.distributed.footprint import RowSizes, parameter_bytes
from taskvec_jax.distributed.sharding import DATA, params_in_shapes, rows_for, shape_of
from taskvec_jax.errors import is_out_of_memory
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params
from taskvec_jax.vectors.batching import Loaded
from taskvec_jax.vectors.graded import Wanted
from taskvec_jax.vectors.programs import inject_rows, read_rows, wavefront_schedule
from taskvec_jax.vectors.rows import Rows

ACCEPTED = 2  # first tokens of accepted answers of a row


def rows_like(mesh: Mesh | None, *shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    """The shape of an array [B, ...] that is split over `data`."""
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(DATA))
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)


def trace_read(
    config: DecoderConfig,
    params: Params,
    mesh: Mesh | None,
    rows: int,
    sizes: RowSizes,
    grading: Wanted | None = None,
) -> Any:
    """`read_rows` traced for rows of these sizes; parameters are arrays, or shapes with places."""
    token: Any = rows_like(mesh, rows, sizes.prompt)
    ends: Any = rows_like(mesh, rows, sizes.reads)
    return read_rows.trace(config, params, Rows(token, token, token, ends), grading)


def trace_inject(
    config: DecoderConfig,
    params: Params,
    mesh: Mesh | None,
    rows: int,
    sizes: RowSizes,
    grading: Wanted | None = None,
) -> Any:
    """`inject_rows` traced for queries of this size, a vector for each layer."""
    layers = config.num_layers
    return inject_rows.trace(
        config,
        params,
        rows_like(mesh, rows, sizes.query),
        rows_like(mesh, rows),
        rows_like(mesh, rows, layers, config.width, dtype="float32"),
        rows_like(mesh, rows, layers),
        wavefront_schedule(layers),
        grading,
    )


def compiled_bytes(model: Loaded, rows: int, sizes: RowSizes) -> float:
    """What each device needs for the larger of the sweep's programs; infinite if it is refused.

    The weights need not be in memory yet.
    """
    params = params_in_shapes(model.config, model.mesh)
    right: Any = rows_like(model.mesh, rows, ACCEPTED)
    contrast: Any = rows_like(model.mesh, rows)
    grading = Wanted(right, contrast)
    needed = 0
    for trace in (trace_read, trace_inject):
        try:
            traced = trace(model.config, params, model.mesh, rows, sizes, grading)
            program = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return float("inf")
        memory = program.memory_analysis()
        if memory is not None:
            taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            taken += memory.output_size_in_bytes - memory.alias_size_in_bytes
            needed = max(needed, taken)
    return float(needed)


def largest_compiled_batch(
    model: Loaded,
    memory: float,
    batch_size: int,
    sizes: RowSizes,
    needs: Callable[[Loaded, int, RowSizes], float] = compiled_bytes,
) -> int:
    """The most prompts a call, at most `batch_size`, that fit in `memory` bytes a device.

    What a call needs beside the parameters grows with its rows, so a batch that is too large says
    which one to try next; few are compiled. One prompt is not tried: it runs, or says that it does
    not fit.
    """
    data = shape_of(model.mesh).data
    held = parameter_bytes(model.config, shape_of(model.mesh).model)
    rows = rows_for(model.mesh, batch_size)
    while rows > data and (needed := needs(model, rows, sizes)) > memory:
        share = max(0.0, memory - held) / (needed - held)  # 0 where the compiler refused it
        fewer = int(rows * share) if share else rows // 2
        rows = max(data, min(rows - data, fewer // data * data))
    return min(batch_size, rows)
