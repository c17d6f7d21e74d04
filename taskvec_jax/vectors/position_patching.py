"""States written at several positions of a text, over windows of layers, all windows in one pass.

A window of layers first, ..., stop - 1: after each of them the residual stream at all the positions
is replaced. Windows share what comes before them: the text is run once, and each window goes on
from the state after its first layer.

Where only the last token is written, after single layers, `patch_last` does it for far less.

Shapes: N texts, B rows, T tokens, P positions, W windows, L layers, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.distributed.sharding import put_rows
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.checks import check_answers, check_logits, check_texts
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import attention_context, text_layout
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params, at_positions
from taskvec_jax.vectors.account import Work
from taskvec_jax.vectors.batching import fill_up, round_up, run_in_chunks
from taskvec_jax.vectors.copies import take_layer
from taskvec_jax.vectors.flops import answer_flops, row_flops, text_flops
from taskvec_jax.vectors.programs import NUM_GROUPS, schedule_of, top
from taskvec_jax.vectors.rows import pad_rows
from taskvec_jax.vectors.sweep import inject_vectors, row_length

POSITIONS_STEP = 8  # positions are rounded up to a multiple of this: few shapes are compiled
Window = tuple[int, int]  # the first layer, and the one after the last


def layer_windows(num_layers: int, width: int = 1) -> list[Window]:
    """For each layer the window that begins there, cut off at the last layer."""
    return [(layer, min(layer + width, num_layers)) for layer in range(num_layers)]


def patch_windows(
    model: Model,
    texts: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    states: Sequence[np.ndarray],
    windows: Sequence[Window],
    batch_size: int,
) -> np.ndarray:
    """The next token of each text, untouched and with states written over each window.

    Args:
      texts: token ids of N texts.
      positions: of each text, one or more token indices.
      states: of each text, float [P, L, D]: what is written at its positions after each layer.
      windows: W of them.
      batch_size: rows a program call works on.

    Returns:
      int32 [N, 1 + W], the untouched text's first.

    Raises:
      TaskVecError: texts that the model cannot read; positions, windows or states that do not fit
        them; states or answers that are not finite.
    """
    config = model.config
    check_texts(config, texts)
    layers = config.num_layers
    if not windows or not all(0 <= first < stop <= layers for first, stop in windows):
        raise TaskVecError(
            f"windows of layers are {list(windows)}; allowed: one or more (first, stop) with first"
            f" from 0 to {layers - 1} and stop above it, to {layers}"
        )
    if not len(texts) == len(positions) == len(states):
        raise TaskVecError(
            f"{len(texts)} texts, {len(positions)} lists of positions and {len(states)} of states;"
            " allowed: the same number of each"
        )
    most = round_up(max(map(len, positions)), POSITIONS_STEP)
    places = np.zeros((len(texts), most), np.int32)
    written = np.zeros((len(texts), most, layers, config.width), np.float32)
    for i, (text, at, given) in enumerate(zip(texts, positions, states, strict=True)):
        where = np.asarray(at)
        inside = where.size and ((where >= 0) & (where < len(text))).all()
        if not inside or np.shape(given) != (len(where), layers, config.width):
            raise TaskVecError(
                f"text {i} of {len(text)} tokens: positions {where.tolist()} with states"
                f" {np.shape(given)}; allowed: one or more from 0 to {len(text) - 1}, and"
                f" (positions, {layers}, {config.width})"
            )
        # A text of fewer positions repeats its last one, which writes the same again.
        filled = np.minimum(np.arange(most), len(where) - 1)
        places[i], written[i] = where[filled], given[filled]
    if not np.isfinite(written).all():
        layer = int(np.argmin(np.isfinite(written).all(axis=(0, 1, 3))))
        raise TaskVecError(f"a state to be written after layer {layer} is not finite")
    lengths = [len(text) for text in texts]
    answers = np.empty((len(texts), 1 + len(windows)), np.int32)
    logits = np.empty(answers.shape, np.float32)

    def call(chunk: list[int], size: int) -> tuple[jax.Array, jax.Array]:
        filled = fill_up(chunk, size)
        length = row_length(max(lengths[i] for i in chunk))
        tokens, last = pad_rows([texts[i] for i in filled], length)
        inputs = put_rows(model.mesh, (tokens, last, places[filled], written[filled]))
        return patched_answers(config, model.params, *inputs, np.array(windows, np.int32))

    def keep(chunk: list[int], found: tuple[np.ndarray, np.ndarray]) -> None:
        for kept, array in zip((answers, logits), found, strict=True):
            kept[chunk] = array[: len(chunk)]

    most = min(batch_size, len(texts))
    versions = 1 + len(windows)
    work = Work(
        lambda i: versions * (text_flops(config, lengths[i]) + answer_flops(config)),
        lambda i: (texts[i], places[i], written[i], tuple(windows)),
        lambda longest: versions * row_flops(config, row_length(longest), layers, 1),
    )
    run_in_chunks("patching positions", model, lengths, most, call, keep, work)
    check_answers(logits[:, 1:], np.array([[first for first, _ in windows]]))
    check_logits(logits[:, 0])
    return answers


def patch_last(
    model: Model,
    texts: Sequence[Sequence[int]],
    states: np.ndarray,
    layers: Sequence[int],
    batch_size: int,
) -> np.ndarray:
    """As `patch_windows` at the last token alone, after single layers.

    Args:
      states: [N, L, D], what replaces the residual stream there after each layer.
      layers: in rising order, one for each window.

    Raises:
      TaskVecError: as of `inject_vectors`.
    """
    # Few copies may as well be alive from the first layer on: one program whatever their layers.
    few = len(layers) < NUM_GROUPS
    schedule = None if few else schedule_of(layers, model.config.num_layers)
    vectors = states[:, list(layers)]
    return inject_vectors(model, texts, vectors, np.array(layers), batch_size, schedule).tokens


@functools.partial(jax.jit, static_argnames="config")
def patched_answers(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    positions: jax.Array,
    states: jax.Array,
    windows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Next tokens int32 [B, 1 + W] and their logits.

    Args:
      tokens: int [B, T], right-padded.
      last: int [B], index of the last token.
      positions: int [B, P].
      states: [B, P, L, D].
      windows: int [W, 2].
    """
    block = FAMILY_MODULES[config.family].Block(config)
    layout = text_layout(config, tokens.shape[1], last + 1)
    contexts = attention_context(config, layout)
    row = jnp.arange(tokens.shape[0])[:, None]

    def run_block(x: jax.Array, index: jax.Array) -> jax.Array:
        return block.apply({"params": take_layer(params, index)}, x, contexts.of_layer(index))

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = run_block(x, index)
        return x, x

    embedded = Decoder(config).apply(params, tokens, layout.positions, method="embed")
    x, plain = jax.lax.scan(step, embedded, jnp.arange(config.num_layers))  # plain [L, B, T, D]

    def write(x: jax.Array, index: jax.Array) -> jax.Array:
        given = jnp.take(states, index, axis=2).astype(x.dtype)  # [B, P, D]
        return x.at[row, positions].set(given)

    def of_window(window: jax.Array) -> jax.Array:
        first, stop = window

        def later(index: jax.Array, x: jax.Array) -> jax.Array:
            x = run_block(x, index)
            return jnp.where(index < stop, write(x, index), x)

        start = write(jnp.take(plain, first, axis=0), first)
        return at_positions(jax.lax.fori_loop(first + 1, config.num_layers, later, start), last)

    ends = jax.lax.map(of_window, windows)  # [W, B, D]
    every = jnp.concatenate([at_positions(x, last)[None], ends]).swapaxes(0, 1)
    return top(Decoder(config).apply(params, every, method="unembed"))
