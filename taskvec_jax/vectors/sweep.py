"""The numbers of task_vectors.py, fast: nothing that two copies share is computed twice.

Two compiled programs do all the work, both over rows that are trees (see `context.Layout`):

* `read_rows`: a row is the demonstrations, once, and one branch for each text that continues them
  (dummy queries, the query). Reads the residual stream at the end of each branch.
* `inject_rows`: a row is a zero-shot query without its last token, and one branch of a single
  token for each copy of that token: the untouched one, and one for each injected vector. Only the
  last token differs between copies, so only the last token is copied. A copy that is written after
  layer l needs no work before it: copies join the row in groups as the layers go by (a wavefront).

Every weight is read once per chunk of rows, and the vocabulary is touched at the last token only.

Shapes: B rows, T tokens of a row, R branches read, C copies injected, L layers, D width.
"""

# Long because: both programs are called in one way, and several sets of vectors are one call.

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from taskvec_jax.distributed.sharding import put_rows, shape_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.checks import (
    check_answers,
    check_finite,
    check_logits,
    check_range,
    check_texts,
    check_vectors,
)
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.vectors.account import Work
from taskvec_jax.vectors.batching import (
    Loaded,
    fill_up,
    round_up,
    rows_a_call,
    run_in_chunks,
    worth_compiling,
)
from taskvec_jax.vectors.flops import (
    copies_flops,
    injection_flops,
    layer_flops,
    read_row_flops,
    reading_flops,
    row_flops,
)
from taskvec_jax.vectors.graded import Graded, Wanted
from taskvec_jax.vectors.programs import (
    NUM_GROUPS,
    inject_rows,
    read_rows,
    schedule_of,
    wavefront_schedule,
)
from taskvec_jax.vectors.rows import lay_out_rows, pad_rows, tree_length


class Answers(NamedTuple):
    """Predictions at the last tokens of some texts.

    Attributes:
      tokens: int32, the most likely next token (ties to the lowest id).
      logits: float32, its logit.
      graded: graded scores of the same shape; None where none were asked for.
    """

    tokens: np.ndarray
    logits: np.ndarray
    graded: Graded | None = None


def _room(shape: tuple[int, ...], *, graded: bool) -> Answers:
    """Answers to be filled in."""
    scores = Graded(*(np.empty(shape, t) for t in (np.float32, np.int32, np.float32)))
    tokens, logits = np.empty(shape, np.int32), np.empty(shape, np.float32)
    return Answers(tokens, logits, scores if graded else None)


def _fill(room: Answers, chunk: list[int], found: Answers) -> None:
    """Puts a program's answers to some rows where they belong."""
    for kept, new in zip(jax.tree.leaves(room), jax.tree.leaves(found), strict=True):
        kept[chunk] = new[: len(chunk)]


def _of_rows(grading: Wanted | None, rows: Sequence[int]) -> Wanted | None:
    return grading and Wanted(*(np.asarray(ids, np.int32)[list(rows)] for ids in grading))


def read_texts(
    model: Loaded,
    rows: Sequence[Sequence[Sequence[int]]],
    batch_size: int,
    grading: Wanted | None = None,
    *,
    unanswered: int = 0,
) -> tuple[Float[np.ndarray, "N R L D"], Answers]:
    """Reads the residual stream at the last token of texts that share their beginnings.

    Args:
      rows: for each row, the token ids of 1 to R texts. A text that begins the one after it costs
        nothing.
      batch_size: most rows a program call works on.
      grading: tokens for the graded scores, [N, G] and [N].
      unanswered: U, how many of the first texts of each row are read only, without an answer.

    Returns:
      residuals float32 [N, R, L, D] and Answers [N, R - U]; a row of fewer texts repeats its last.

    Raises:
      TaskVecError: a text is empty, longer than the context or holds an id out of range; U is out
        of range; or the residual stream is not finite, and then the message names the first such
        layer.
    """
    config = model.config
    check_texts(config, [text for texts in rows for text in texts])
    reads = max(map(len, rows))
    lengths = [tree_length(texts) for texts in rows]
    residuals = np.empty((len(rows), reads, config.num_layers, config.width), np.float32)
    asked = reads - unanswered
    if not 0 <= unanswered <= reads:
        raise TaskVecError(f"unanswered={unanswered}; allowed: 0 to {reads}, the texts of a row")
    answers = _room((len(rows), asked), graded=grading is not None)

    def padded(longest: int) -> int:
        return fitted_row_length(config, longest, len(rows))

    def call(chunk: list[int], size: int) -> tuple[jax.Array, ...]:
        length = padded(max(lengths[i] for i in chunk))
        filled = fill_up(chunk, size)
        laid_out = lay_out_rows([rows[i] for i in filled], length, reads)
        inputs = put_rows(model.mesh, (laid_out, _of_rows(grading, filled)))
        return read_rows(config, model.params, *inputs, unanswered=unanswered)

    def keep(chunk: list[int], read: tuple[Any, ...]) -> None:
        residuals[chunk] = read[0][: len(chunk)]
        _fill(answers, chunk, Answers(*read[1:]))

    def done(longest: int) -> int:
        length = padded(longest)
        if jax.default_backend() == "cpu":
            return read_row_flops(config, length, reads, asked)
        return row_flops(config, length, config.num_layers, asked)

    def needed(i: int) -> int:
        distinct = {tuple(text) for text in rows[i][unanswered:]}
        return reading_flops(config, rows[i], len(distinct))

    work = Work(needed, lambda i: (rows[i],), done)
    a_call = rows_a_call(batch_size, max(lengths))
    run_in_chunks("reading", model, lengths, a_call, call, keep, work)
    check_finite(residuals, answers.logits)
    return residuals, answers


def inject_vectors(
    model: Loaded,
    queries: Sequence[Sequence[int]],
    vectors: Float[np.ndarray, "N C *P D"],
    layers: Int[np.ndarray, "*N C"],
    batch_size: int,
    schedule: tuple[tuple[int, int], ...] | None = None,
    grading: Wanted | None = None,
    *,
    operation: str = "replace",
) -> Answers:
    """Writes vectors over the last token of zero-shot queries, many for each query.

    Args:
      queries: token ids of N texts.
      vectors: float [N, C, D]; or [N, C, P, D], written together over the last P tokens.
      layers: int [C] or [N, C], the layer after which each vector replaces the residual stream.
      batch_size: most rows a program call works on.
      schedule: see `inject_rows`; all copies alive from the first layer when None.
      grading: tokens for the graded scores, [N, G] and [N].
      operation: "replace", or "add": each vector is added to what stands there.

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
    if operation not in ("replace", "add"):
        raise TaskVecError(f"operation is {operation!r}; allowed: 'replace', 'add'")
    layers = np.asarray(layers)
    if not np.issubdtype(layers.dtype, np.integer):
        raise TaskVecError(f"layers are of type {layers.dtype}; they must be whole numbers")
    layers = np.broadcast_to(layers, shape[:2]).astype(np.int32)
    if vectors.ndim == 4:
        check_positions(min(map(len, queries)), shape[2])
    check_range("layer", layers, config.num_layers)
    check_vectors(vectors, layers)
    schedule = schedule or ((config.num_layers, vectors.shape[1]),)
    # Of rows that are the same (a letter that is asked for again, under one mean theta) only the
    # first is computed.
    distinct, which = _distinct(queries, vectors, layers, _of_rows(grading, range(rows)))
    lengths = [len(queries[i]) for i in distinct]
    shape = (len(distinct), 1 + vectors.shape[1])
    answers = _room(shape, graded=grading is not None)

    def padded(longest: int) -> int:
        return fitted_query_length(config, longest, len(distinct))

    def call(chunk: list[int], size: int) -> tuple[jax.Array, ...]:
        length = padded(max(lengths[i] for i in chunk))
        filled = [distinct[i] for i in fill_up(chunk, size)]
        tokens, last = pad_rows([queries[i] for i in filled], length)
        inputs = put_rows(model.mesh, (tokens, last, vectors[filled], layers[filled]))
        of_rows = put_rows(model.mesh, _of_rows(grading, filled))
        return inject_rows(config, model.params, *inputs, schedule, of_rows, operation)

    def keep(chunk: list[int], injected: tuple[Any, ...]) -> None:
        _fill(answers, chunk, Answers(*injected))

    size = vectors.shape[2] if vectors.ndim == 4 else 1
    work = Work(
        lambda i: injection_flops(config, lengths[i], layers[distinct[i]].tolist(), size),
        lambda i: (queries[distinct[i]], vectors[distinct[i]], layers[distinct[i]], operation),
        lambda longest: copies_flops(config, padded(longest), schedule, size),
    )
    a_call = rows_a_call(batch_size, max(lengths, default=0) + vectors.shape[1] * size)
    run_in_chunks("injecting", model, lengths, a_call, call, keep, work)
    answers = jax.tree.map(lambda found: found[which], answers)
    # What is not finite in one copy reaches all copies of its query (0 * NaN under the mask), the
    # untouched one too, so the message names a written one where there is one.
    check_answers(answers.logits[:, 1:], layers)
    check_logits(answers.logits[:, 0])
    return answers


def _distinct(
    queries: Sequence[Sequence[int]],
    vectors: np.ndarray,
    layers: np.ndarray,
    grading: Wanted | None,
) -> tuple[list[int], list[int]]:
    """The rows that are the first of their kind, and for every row which of these it is like."""
    places: dict[bytes, int] = {}
    first: list[int] = []
    which: list[int] = []
    for i, query in enumerate(queries):
        arrays = [np.asarray(query), vectors[i], layers[i], *(ids[i] for ids in grading or ())]
        kind = hashlib.sha256(b"|".join(array.tobytes() for array in arrays)).digest()
        if kind not in places:
            places[kind] = len(first)
            first.append(i)
        which.append(places[kind])
    return first, which


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
    model: Loaded,
    queries: Sequence[Sequence[int]],
    theta: Float[np.ndarray, "N L D"],
    batch_size: int,
    grading: Wanted | None = None,
) -> Answers:
    """Theta [N, L, D] injected after every layer: Answers [N, 1 + L], first the untouched one.

    Args: as of `inject_vectors`.
    """
    layers = np.arange(model.config.num_layers)
    schedule = wavefront_schedule(len(layers))
    return inject_vectors(model, queries, theta, layers, batch_size, schedule, grading)


SETS_A_ROW = 4  # of vectors that share a row, and so the run of its query
GROUPS_OF_SETS = 2 * NUM_GROUPS  # more compilation and less work: there is more of it


def sweep_several(
    model: Loaded,
    queries: Sequence[Sequence[int]],
    thetas: Sequence[Float[np.ndarray, "N L D"]],
    batch_size: int,
    grading: Wanted | None = None,
) -> list[Answers]:
    """What `sweep_layers` gives for each of several sets of vectors, with the queries run once for
    every `SETS_A_ROW` of them.

    Args: as of `inject_vectors`.
    """
    found: list[Answers] = []
    left = list(thetas)
    together = SETS_A_ROW if batch_size >= SETS_A_ROW * shape_of(model.mesh).data else 1
    while len(left) >= together > 1:  # what is left over goes alone: one more compiled shape, not 3
        sets, left = left[:together], left[together:]
        found += _sweep_together(model, queries, sets, -(-batch_size // together), grading)
    return found + [sweep_layers(model, queries, theta, batch_size, grading) for theta in left]


def _sweep_together(
    model: Loaded,
    queries: Sequence[Sequence[int]],
    thetas: Sequence[np.ndarray],
    batch_size: int,
    grading: Wanted | None,
) -> list[Answers]:
    """Copies of one layer stand side by side, so that those of all sets join the row together."""
    count, num_layers = len(thetas), model.config.num_layers
    layers = np.repeat(np.arange(num_layers), count)
    vectors = np.stack(thetas, axis=2).reshape(len(queries), num_layers * count, -1)
    schedule = schedule_of(layers.tolist(), num_layers, GROUPS_OF_SETS)
    answers = inject_vectors(model, queries, vectors, layers, batch_size, schedule, grading)
    columns = [[0, *range(1 + i, answers.tokens.shape[1], count)] for i in range(count)]
    return [jax.tree.map(lambda found, own=own: found[:, own], answers) for own in columns]


# Row lengths are rounded up, so that few shapes are compiled: trees of up to 72 tokens to a
# multiple of 8, longer ones to 88, 104 ... tokens; on a CPU short ones, which most tasks have, to a
# multiple of 2. Queries to 4, 12, 20 ... tokens, because most zero-shot queries have 4.
SHORT_TREE, SHORT_TREE_STEP = 40, 2
TREE_STEP, LONG_TREE, LONG_TREE_STEP = 8, 72, 16
QUERY_STEP, QUERY_FIRST = 8, 4
# Where that pads by more than a shape of its own costs: short trees not at all, others of up to 80
# tokens to a multiple of 4, longer ones to one of 8, and queries of up to 12 to a multiple of 2.
FINE_TREE, FINE_TREE_STEP, FINE_LONG_TREE_STEP = 80, 4, 8
FINE_QUERY, FINE_QUERY_STEP = 12, 2
REUSED = 5  # a run has as many calls, and more, that want the same length


def row_length(tokens: int) -> int:
    """What a tree, or a whole prompt, of so many tokens is padded to."""
    if tokens <= SHORT_TREE and jax.default_backend() == "cpu":
        return round_up(tokens, SHORT_TREE_STEP)
    if tokens <= LONG_TREE:
        return round_up(tokens, TREE_STEP)
    return round_up(tokens, LONG_TREE_STEP, LONG_TREE)


def query_length(tokens: int) -> int:
    """What a zero-shot query of so many tokens is padded to."""
    return round_up(tokens, QUERY_STEP, QUERY_FIRST)


def fitted_row_length(config: DecoderConfig, tokens: int, rows: int) -> int:
    """`row_length`, or a finer one where that spares so many rows enough padding."""
    fine = round_up(tokens, FINE_TREE_STEP if tokens <= FINE_TREE else FINE_LONG_TREE_STEP)
    if tokens <= SHORT_TREE and jax.default_backend() == "cpu":
        fine = tokens
    return _worth(config, rows, row_length(tokens), fine)


def fitted_query_length(config: DecoderConfig, tokens: int, rows: int) -> int:
    """`query_length`, or a finer one where that spares so many rows enough padding."""
    fine = round_up(tokens, FINE_QUERY_STEP) if tokens <= FINE_QUERY else query_length(tokens)
    return _worth(config, rows, query_length(tokens), fine)


def _worth(config: DecoderConfig, rows: int, coarse: int, fine: int) -> int:
    saved = (coarse - fine) * rows * config.num_layers * layer_flops(config)
    return fine if REUSED * saved >= worth_compiling() else coarse
