"""The two compiled programs of the sweep: `read_rows` and `inject_rows`.

Both run rows that are trees: a trunk, and branches that continue it without seeing each other
(see `context.Layout`). `read_rows` reads several texts that begin alike:

    tokens     demonstrations          dummy query 1    dummy query 2    query
    branch     0 0 0 0 0 0 0 0 0 0 0   1 1 1 1 1 1      2 2 2 2 2        3 3 3 3 3
               +------- trunk -------+-- branch 1 --*
                                     +-- branch 2 --*
                                     +-- branch 3 --*
                                                    * residual stream read here, every layer

`inject_rows` writes many vectors over the last token of one zero-shot query, each into a copy of
that token (drawn in copies.py).

The untouched query and the copies attend to the trunk and to themselves only, so one forward pass
gives the answers of all of them.

Shapes: B rows, T tokens, R branches read, C copies, P tokens written in a copy, L layers, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import AttentionContext, Layout, attention_context
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params
from taskvec_jax.transformer.generation import CACHED
from taskvec_jax.vectors.copies import Schedule, Step, run_copies, take_layer
from taskvec_jax.vectors.graded import Graded, Wanted, grade
from taskvec_jax.vectors.rows import Rows

NUM_GROUPS = 5  # of layers, in the wavefront
EVEN = 8


def _answer(
    config: DecoderConfig,
    params: Params,
    x: jax.Array,
    grading: Wanted | None,
) -> tuple[jax.Array, jax.Array, Graded | None]:
    """Most likely token, its logit and, where asked for, graded scores, [B, n], for states
    [B, n, D]."""
    logits = Decoder(config).apply(params, x, method="unembed")
    tokens, highest = top(logits)
    return tokens, highest, grading and grade(logits, highest, grading)


def top(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32 argmax over the last axis, ties to the lowest index, and the maximum.

    In two steps, the best of each block and then inside the best block: XLA's argmax on CPU is
    scalar and costs as much as the unembedding, while a maximum over a short axis vectorises.
    Up to `EVEN` devices that share the vocabulary get whole blocks, if that can be. Not so on a
    TPU, where cutting the last axis into blocks copies the logits, twice.
    """

    def whole(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.max(logits, axis=-1)

    # On a CPU behind a barrier, or XLA takes the maxima of all logits again where they are used
    # again: 190 ms instead of 81 for 3,025 answers (2026-11-27).
    kept = functools.partial(_top_of_blocks, keep=jax.lax.optimization_barrier)
    return jax.lax.platform_dependent(logits, tpu=whole, cpu=kept, default=_top_of_blocks)


def _top_of_blocks(
    logits: jax.Array, keep: Callable[[jax.Array], jax.Array] = lambda highest: highest
) -> tuple[jax.Array, jax.Array]:
    size = logits.shape[-1]
    sizes = [b for b in (128, 64, 32, 16, 8, 4, 2, 1) if size % b == 0]
    block = next((b for b in sizes if size // b % EVEN == 0), sizes[0])
    blocks = logits.reshape(*logits.shape[:-1], size // block, block)
    highest = keep(jnp.max(blocks, axis=-1))  # [..., V / block]
    which = jnp.argmax(highest, axis=-1)  # [...]
    inside = jnp.take_along_axis(blocks, which[..., None, None], axis=-2)[..., 0, :]
    index = which * block + jnp.argmax(inside, axis=-1)
    return index.astype(jnp.int32), jnp.max(highest, axis=-1)


@functools.partial(jax.jit, static_argnames=("config", "unanswered"))
def read_rows(
    config: DecoderConfig,
    params: Params,
    rows: Rows,
    grading: Wanted | None = None,
    *,
    unanswered: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array, Graded | None]:
    """Residual stream after every layer at each place that is read.

    On a CPU the last block is run for those places alone, on the keys and values of all tokens.
    Elsewhere it stays in the loop over layers, which keeps the program small and its memory known.

    Args:
      unanswered: U, how many of the first places of each row get no answer.

    Returns:
      residuals [B, R, L, D], answers int32 [B, R - U], their logits and graded scores, [B, R - U].
    """
    block = FAMILY_MODULES[config.family].Block(config)
    layout = Layout(jnp.asarray(rows.positions), jnp.asarray(rows.branches))
    contexts = attention_context(config, layout)
    x = Decoder(config).apply(params, rows.tokens, layout.positions, method="embed")
    ends = jnp.asarray(rows.ends)[..., None]

    def at_ends(x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, R, D], each row in its own
        return jnp.take_along_axis(x, ends, axis=1)

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = block.apply({"params": take_layer(params, index)}, x, contexts.of_layer(index))
        return x, at_ends(x)

    def every_block(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, residuals = jax.lax.scan(step, x, jnp.arange(config.num_layers))
        return at_ends(x), residuals

    def last_block_at_ends(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, residuals = jax.lax.scan(step, x, jnp.arange(config.num_layers - 1))
        index = jnp.int32(config.num_layers - 1)
        layer, context = {"params": take_layer(params, index)}, contexts.of_layer(index)
        kept: dict[str, jax.Array] = {}

        def keep(site: str, value: jax.Array) -> jax.Array:
            return kept.setdefault(site, value) if site in CACHED else value

        block.apply(layer, x, context._replace(visit=keep))  # what is not kept is not computed
        mask, cos, sin = (
            at_ends(jnp.broadcast_to(of, (len(x), *of.shape[1:]))) for of in context[:3]
        )
        here = AttentionContext(mask, cos, sin, lambda site, value: kept.get(site, value))
        x = block.apply(layer, at_ends(x), here)
        return x, jnp.concatenate([residuals, x[None]])

    x, residuals = jax.lax.platform_dependent(x, cpu=last_block_at_ends, default=every_block)
    answers = _answer(config, params, x[:, unanswered:], grading)
    return (jnp.moveaxis(residuals, 0, 2), *answers)


@functools.partial(jax.jit, static_argnames=("config", "schedule", "operation"))
def inject_rows(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    vectors: jax.Array,
    layers: jax.Array,
    schedule: Schedule,
    grading: Wanted | None = None,
    operation: str = "replace",
) -> tuple[jax.Array, jax.Array, Graded | None]:
    """Answers when vectors are written over the last token, each after its own layer.

    Args:
      tokens, last, vectors, layers, schedule, operation: as of `copy_states`.
      grading: tokens for the graded scores; None: not asked.

    Returns:
      answers int32 [B, 1 + C], their logits and graded scores; the first is the untouched query's.
    """
    states = copy_states(
        config, params, tokens, last, vectors, layers, schedule, operation=operation
    )
    return _answer(config, params, states, grading)


def copy_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    vectors: jax.Array,
    layers: jax.Array,
    schedule: Schedule,
    wrap: Callable[[Step], Step] = lambda step: step,
    operation: str = "replace",
) -> jax.Array:
    """The residual stream after the last block when vectors are written over the last token.

    Args:
      tokens: int [B, T], zero-shot queries, right-padded.
      last: int [B], index of the last token.
      vectors: [B, C, D]; or [B, C, P, D], written together over the last P tokens, which every
        query must have: a copy is then a branch of P tokens.
      layers: int [B, C], the layer after which each vector is written.
      schedule: (layers done, copies alive) at the end of each group of layers. A copy joins the row
        when the group before its first one is done, and cannot be written after a layer earlier
        than the last of that group.
      wrap: put round the step over one layer (a gradient wants `jax.checkpoint` there).
      operation: "replace", or "add": the vector is added to what stands there.

    Returns:
      [B, 1 + C, D]; the first is the untouched query's. NaN where `last` is out of range, and for
      a copy whose layer is out of range or comes before the copy joins: it would never be written.
    """
    writable = _writable(
        last, layers, tokens.shape[1], vectors.shape[2] if vectors.ndim == 4 else 1, schedule
    )
    if vectors.ndim == 3:
        vectors = vectors[:, :, None]

    def write(site: str, copies: jax.Array, index: jax.Array) -> jax.Array:
        if site != "resid":
            return copies
        alive = copies.shape[1]
        due = (layers[:, :alive] == index)[:, :, None, None]
        given = vectors[:, :alive].astype(copies.dtype)
        return jnp.where(due, copies + given if operation == "add" else given, copies)

    states = run_copies(
        config,
        params,
        tokens,
        last,
        change=write,
        schedule=schedule,
        size=vectors.shape[2],
        wrap=wrap,
    )
    return jnp.where(writable[..., None], states, jnp.nan)


def _writable(
    last: jax.Array,
    layers: jax.Array,
    length: int,
    size: int,
    schedule: Schedule,
) -> jax.Array:
    """bool [B, 1 + C]: whether the untouched query can be read, and each copy be written."""
    first_layers = np.zeros(layers.shape[1], np.int32)
    for stop, alive in schedule:
        first_layers[alive:] = stop - 1  # it joins after layer `stop` - 1 at the soonest
    num_layers = schedule[-1][0]
    inside = ((last >= size - 1) & (last < length))[:, None]  # [B, 1]
    return jnp.concatenate(
        [inside, inside & (layers >= first_layers) & (layers < num_layers)], axis=1
    )


def wavefront_schedule(num_layers: int, groups: int = NUM_GROUPS) -> tuple[tuple[int, int], ...]:
    """The schedule of one copy a layer."""
    return schedule_of(range(num_layers), num_layers, groups)


def schedule_of(
    layers: Sequence[int], num_layers: int, groups: int = NUM_GROUPS
) -> tuple[tuple[int, int], ...]:
    """The schedule of copies written after these layers, in rising order.

    A copy joins the row with the last group whose first block runs after the copy's layer or
    earlier. Before the first copy joins only the query itself is run. A copy that is written after
    the last layer joins when all blocks are done.

    Groups begin at the same layers whatever is written, so that layers near each other compile one
    program. -1 stands for what is written before the first block.
    """
    begins = [*(round(num_layers * group / groups) for group in range(groups)), num_layers]
    starts = sorted({max(begin for begin in begins if begin <= layer + 1) for layer in layers})
    alive = [sum(layer + 1 < start for layer in layers) for start in starts]
    schedule = [(start, count) for start, count in zip(starts, alive, strict=True) if start]
    return (*schedule, (num_layers, len(layers)))
