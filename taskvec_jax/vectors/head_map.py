"""The indirect effect of every attention head, all layers x heads in one compiled pass.

One head of one layer is patched: at the last token of a prompt its output, the part of the output
projection's input that is its own, becomes a given vector, and the change of an answer's
probability is asked for. Todd et al. 2023 (arXiv 2310.15213) patch mean outputs over in-context
prompts into prompts with shuffled labels; the mean change over those is the head's average indirect
effect.

The definition is a loop of L x H full forward passes. They differ at the last token only, and from
the patched layer on, so here they are copies of that token in one row (see copies.py). Counted in
floating-point operations (`flops.py`) the default model's 270 heads cost 1/60 of the loop for a
prompt of 60 tokens.

Shapes: N prompts, B rows, T tokens, L layers, H heads, K head size, D width.
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
from taskvec_jax.transformer.checks import check_answers, check_ids, check_logits, check_texts
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params
from taskvec_jax.vectors.account import Work
from taskvec_jax.vectors.batching import fill_up, run_in_chunks
from taskvec_jax.vectors.copies import Schedule, run_copies
from taskvec_jax.vectors.flops import copies_flops, head_map_flops
from taskvec_jax.vectors.programs import schedule_of
from taskvec_jax.vectors.rows import pad_rows
from taskvec_jax.vectors.sweep import row_length

NUM_GROUPS = 10  # of layers; more than in the sweep, as each layer brings H copies


class HeadMap(NamedTuple):
    """Probabilities of each prompt's answer, float64.

    Attributes:
      untouched: [N].
      patched: [N, L, H], with one head of one layer patched at the last token.
    """

    untouched: np.ndarray
    patched: np.ndarray

    def effects(self) -> np.ndarray:
        """Mean change of the answer's probability, [L, H]: the average indirect effect."""
        return (self.patched - self.untouched[:, None, None]).mean(axis=0)


def map_heads(
    model: Model,
    texts: Sequence[Sequence[int]],
    answers: Sequence[int],
    outputs: np.ndarray,
    batch_size: int,
) -> HeadMap:
    """Patches every head of every layer, one at a time, at the last token of each prompt.

    Args:
      texts: token ids of N prompts.
      answers: N token ids, whose probabilities are asked for.
      outputs: [L, H, K], what each head's output becomes, the same for all prompts.
      batch_size: rows a program call works on.

    Raises:
      TaskVecError: a prompt that the model cannot read; answers or outputs of another shape; ids
        out of range; outputs or probabilities that are not finite.
    """
    config = model.config
    check_texts(config, texts)
    wanted = check_ids(config, np.asarray(answers), "answer's token id").astype(np.int32)
    shape = (config.num_layers, config.num_heads, config.head_dim)
    outputs = np.asarray(outputs, np.float32)
    if wanted.shape != (len(texts),) or outputs.shape != shape:
        raise TaskVecError(
            f"answers have shape {wanted.shape} and outputs {outputs.shape}; allowed:"
            f" ({len(texts)},), a token id for each prompt, and {shape}, layers x heads x the size"
            " of a head"
        )
    if not np.isfinite(outputs).all():
        layer = int(np.argwhere(~np.isfinite(outputs))[0, 0])
        raise TaskVecError(f"the output of a head of layer {layer} that is given is not finite")
    lengths = [len(text) for text in texts]
    schedule = schedule_of_heads(config)
    log_probs = np.empty((len(texts), 1 + shape[0] * shape[1]), np.float64)

    def call(chunk: list[int], size: int) -> jax.Array:
        filled = fill_up(chunk, size)
        length = row_length(max(lengths[i] for i in chunk))
        tokens, last = pad_rows([texts[i] for i in filled], length)
        inputs = put_rows(model.mesh, (tokens, last, wanted[filled]))
        return patch_heads(config, model.params, *inputs, outputs, schedule)

    def keep(chunk: list[int], found: np.ndarray) -> None:
        log_probs[chunk] = found[: len(chunk)]

    # A chunk is filled up to its size, so that it must not be larger than what there is.
    most = min(batch_size, len(texts))
    work = Work(
        lambda i: head_map_flops(config, lengths[i]),
        lambda i: (texts[i], int(wanted[i]), outputs),
        lambda longest: copies_flops(config, row_length(longest), schedule, separate=True),
    )
    run_in_chunks("patching heads", model, lengths, most, call, keep, work)
    check_answers(log_probs[:, 1:], np.repeat(np.arange(shape[0]), shape[1])[None])
    check_logits(log_probs[:, 0])
    probs = np.exp(log_probs)
    return HeadMap(probs[:, 0], probs[:, 1:].reshape(len(texts), *shape[:2]))


def schedule_of_heads(config: DecoderConfig) -> Schedule:
    """The schedule of one copy for each head of each layer. A head of layer l is changed inside
    block l, so its copy joins before that block."""
    before = range(-1, config.num_layers - 1)
    wavefront = schedule_of(before, config.num_layers, NUM_GROUPS)
    return tuple((stop, alive * config.num_heads) for stop, alive in wavefront)


@functools.partial(jax.jit, static_argnames=("config", "schedule"))
def patch_heads(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    answers: jax.Array,
    outputs: jax.Array,
    schedule: Schedule,
) -> jax.Array:
    """Log-probability of each row's answer, [B, 1 + L H]: untouched, then with each head patched.

    Args:
      tokens: int [B, T], right-padded.
      last: int [B], index of the last token.
      answers: int [B].
      outputs: [L, H, K].
      schedule: see `run_copies`; copy l H + h is changed in layer l.
    """
    layers, heads = config.num_layers, config.num_heads
    layer_of, head_of = np.divmod(np.arange(layers * heads), heads)

    def patch(site: str, copies: jax.Array, index: jax.Array) -> jax.Array:
        if site != "head":
            return copies  # [B, n, 1, ...]
        alive = copies.shape[1]
        due = (layer_of[:alive] == index)[:, None] & (head_of[:alive, None] == np.arange(heads))
        return jnp.where(due[None, :, None, :, None], outputs[index].astype(copies.dtype), copies)

    states = run_copies(
        config, params, tokens, last, change=patch, schedule=schedule, separate=True
    )

    def log_prob(states: jax.Array) -> jax.Array:  # [B, n, D] -> [B, n]
        logits = Decoder(config).apply(params, states, method="unembed")
        wanted = jnp.take_along_axis(logits, answers[:, None, None], axis=-1)[..., 0]
        return wanted - jax.nn.logsumexp(logits, axis=-1)

    # Layer by layer: logits of all copies at once would be the largest array by far.
    of_layers = states[:, 1:].reshape(-1, layers, heads, config.width).swapaxes(0, 1)
    patched = jax.lax.map(log_prob, of_layers)  # [L, B, H]
    patched = patched.swapaxes(0, 1).reshape(-1, layers * heads)
    return jnp.concatenate([log_prob(states[:, :1]), patched], axis=1)
