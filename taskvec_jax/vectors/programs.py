"""The two compiled programs of the sweep: `read_rows` and `inject_rows`.

Both run rows that are trees: a trunk, and branches that continue it without seeing each other
(see `context.Layout`). `read_rows` reads several texts that begin alike:

    tokens     demonstrations          dummy query 1    dummy query 2    query
    branch     0 0 0 0 0 0 0 0 0 0 0   1 1 1 1 1 1      2 2 2 2 2        3 3 3 3 3
               +------- trunk -------+-- branch 1 --*
                                     +-- branch 2 --*
                                     +-- branch 3 --*
                                                    * residual stream read here, every layer

`inject_rows` writes many vectors over the last token of one zero-shot query. Copies of that token
are branches of one token each; a copy joins the row shortly before its layer is done:

    tokens     example : Plum     ->         ->      ->      ->     ...
    branch     0       0 0        1          2       3       4
               +---- trunk ---+-- untouched
                              +-- copy 0, replaced by vector 0 after its layer
                              +-- copy 1, replaced by vector 1 after its layer
                              +-- ...

The untouched query and the copies attend to the trunk and to themselves only, so one forward pass
gives the answers of all of them.

Shapes: B rows, T tokens, R branches read, C copies, P tokens written in a copy, L layers, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import (
    PADDING,
    TRUNK,
    ContextByLayer,
    Layout,
    attention_context,
)
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params
from taskvec_jax.vectors.graded import Graded, Wanted, grade
from taskvec_jax.vectors.rows import Rows

NUM_GROUPS = 5  # of layers, in the wavefront
EVEN = 8
HALF = (jnp.bfloat16, jnp.float16)
Step = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]  # of a scan over layers


def _layer(params: Params, index: jax.Array) -> Params:
    """The parameters of one layer, taken from the stack inside a loop over layers."""

    def take(leaf: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

    def take_bits(leaf: jax.Array) -> jax.Array:
        # XLA's CPU compiler widens 16-bit floats before it slices them: the whole stack, at every
        # call, for a tenth of the time. As whole numbers they are left alone; and the barrier
        # keeps it from making whole numbers of the whole stack before the loop.
        leaf, here = jax.lax.optimization_barrier((leaf, index))
        bits = take(jax.lax.bitcast_convert_type(leaf, jnp.uint16), here)
        return jax.lax.bitcast_convert_type(bits, leaf.dtype)

    on_cpu = jax.default_backend() == "cpu"
    return jax.tree.map(
        lambda leaf: take_bits(leaf) if on_cpu and leaf.dtype in HALF else take(leaf, index),
        params["params"]["layers"],
    )


def _answer(
    config: DecoderConfig,
    params: Params,
    x: jax.Array,
    wanted: jax.Array | None,
    grading: Wanted | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, Graded | None]:
    """Most likely token and its logit, [B, n], for states [B, n, D]; the log-probability of the
    wanted tokens and the graded scores, where they are asked for."""
    logits = Decoder(config).apply(params, x, method="unembed")
    tokens, highest = top(logits)
    logprob = None if wanted is None else log_probability(logits, jnp.asarray(wanted))
    return tokens, highest, logprob, grading and grade(logits, highest, grading)


def top(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32 argmax over the last axis, ties to the lowest index, and the maximum.

    In two steps, the best of each block and then inside the best block: XLA's argmax on CPU is
    scalar and costs as much as the unembedding, while a maximum over a short axis vectorises.
    Up to `EVEN` devices that share the vocabulary get whole blocks, if that can be.
    """
    size = logits.shape[-1]
    sizes = [b for b in (128, 64, 32, 16, 8, 4, 2, 1) if size % b == 0]
    block = next((b for b in sizes if size // b % EVEN == 0), sizes[0])
    blocks = logits.reshape(*logits.shape[:-1], size // block, block)
    highest = jnp.max(blocks, axis=-1)  # [..., V / block]
    which = jnp.argmax(highest, axis=-1)  # [...]
    inside = jnp.take_along_axis(blocks, which[..., None, None], axis=-2)[..., 0, :]
    index = which * block + jnp.argmax(inside, axis=-1)
    return index.astype(jnp.int32), jnp.max(highest, axis=-1)


@functools.partial(jax.jit, static_argnames="config")
def read_rows(
    config: DecoderConfig, params: Params, rows: Rows, grading: Wanted | None = None
) -> tuple[jax.Array, jax.Array, jax.Array, Graded | None]:
    """Residual stream after every layer at each place that is read.

    Returns:
      residuals [B, R, L, D], answers int32 [B, R], their logits [B, R], graded scores [B, R].
    """
    block = FAMILY_MODULES[config.family].Block(config)
    layout = Layout(jnp.asarray(rows.positions), jnp.asarray(rows.branches))
    contexts = attention_context(config, layout)
    x = Decoder(config).apply(params, rows.tokens, layout.positions, method="embed")
    ends = jnp.asarray(rows.ends)[..., None]

    def at_ends(x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, R, D], each row in its own
        return jnp.take_along_axis(x, ends, axis=1)

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = block.apply({"params": _layer(params, index)}, x, contexts.of_layer(index))
        return x, at_ends(x)

    x, residuals = jax.lax.scan(step, x, jnp.arange(config.num_layers))
    tokens, logits, _, graded = _answer(config, params, at_ends(x), None, grading)
    return jnp.moveaxis(residuals, 0, 2), tokens, logits, graded


@functools.partial(jax.jit, static_argnames=("config", "schedule"))
def inject_rows(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    vectors: jax.Array,
    layers: jax.Array,
    schedule: tuple[tuple[int, int], ...],
    wanted: jax.Array | None = None,
    grading: Wanted | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, Graded | None]:
    """Answers when vectors are written over the last token, each after its own layer.

    Args:
      tokens, last, vectors, layers, schedule: as of `copy_states`.
      wanted: int [B, A], tokens of which any is right, -1 where a row has fewer; None: not asked.
      grading: tokens for the graded scores; None: not asked.

    Returns:
      answers int32 [B, 1 + C] and their logits; the first is the untouched query's. With `wanted`
      also the log-probability that the next token is one of the wanted, float [B, 1 + C], and with
      `grading` graded scores; else None.
    """
    states = copy_states(config, params, tokens, last, vectors, layers, schedule)
    return _answer(config, params, states, wanted, grading)


def log_probability(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Log of the probability that the next token is any of the wanted ones.

    Args:
      logits: [B, C, V].
      wanted: int [B, A], -1 where a row has fewer.

    Returns:
      [B, C], in nats.
    """
    wanted = wanted[:, None]  # [B, 1, A]
    picked = jnp.take_along_axis(logits, jnp.maximum(wanted, 0), axis=-1)
    right = jnp.where(wanted < 0, -jnp.inf, picked)
    return jax.nn.logsumexp(right, axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def copy_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    vectors: jax.Array,
    layers: jax.Array,
    schedule: tuple[tuple[int, int], ...],
    wrap: Callable[[Step], Step] = lambda step: step,
) -> jax.Array:
    """The residual stream after the last block when vectors are written over the last token.

    Args:
      tokens: int [B, T], zero-shot queries, right-padded.
      last: int [B], index of the last token.
      vectors: [B, C, D]; or [B, C, P, D], written together over the last P tokens, which every
        query must have: a copy is then a branch of P tokens.
      layers: int [B, C], the layer after which each vector is written.
      schedule: (layers done, copies alive) at the end of each group of layers: copy c must not be
        written before the group in which it is first alive.
      wrap: put round the step over one layer (a gradient wants `jax.checkpoint` there).

    Returns:
      [B, 1 + C, D]; the first is the untouched query's. NaN where `last` is out of range, and for
      a copy whose layer is out of range or comes before the copy joins: it would never be written.
    """
    rows, length = tokens.shape
    writable = _writable(
        last, layers, length, vectors.shape[2] if vectors.ndim == 4 else 1, schedule
    )
    if vectors.ndim == 3:
        vectors = vectors[:, :, None]
    size = vectors.shape[2]  # P
    vectors = vectors.reshape(rows, vectors.shape[1] * size, config.width)
    layers = jnp.repeat(layers, size, axis=1)
    first = last[:, None] - (size - 1)  # [B, 1]
    block = FAMILY_MODULES[config.family].Block(config)
    place = jnp.arange(length, dtype=jnp.int32)[None]
    token = Decoder(config).apply(params, tokens, place, method="embed")
    plain_branch = jnp.where(place < first, TRUNK, jnp.where(place <= last[:, None], 1, PADDING))
    x, start = token, 0
    for stop, copies_alive in schedule:
        alive = copies_alive * size
        joining = length + alive - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, joining), (0, 0)))
        copy = jnp.repeat(jnp.arange(copies_alive, dtype=jnp.int32), size)
        within = jnp.tile(jnp.arange(size, dtype=jnp.int32), copies_alive)
        layout = Layout(
            jnp.concatenate(
                [
                    jnp.broadcast_to(place, (rows, length)),
                    first + within,
                ],
                axis=1,
            ),
            jnp.concatenate([plain_branch, jnp.broadcast_to(copy + 2, (rows, alive))], axis=1),
        )
        contexts = attention_context(config, layout)

        def step(
            x: jax.Array, index: jax.Array, contexts: ContextByLayer = contexts, alive: int = alive
        ) -> tuple[jax.Array, None]:
            x = block.apply({"params": _layer(params, index)}, x, contexts.of_layer(index))
            born = (layers[:, :alive] == index)[..., None]
            copies = jnp.where(born, vectors[:, :alive].astype(x.dtype), x[:, length:])
            return jnp.concatenate([x[:, :length], copies], axis=1), None

        x, _ = jax.lax.scan(wrap(step), x, jnp.arange(start, stop))
        start = stop
    plain = jnp.take_along_axis(x, last[:, None, None], axis=1)
    states = jnp.concatenate([plain, x[:, length + size - 1 :: size]], axis=1)
    return jnp.where(writable[..., None], states, jnp.nan)


def _writable(
    last: jax.Array,
    layers: jax.Array,
    length: int,
    size: int,
    schedule: tuple[tuple[int, int], ...],
) -> jax.Array:
    """bool [B, 1 + C]: whether the untouched query can be read, and each copy be written."""
    first_layers = np.zeros(layers.shape[1], np.int32)
    for stop, alive in schedule:
        first_layers[alive:] = stop  # not in the row in this group, which ends at `stop`
    num_layers = schedule[-1][0]
    inside = ((last >= size - 1) & (last < length))[:, None]  # [B, 1]
    return jnp.concatenate(
        [inside, inside & (layers >= first_layers) & (layers < num_layers)], axis=1
    )


def wavefront_schedule(num_layers: int, groups: int = NUM_GROUPS) -> tuple[tuple[int, int], ...]:
    """The schedule of one copy a layer: group g holds the copies of the layers up to its end."""
    return schedule_of(range(num_layers), num_layers, groups)


def schedule_of(
    layers: Sequence[int], num_layers: int, groups: int = NUM_GROUPS
) -> tuple[tuple[int, int], ...]:
    """The schedule of copies written after these layers, in rising order: each copy joins the row
    in the group in which it is written; before the first of them only the query itself is run.

    Groups begin at the same layers whatever is written, so that layers near each other compile one
    program.
    """
    begins = [round(num_layers * group / groups) for group in range(groups)]
    starts = sorted({max(begin for begin in begins if begin <= layer) for layer in layers})
    alive = [sum(layer < start for layer in layers) for start in starts]
    schedule = [(start, count) for start, count in zip(starts, alive, strict=True) if start]
    return (*schedule, (num_layers, len(layers)))
