"""The numbers of task_vectors.py, fast: nothing that two copies share is computed twice.

Two compiled programs do all the work, both over rows that are trees (see `layers.Layout`):

* `read_rows`: a row is the demonstrations, once, and one branch for each text that continues them
  (dummy queries, the query). Reads the residual stream at the end of each branch.
* `inject_rows`: a row is a zero-shot query without its last token, and one branch of a single
  token for each copy of that token: the untouched one, and one for each injected vector. Only the
  last token differs between copies, so only the last token is copied. A copy that is written after
  layer l needs no work before it: copies join the row in groups as the layers go by (a wavefront).

Every weight is read once per chunk of rows, and the vocabulary is touched at the last token only.

Shapes: B rows, T tokens of a row, R branches read, C copies injected, L layers, D width.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.distributed.sharding import anywhere, fetch, put_rows, rows_for, shape_of
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory
from taskvec_jax.models.loading import Model
from taskvec_jax.prompting.tokenizer import PAD
from taskvec_jax.transformer.checks import (
    check_answers,
    check_finite,
    check_logits,
    check_range,
    check_texts,
    check_vectors,
)
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params
from taskvec_jax.transformer.layers import PADDING, TRUNK, Layout, Sight, look

# Row lengths are rounded up, so that few shapes are compiled: trees of up to 64 tokens to a
# multiple of 8, longer ones to a multiple of 16; queries to 4, 12, 20 ... tokens, because most
# zero-shot queries have 4.
TREE_STEP, LONG_TREE, LONG_TREE_STEP = 8, 64, 16
QUERY_STEP, QUERY_FIRST = 8, 4
_log = logging.getLogger(__name__)
NUM_GROUPS = 5  # of layers, in the wavefront
EVEN = 8
HALF = (jnp.bfloat16, jnp.float16)

Step = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]  # of a scan over layers


class Rows(NamedTuple):
    """Token rows on the host.

    Attributes:
      tokens, positions, branches: int32 [B, T]; see `layers.Layout`.
      ends: int32 [B, R], index in the row of each branch's last token.
    """

    tokens: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    ends: np.ndarray


class Answers(NamedTuple):
    """What the model says at some last tokens.

    Attributes:
      tokens: int32, the most likely next token (ties to the lowest id).
      logits: float32, its logit.
    """

    tokens: np.ndarray
    logits: np.ndarray


def shared_prefix(texts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all texts share, leaving every text at least its last token.

    Token by token, so that texts which tokenise differently once a query is attached are right.
    """
    limit = min(map(len, texts)) - 1
    for i in range(limit):
        if any(text[i] != texts[0][i] for text in texts):
            return i
    return limit


def tree_length(texts: Sequence[Sequence[int]]) -> int:
    """Tokens of a row that holds these texts."""
    shared = shared_prefix(texts)
    return shared + sum(len(text) - shared for text in texts)


def plant(rows: Sequence[Sequence[Sequence[int]]], length: int, reads: int) -> Rows:
    """Lays texts out as trees.

    Args:
      rows: for each row, the token ids of 1 to `reads` texts; what they share is the trunk.
      length: T, at least the longest tree.
      reads: R; a row of fewer texts repeats its last one.
    """
    shape = (len(rows), length)
    tokens = np.full(shape, PAD, np.int32)
    positions = np.zeros(shape, np.int32)
    branches = np.full(shape, PADDING, np.int32)
    ends = np.zeros((len(rows), reads), np.int32)
    for i, texts in enumerate(rows):
        shared = shared_prefix(texts)
        tokens[i, :shared] = texts[0][:shared]
        positions[i, :shared] = np.arange(shared)
        branches[i, :shared] = TRUNK
        start = shared
        for branch, text in enumerate(texts, start=1):
            stop = start + len(text) - shared
            tokens[i, start:stop] = text[shared:]
            positions[i, start:stop] = np.arange(shared, len(text))
            branches[i, start:stop] = branch
            ends[i, branch - 1 :] = stop - 1
            start = stop
    return Rows(tokens, positions, branches, ends)


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


def _answer(config: DecoderConfig, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Most likely token and its logit for states [..., D]."""
    return top(Decoder(config).apply(params, x, method="unembed"))


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
    config: DecoderConfig, params: Params, rows: Rows
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Residual stream after every layer at the end of each branch.

    Returns:
      residuals [B, R, L, D], answers int32 [B, R], their logits [B, R].
    """
    block = FAMILY_MODULES[config.family].Block(config)
    sight = look(config, Layout(jnp.asarray(rows.positions), jnp.asarray(rows.branches)))
    x = Decoder(config).apply(params, rows.tokens, method="embed")
    ends = jnp.asarray(rows.ends)[..., None]

    def at_ends(x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, R, D], each row in its own
        return jnp.take_along_axis(x, ends, axis=1)

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = block.apply({"params": _layer(params, index)}, x, sight)
        return x, at_ends(x)

    x, residuals = jax.lax.scan(step, x, jnp.arange(config.num_layers))
    return (jnp.moveaxis(residuals, 0, 2), *_answer(config, params, at_ends(x)))


@functools.partial(jax.jit, static_argnames=("config", "births"))
def inject_rows(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    vectors: jax.Array,
    layers: jax.Array,
    births: tuple[tuple[int, int], ...],
) -> tuple[jax.Array, jax.Array]:
    """Answers when vectors are written over the last token, each after its own layer.

    Args: as of `copy_states`.

    Returns:
      answers int32 [B, 1 + C] and their logits; the first is the untouched query's.
    """
    states = copy_states(config, params, tokens, last, vectors, layers, births)
    return _answer(config, params, states)


def copy_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    vectors: jax.Array,
    layers: jax.Array,
    births: tuple[tuple[int, int], ...],
    wrap: Callable[[Step], Step] = lambda step: step,
) -> jax.Array:
    """The residual stream after the last block when vectors are written over the last token.

    Args:
      tokens: int [B, T], zero-shot queries, right-padded.
      last: int [B], index of the last token.
      vectors: [B, C, D]; or [B, C, P, D], written together over the last P tokens, which every
        query must have: a copy is then a branch of P tokens.
      layers: int [B, C], the layer after which each vector is written.
      births: (layers done, copies alive) at the end of each group of layers: copy c must not be
        written before the group in which it is first alive.
      wrap: put round the step over one layer (a gradient wants `jax.checkpoint` there).

    Returns:
      [B, 1 + C, D]; the first is the untouched query's. NaN where `last` is out of range, and for
      a copy whose layer is out of range or comes before its birth: it would never be written.
    """
    rows, length = tokens.shape
    writable = _writable(last, layers, length, vectors.shape[2] if vectors.ndim == 4 else 1, births)
    if vectors.ndim == 3:
        vectors = vectors[:, :, None]
    size = vectors.shape[2]  # P
    vectors = vectors.reshape(rows, vectors.shape[1] * size, config.width)
    layers = jnp.repeat(layers, size, axis=1)
    first = last[:, None] - (size - 1)  # [B, 1]
    block = FAMILY_MODULES[config.family].Block(config)
    place = jnp.arange(length, dtype=jnp.int32)[None]
    token = Decoder(config).apply(params, tokens, method="embed")
    plain_branch = jnp.where(place < first, TRUNK, jnp.where(place <= last[:, None], 1, PADDING))
    x, start = token, 0
    for stop, copies_alive in births:
        alive = copies_alive * size
        newborn = length + alive - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, newborn), (0, 0)))
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
        sight = look(config, layout)

        def step(
            x: jax.Array, index: jax.Array, sight: Sight = sight, alive: int = alive
        ) -> tuple[jax.Array, None]:
            x = block.apply({"params": _layer(params, index)}, x, sight)
            born = (layers[:, :alive] == index)[..., None]
            copies = jnp.where(born, vectors[:, :alive].astype(x.dtype), x[:, length:])
            return jnp.concatenate([x[:, :length], copies], axis=1), None

        x, _ = jax.lax.scan(wrap(step), x, jnp.arange(start, stop))
        start = stop
    plain = jnp.take_along_axis(x, last[:, None, None], axis=1)
    states = jnp.concatenate([plain, x[:, length + size - 1 :: size]], axis=1)
    return jnp.where(writable[..., None], states, jnp.nan)


def _writable(
    last: jax.Array, layers: jax.Array, length: int, size: int, births: tuple[tuple[int, int], ...]
) -> jax.Array:
    """bool [B, 1 + C]: whether the untouched query can be read, and each copy be written."""
    first_layers = np.zeros(layers.shape[1], np.int32)
    for stop, alive in births:
        first_layers[alive:] = stop  # still unborn in this group, which ends at `stop`
    num_layers = births[-1][0]
    inside = ((last >= size - 1) & (last < length))[:, None]  # [B, 1]
    return jnp.concatenate(
        [inside, inside & (layers >= first_layers) & (layers < num_layers)], axis=1
    )


def wavefront_births(num_layers: int, groups: int = NUM_GROUPS) -> tuple[tuple[int, int], ...]:
    """Births for one copy a layer: in group g, the copies of the layers up to its end."""
    return births_of(range(num_layers), num_layers, groups)


def births_of(
    layers: Sequence[int], num_layers: int, groups: int = NUM_GROUPS
) -> tuple[tuple[int, int], ...]:
    """Births for copies written after these layers, in rising order: no copy lives long before it
    is written, and long before the first one only the query itself is run.

    Groups begin at the same layers whatever is written, so that layers near each other compile one
    program.
    """
    begins = [round(num_layers * group / groups) for group in range(groups)]
    starts = sorted({max(begin for begin in begins if begin <= layer) for layer in layers})
    alive = [sum(layer < start for layer in layers) for start in starts]
    births = [(start, count) for start, count in zip(starts, alive, strict=True) if start]
    return (*births, (num_layers, len(layers)))


def _round_up(n: int, step: int, first: int = 0) -> int:
    """The smallest of first, first + step, first + 2 step ... that is at least n."""
    return first + max(0, -(-(n - first) // step)) * step


def _chunks(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers, sorted by length, in chunks; so that rows are padded to similar lengths."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _fill(chunk: list[int], batch_size: int) -> list[int]:
    """A chunk of exactly `batch_size` rows, its last row repeated: one compiled shape."""
    return chunk + chunk[-1:] * (batch_size - len(chunk))


# Program, model and mesh -> the most rows a call that fitted, once one did not.
_fitting: dict[tuple[str, DecoderConfig, str], int] = {}


def _in_chunks(
    program: str,
    model: Model,
    lengths: Sequence[int],
    batch_size: int,
    call: Callable[[list[int], int], Any],
    keep: Callable[[list[int], Any], None],
) -> None:
    """Calls a program on all rows, chunk by chunk; one that does not fit in memory is halved.

    Halving is logged, once a halving, and remembered for later calls. It changes no result: rows
    know nothing of each other. Several processes halve together: what one cannot compile or place
    all do again. A process that fails while others already sum over `model` with it cannot tell
    them; that takes devices of unequal memory, for shards are equal.

    Args:
      call: (row numbers, rows the program is to work on) -> arrays on the devices.
      keep: (row numbers, the same arrays on the host), which may have more rows -> None.

    Raises:
      TaskVecError: one row at a time does not fit.
    """
    key = (program, model.config, str(shape_of(model.mesh)))
    least = shape_of(model.mesh).data  # a row a device
    rows = rows_for(model.mesh, min(batch_size, _fitting.get(key, batch_size)))
    chunks = _chunks(lengths, rows)
    while chunks:
        refused = None
        made = None
        try:
            made = jax.block_until_ready(call(chunks[0], rows))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            refused = first_line(error)
        if not anywhere(refused is not None):
            keep(chunks[0], jax.tree.map(fetch, made))
            chunks = chunks[1:]
            continue
        made = None
        refused = refused or "in another process"
        if rows == least:
            raise TaskVecError(
                f"{program}: one prompt at a time does not fit in the device's memory ({refused});"
                " use more devices, --weights=int8, --dtype=bfloat16, or shorter prompts"
            )
        # Only here, with the error and the arrays its frames held gone, is their memory free.
        left = [i for chunk in chunks for i in chunk]
        rows = rows_for(model.mesh, rows // 2)
        _fitting[key] = rows
        _log.warning("out of memory: %s goes on with %d prompts a call", program, rows)
        chunks = [left[i : i + rows] for i in range(0, len(left), rows)]


def read_texts(
    model: Model, rows: Sequence[Sequence[Sequence[int]]], batch_size: int
) -> tuple[np.ndarray, Answers]:
    """Reads the residual stream at the last token of texts that share their beginnings.

    Args:
      rows: for each row, the token ids of 1 to R texts.
      batch_size: rows a program call works on.

    Returns:
      residuals float32 [N, R, L, D] and Answers [N, R]; a row of fewer texts repeats its last.

    Raises:
      TaskVecError: a text is empty, longer than the context or holds an id out of range; or the
        residual stream is not finite, and then the message names the first such layer.
    """
    config = model.config
    check_texts(config, [text for texts in rows for text in texts])
    reads = max(map(len, rows))
    lengths = [tree_length(texts) for texts in rows]
    residuals = np.empty((len(rows), reads, config.num_layers, config.width), np.float32)
    answers = Answers(
        np.empty((len(rows), reads), np.int32), np.empty((len(rows), reads), np.float32)
    )

    def call(chunk: list[int], size: int) -> tuple[jax.Array, ...]:
        longest = max(lengths[i] for i in chunk)
        length = _round_up(longest, TREE_STEP if longest <= LONG_TREE else LONG_TREE_STEP)
        planted = plant([rows[i] for i in _fill(chunk, size)], length, reads)
        return read_rows(config, model.params, put_rows(model.mesh, planted))

    def keep(chunk: list[int], read: tuple[np.ndarray, ...]) -> None:
        for kept, array in zip((residuals, *answers), read, strict=True):
            kept[chunk] = array[: len(chunk)]

    _in_chunks("reading", model, lengths, batch_size, call, keep)
    check_finite(residuals, answers.logits)
    return residuals, answers


def inject_vectors(
    model: Model,
    queries: Sequence[Sequence[int]],
    vectors: np.ndarray,
    layers: np.ndarray,
    batch_size: int,
    births: tuple[tuple[int, int], ...] | None = None,
) -> Answers:
    """Writes vectors over the last token of zero-shot queries, many for each query.

    Args:
      queries: token ids of N texts.
      vectors: float [N, C, D]; or [N, C, P, D], written together over the last P tokens.
      layers: int [C] or [N, C], the layer after which each vector replaces the residual stream.
      batch_size: rows a program call works on.
      births: see `inject_rows`; all copies alive from the first layer when None.

    Returns:
      Answers [N, 1 + C]; the first column is the untouched query's.

    Raises:
      TaskVecError: a layer out of range, vectors of another shape, a query shorter than P, empty,
        longer than the context or with an id out of range; a vector or an answer that is not
        finite, and then the message names its layer.
    """
    config, rows = model.config, len(queries)
    check_texts(config, queries)
    vectors = np.asarray(vectors)
    shape = vectors.shape
    if vectors.ndim not in (3, 4) or (shape[0], shape[-1]) != (rows, config.width):
        raise TaskVecError(
            f"vectors have shape {shape}; allowed: ({rows}, copies, {config.width}), or"
            f" ({rows}, copies, positions, {config.width})"
        )
    layers = np.asarray(layers)
    if not np.issubdtype(layers.dtype, np.integer):
        raise TaskVecError(f"layers are of type {layers.dtype}; they must be whole numbers")
    layers = np.broadcast_to(layers, shape[:2]).astype(np.int32)
    if vectors.ndim == 4:
        check_positions(min(map(len, queries)), shape[2])
    check_range("layer", layers, config.num_layers)
    check_vectors(vectors, layers)
    births = births or ((config.num_layers, vectors.shape[1]),)
    lengths = [len(query) for query in queries]
    shape = (rows, 1 + vectors.shape[1])
    answers = Answers(np.empty(shape, np.int32), np.empty(shape, np.float32))

    def call(chunk: list[int], size: int) -> tuple[jax.Array, ...]:
        length = _round_up(max(lengths[i] for i in chunk), QUERY_STEP, QUERY_FIRST)
        filled = _fill(chunk, size)
        tokens = np.full((size, length), PAD, np.int32)
        for row, i in zip(tokens, filled, strict=True):
            row[: lengths[i]] = queries[i]
        last = np.array([lengths[i] - 1 for i in filled], np.int32)
        inputs = put_rows(model.mesh, (tokens, last, vectors[filled], layers[filled]))
        return inject_rows(config, model.params, *inputs, births)

    def keep(chunk: list[int], injected: tuple[np.ndarray, ...]) -> None:
        for kept, array in zip(answers, injected, strict=True):
            kept[chunk] = array[: len(chunk)]

    _in_chunks("injecting", model, lengths, batch_size, call, keep)
    # What is not finite in one copy reaches all copies of its query (0 * NaN under the mask), the
    # untouched one too, so the written ones are told first.
    check_answers(answers.logits[:, 1:], layers)
    check_logits(answers.logits[:, 0])
    return answers


def check_positions(shortest: int, positions: int) -> None:
    """Refuses to write over more tokens than a query has.

    Raises:
      TaskVecError: it does not have them.
    """
    if not 1 <= positions <= shortest:
        raise TaskVecError(
            f"{positions} tokens are to be written over, and the shortest query has {shortest};"
            f" allowed: 1 to {shortest} positions"
        )


def sweep_layers(
    model: Model, queries: Sequence[Sequence[int]], theta: np.ndarray, batch_size: int
) -> Answers:
    """Theta [N, L, D] injected after every layer: Answers [N, 1 + L], first the untouched one."""
    num_layers = model.config.num_layers
    births = wavefront_births(num_layers)
    return inject_vectors(model, queries, theta, np.arange(num_layers), batch_size, births)
