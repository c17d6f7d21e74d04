"""Every compiled program of a run, made from shapes alone, for devices that may not be there.

    for name, trace in programs_of(config, mesh, batch_size).items():
        trace().lower().compile()

Names: `read`, `inject` (the two programs of a layer sweep), `graded_read`, `graded_inject` (the
same with graded scores), `beginnings` and `continuing` (whole answers), `prefill` and `step`
(generation), `head_map`, `learned_step` (training a vector at each layer), `restore` (parameters of
a checkpoint to their shards).

Shapes: B rows, T tokens, L layers, D width, H heads, K head size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from taskvec_jax.distributed.footprint import PLANNED_ROWS
from taskvec_jax.distributed.sharding import (
    DATA,
    head_axes,
    params_in_shapes,
    rows_for,
    shape_of,
)
from taskvec_jax.models.generating import ROOM_STEP
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import flatten
from taskvec_jax.transformer.generation import CACHED, Choice, State, extend, start
from taskvec_jax.transformer.quantization import input_axes, quantize_stack, quantized
from taskvec_jax.vectors import head_map
from taskvec_jax.vectors.beginnings import after_beginnings, read_beginnings
from taskvec_jax.vectors.compiled_memory import ACCEPTED, rows_like, trace_inject, trace_read
from taskvec_jax.vectors.continuing import MOST_ROWS, NEW_STEP, SHORT
from taskvec_jax.vectors.examples import Examples
from taskvec_jax.vectors.graded import Wanted
from taskvec_jax.vectors.learning import Recipe
from taskvec_jax.vectors.learning_step import train_step
from taskvec_jax.vectors.programs import schedule_of

SWEEP = ("read", "inject")
NAMES = (*SWEEP, "graded_read", "graded_inject", "beginnings", "continuing", "prefill", "step")
NAMES = (*NAMES, "head_map", "learned_step", "restore")

Trace = Callable[[], Any]  # -> jax.stages.Traced


def programs_of(config: DecoderConfig, mesh: Mesh, batch_size: int) -> dict[str, Trace]:
    """Name -> a function that traces the program for the devices of a mesh.

    Args:
      batch_size: prompts a call, rounded up to what `data` divides; rows are as long as
        `footprint.PLANNED_ROWS` says.
    """
    made = _Shapes(config, mesh, batch_size)
    return {
        "read": lambda: made.read(None),
        "inject": lambda: made.inject(None),
        "graded_read": lambda: made.read(made.wanted()),
        "graded_inject": lambda: made.inject(made.wanted()),
        "beginnings": made.beginnings,
        "continuing": made.continuing,
        "prefill": made.prefill,
        "step": made.step,
        "head_map": made.head_map,
        "learned_step": made.learned_step,
        "restore": made.restore,
    }


class _Shapes:
    """The arguments of the programs, as shapes with places."""

    def __init__(self, config: DecoderConfig, mesh: Mesh, batch_size: int) -> None:
        self.config, self.mesh = config, mesh
        self.rows = rows_for(mesh, batch_size)
        self.prompt = min(PLANNED_ROWS.prompt, config.max_length)
        self.sizes = PLANNED_ROWS._replace(prompt=self.prompt)
        self.params = params_in_shapes(config, mesh)

    def rows_of(self, *shape: int, dtype: str = "int32", rows: int | None = None) -> Any:
        """An array [B, ...] that is split over `data`."""
        return rows_like(self.mesh, rows or self.rows, *shape, dtype=dtype)

    def whole(self, *shape: int, dtype: str = "float32") -> Any:
        """An array that every device has whole."""
        return self.put(shape, dtype, PartitionSpec())

    def put(self, shape: tuple[int, ...], dtype: str, spec: PartitionSpec) -> Any:
        return jax.ShapeDtypeStruct(
            shape, jnp.dtype(dtype), sharding=NamedSharding(self.mesh, spec)
        )

    def wanted(self) -> Wanted:
        return Wanted(self.rows_of(ACCEPTED), self.rows_of())

    def read(self, grading: Wanted | None) -> Any:
        return trace_read(self.config, self.params, self.mesh, self.rows, self.sizes, grading)

    def inject(self, grading: Wanted | None) -> Any:
        return trace_inject(self.config, self.params, self.mesh, self.rows, self.sizes, grading)

    def beginnings(self) -> Any:
        rows = rows_for(self.mesh, MOST_ROWS)
        tokens, lengths = self.rows_of(SHORT, rows=rows), self.rows_of(rows=rows)
        return read_beginnings.trace(self.config, self.params, tokens, lengths)

    def continuing(self) -> Any:
        """The second token of answers to short prompts, as a layer is chosen."""
        c, rows = self.config, rows_for(self.mesh, MOST_ROWS)
        tokens, lengths = self.rows_of(SHORT, rows=rows), self.rows_of(rows=rows)
        kept = jax.eval_shape(functools.partial(read_beginnings, c), self.params, tokens, lengths)
        return after_beginnings.trace(
            c,
            self.params,
            jax.tree.map(
                lambda leaf: self.rows_of(*leaf.shape[1:], dtype=leaf.dtype, rows=rows), kept
            ),
            lengths,
            self.rows_of(NEW_STEP, rows=rows),
            self.rows_of(rows=rows),
            self.rows_of(c.width, dtype="float32", rows=rows),
            self.rows_of(rows=rows),
        )

    def choice(self) -> Choice:
        return Choice(None, self.whole(), self.whole(1, dtype="int32"))

    def prefill(self) -> Any:
        tokens, lengths = self.rows_of(self.prompt), self.rows_of()
        return start.trace(
            self.config,
            self.params,
            tokens,
            lengths,
            (),
            self.choice(),
            room=ROOM_STEP,
            split=False,
        )

    def step(self) -> Any:
        """The loop that adds tokens; its count says one turn, one token a row."""
        state: State = jax.eval_shape(
            lambda *given: start(self.config, *given, room=ROOM_STEP, split=False),
            self.params,
            self.rows_of(self.prompt),
            self.rows_of(),
            (),
            self.choice(),
        )
        _, over = head_axes(self.config, shape_of(self.mesh).model)
        heads = tuple(over) or None
        cache = PartitionSpec(None, DATA, None, heads)  # [L, B, S, G, K]
        placed = jax.tree.map(
            lambda leaf: self.put(
                leaf.shape, leaf.dtype, PartitionSpec(DATA) if leaf.ndim else PartitionSpec()
            ),
            state,
        )
        placed = placed._replace(
            cache={s: self.put(state.cache[s].shape, state.cache[s].dtype, cache) for s in CACHED}
        )
        until = self.whole(dtype="int32")
        return extend.trace(self.config, self.params, None, placed, (), self.choice(), until)

    def head_map(self) -> Any:
        c = self.config
        return head_map.patch_heads.trace(
            c,
            self.params,
            self.rows_of(self.prompt),
            self.rows_of(),
            self.rows_of(),
            self.whole(c.num_layers, c.num_heads, c.head_dim),
            head_map.schedule_of_heads(c),
        )

    def learned_step(self) -> Any:
        c, size = self.config, Recipe().batch_size
        rows = rows_for(self.mesh, size)
        vectors = self.whole(c.num_layers, c.width)
        state = jax.eval_shape(optax.scale_by_adam().init, vectors)
        state = jax.tree.map(lambda leaf: self.whole(*leaf.shape, dtype=leaf.dtype), state)
        examples = Examples(
            self.rows_of(PLANNED_ROWS.query, rows=rows),
            self.rows_of(rows=rows),
            self.rows_of(ACCEPTED, rows=rows),
            self.rows_of(0, dtype="float32", rows=rows),
        )
        return train_step.trace(
            c,
            self.params,
            examples,
            vectors,
            state,
            self.whole(c.num_layers, dtype="int32"),
            schedule_of(range(c.num_layers), c.num_layers),
            self.whole(c.num_layers),
            self.whole(),
            None,
            size,
        )

    def restore(self) -> Any:
        """What stands on the devices while a checkpoint is restored: the parameters; or, where
        they are quantized, the largest kernel as it is read, and what is made of it."""
        c = self.config
        if c.quantization == "none":
            return jax.jit(lambda params: params, donate_argnums=0).trace(self.params)
        plain = flatten(params_in_shapes(dataclasses.replace(c, quantization="none"), self.mesh))
        stacks = {p: leaf for p, leaf in plain.items() if quantized(p) and p.startswith("layers/")}
        path = max(stacks, key=lambda p: np.prod(stacks[p].sharding.shard_shape(stacks[p].shape)))
        return quantize_stack.trace(stacks[path], input_axes(path), c.quantization)
