"""What an in-context prompt still answers when the task is kept from its query, after each layer.

In the whole prompt, demonstrations and query, for every layer l at once:

* no attention: in layers above l the query's tokens may not attend to the demonstrations. What the
  query has taken from them by layer l is all it will ever have.
* other state: after layer l the state of the last token, the arrow, is replaced, by that of the
  same query after demonstrations of another task, for example. Layers above l may still attend to
  the demonstrations.
* both: what the task has put anywhere else than into that state is lost.

If the task is carried to the arrow by some layers in the middle, the first is expected to be low
for small l and to reach the prompt's own level for large l; the second to be at that level for
small l, where later layers can read the demonstrations again, and to fall at and after the layers
where the arrow's state holds the task. None of this is built in or tested on a real model.

The variants of a prompt share its demonstrations, so they are copies of its query in one row (see
copies.py). The first token of a text stays visible throughout, as `run_copies` says.

Shapes: N prompts, B rows, T tokens, P tokens of a query, L layers, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.distributed.sharding import put_rows
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.checks import check_answers, check_logits, check_texts, check_vectors
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params
from taskvec_jax.vectors.account import Work
from taskvec_jax.vectors.batching import (
    fill_up,
    in_chunks,
    round_up,
    rows_a_call,
    run_in_chunks,
)
from taskvec_jax.vectors.copies import Schedule, run_copies
from taskvec_jax.vectors.flops import copies_flops, injection_flops
from taskvec_jax.vectors.programs import top, wavefront_schedule
from taskvec_jax.vectors.rows import pad_rows
from taskvec_jax.vectors.sweep import row_length

ROWS_ON_CPU = 13  # a prompt has hundreds of tokens of copies
QUERY_STEP = 2  # the tokens of a query are rounded up to a multiple of this
KINDS = ("no_attention", "other_state", "both")  # copy 3 l + i is of kind i and layer l


class CutAnswers(NamedTuple):
    """The next tokens, int32.

    Attributes:
      untouched: [N].
      no_attention, other_state, both: [N, L], see above.
    """

    untouched: np.ndarray
    no_attention: np.ndarray
    other_state: np.ndarray
    both: np.ndarray


def cut_task(
    model: Model,
    texts: Sequence[Sequence[int]],
    begins: Sequence[int],
    states: np.ndarray,
    batch_size: int,
) -> CutAnswers:
    """Keeps the task from the query of each prompt in three ways, after every layer.

    Args:
      texts: token ids of N prompts.
      begins: index of the first token of each prompt's query; those before are demonstrations.
      states: float [N, L, D], what replaces the residual stream at the last token after each layer.
      batch_size: most rows a program call works on.

    Raises:
      TaskVecError: prompts that the model cannot read, a query that begins outside of its prompt,
        states of another shape, or states or logits that are not finite.
    """
    config = model.config
    check_texts(config, texts)
    layers = config.num_layers
    lengths = [len(text) for text in texts]
    starts = np.asarray(begins, np.int32)
    if starts.shape != (len(texts),) or not ((starts >= 0) & (starts < lengths)).all():
        raise TaskVecError(
            f"queries begin at tokens {starts.tolist()}; allowed: an index for each of"
            f" {len(texts)} prompts, from 0 to its last token"
        )
    shape = (len(texts), layers, config.width)
    states = np.asarray(states, np.float32)
    if states.shape != shape:
        raise TaskVecError(f"states have shape {states.shape}; allowed: {shape}")
    check_vectors(states, np.broadcast_to(np.arange(layers), shape[:2]))
    answers = np.empty((len(texts), 1 + len(KINDS) * layers), np.int32)
    logits = np.empty(answers.shape, np.float32)
    # Prompts whose queries are alike together: all copies of a call are as long as its longest.
    order = sorted(range(len(texts)), key=lambda i: (lengths[i] - starts[i], lengths[i], i))
    rows = min(rows_a_call(batch_size, len(KINDS) * layers, ROWS_ON_CPU), len(texts))
    for some in in_chunks(order, rows):
        answers[some], logits[some] = _cut_alike(
            model, [texts[i] for i in some], starts[some], states[some], rows
        )
    check_answers(logits[:, 1:], np.repeat(np.arange(layers), len(KINDS))[None])
    check_logits(logits[:, 0])
    each = answers[:, 1:].reshape(len(texts), layers, len(KINDS))
    return CutAnswers(answers[:, 0], *(each[..., kind] for kind in range(len(KINDS))))


def _cut_alike(
    model: Model,
    texts: Sequence[Sequence[int]],
    starts: np.ndarray,
    states: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The answers of `cut_rows`, and their logits, for prompts whose queries are about as long."""
    config, layers = model.config, model.config.num_layers
    lengths = [len(text) for text in texts]
    size = min(round_up(int((lengths - starts).max()), QUERY_STEP), max(lengths))
    wavefront = wavefront_schedule(layers)
    schedule = tuple((stop, alive * len(KINDS)) for stop, alive in wavefront)
    layers_of_copies = [layer for layer in range(layers) for _ in KINDS]
    answers = np.empty((len(texts), 1 + len(KINDS) * layers), np.int32)
    logits = np.empty(answers.shape, np.float32)

    def call(chunk: list[int], rows: int) -> tuple[jax.Array, jax.Array]:
        filled = fill_up(chunk, rows)
        length = row_length(max(lengths[i] for i in chunk))
        tokens, last = pad_rows([texts[i] for i in filled], length)
        inputs = put_rows(model.mesh, (tokens, last, starts[filled], states[filled]))
        return cut_rows(config, model.params, *inputs, size, schedule)

    def keep(chunk: list[int], found: tuple[np.ndarray, np.ndarray]) -> None:
        for kept, array in zip((answers, logits), found, strict=True):
            kept[chunk] = array[: len(chunk)]

    work = Work(
        lambda i: injection_flops(
            config, lengths[i], layers_of_copies, lengths[i] - int(starts[i])
        ),
        lambda i: (texts[i], starts[i], states[i]),
        lambda longest: copies_flops(config, row_length(longest), schedule, size, separate=True),
    )
    run_in_chunks("cutting the task", model, lengths, batch_size, call, keep, work)
    return answers, logits


@functools.partial(jax.jit, static_argnames=("config", "size", "schedule"))
def cut_rows(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    begins: jax.Array,
    states: jax.Array,
    size: int,
    schedule: Schedule,
) -> tuple[jax.Array, jax.Array]:
    """Next tokens int32 [B, 1 + 3 L], the untouched prompt's first, and their logits.

    Args:
      tokens: int [B, T], right-padded.
      last, begins: int [B], index of the last token, and of the first one of the query.
      states: [B, L, D].
      size: P, at least the tokens of the longest query.
      schedule: see `run_copies`; copy 3 l + i is of kind i and layer l.
    """
    layer_of, kind = np.divmod(np.arange(len(KINDS) * config.num_layers), len(KINDS))
    replaced, blocked = kind != KINDS.index("no_attention"), kind != KINDS.index("other_state")

    def write(site: str, copies: jax.Array, index: jax.Array) -> jax.Array:
        if site != "resid":
            return copies  # [B, n, P, ...]
        alive = copies.shape[1]
        state = jnp.take(states, index, axis=1).astype(copies.dtype)[:, None]  # [B, 1, D]
        due = ((layer_of[:alive] == index) & replaced[:alive])[None, :, None]
        return copies.at[:, :, -1].set(jnp.where(due, state, copies[:, :, -1]))

    def hide(index: jax.Array, alive: int) -> jax.Array:
        return ((layer_of[:alive] < index) & blocked[:alive])[None]

    found = run_copies(
        config,
        params,
        tokens,
        last,
        change=write,
        schedule=schedule,
        size=size,
        begins=begins,
        hidden=hide,
        separate=True,
    )
    return top(Decoder(config).apply(params, found, method="unembed"))
