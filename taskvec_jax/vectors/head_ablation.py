"""Sets of attention heads taken out of a model, and which heads are induction heads.

A head is ablated by its mean: at every token its output becomes its average over tokens of many
texts, so that what it says of this text is lost and its constant part stays.

Shapes: N texts, B rows, T tokens, S sets, L layers, H heads, K head size.
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
from taskvec_jax.transformer.checks import check_logits, check_texts
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import attention_context, text_layout
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params, at_positions
from taskvec_jax.vectors.account import Work
from taskvec_jax.vectors.batching import fill_up, run_in_chunks
from taskvec_jax.vectors.copies import take_layer
from taskvec_jax.vectors.flops import answer_flops, row_flops, text_flops
from taskvec_jax.vectors.programs import top
from taskvec_jax.vectors.rows import pad_rows
from taskvec_jax.vectors.sweep import row_length

AT_ONCE = 8  # texts whose outputs at all tokens are held at once
REPEATED, SEQUENCES = 25, 8  # random tokens that are repeated, and how many such texts


def mean_outputs_of_tokens(model: Model, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Output of every head, averaged over all tokens of all texts: float32 [L, H, K].

    Raises:
      TaskVecError: texts that the model cannot read.
    """
    c = model.config
    total, count = np.zeros((c.num_layers, c.num_heads, c.head_dim)), 0
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        read = model.read(some, site="head", positions="all")  # [n, T, L, H, K]
        for text, outputs in zip(some, read, strict=True):
            total += outputs[: len(text)].astype(np.float64).sum(axis=0)
            count += len(text)
    return (total / count).astype(np.float32)


def prefix_matching(model: Model, seed: int = 0) -> np.ndarray:
    """How much each head attends to what came after the same token earlier, float64 [L, H].

    Texts are random different tokens and then the same again; from each token of the repetition,
    the attention to the token after its first occurrence, averaged: 1 for a perfect induction head
    (Olsson et al. 2022, arXiv 2209.11895).

    Raises:
      TaskVecError: the vocabulary or the context is too small for such texts.
    """
    tokenizer = model.tokenizer
    bos = tokenizer.encode("")
    special = {*bos, *tokenizer.ends}
    ids = [i for i in range(min(model.config.vocab_size, tokenizer.vocab_size)) if i not in special]
    count = min(REPEATED, len(ids), (model.config.max_length - len(bos)) // 2)
    if count < 2:
        raise TaskVecError("this model has too few tokens to repeat two of them")
    rng = np.random.RandomState([seed % 2**32, *b"induction"])
    texts = []
    for _ in range(SEQUENCES):
        drawn = [ids[i] for i in rng.permutation(len(ids))[:count]]
        texts.append([*bos, *drawn, *drawn])
    again = [len(bos) + count + i for i in range(count)]
    pattern = model.read(texts, site="pattern", positions=again)  # [N, P, L, H, T]
    after = [len(bos) + i + 1 for i in range(count)]
    scores = np.stack([pattern[:, i, :, :, at] for i, at in enumerate(after)])  # [P, N, L, H]
    return scores.astype(np.float64).mean(axis=(0, 1))


def ablate_heads(
    model: Model,
    texts: Sequence[Sequence[int]],
    sets: np.ndarray,
    outputs: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """The next token of each text with each set of heads ablated at every token.

    Args:
      texts: token ids of N texts.
      sets: bool [S, L, H], the heads of each set; an empty set leaves the model as it is.
      outputs: [L, H, K], what the outputs of ablated heads become.
      batch_size: rows a program call works on.

    Returns:
      int32 [N, S].

    Raises:
      TaskVecError: texts that the model cannot read, sets or outputs of another shape, or logits
        that are not finite.
    """
    config = model.config
    check_texts(config, texts)
    sets, outputs = np.asarray(sets), np.asarray(outputs, np.float32)
    shape = (config.num_layers, config.num_heads)
    if sets.dtype != bool or sets.ndim != 3 or sets.shape[1:] != shape:
        raise TaskVecError(
            f"sets of heads are {sets.dtype} {sets.shape}; allowed: bool, (sets, {shape[0]} layers,"
            f" {shape[1]} heads)"
        )
    if outputs.shape != (*shape, config.head_dim):
        raise TaskVecError(
            f"outputs of heads have shape {outputs.shape}; allowed: {(*shape, config.head_dim)}"
        )
    lengths = [len(text) for text in texts]
    answers = np.empty((len(texts), len(sets)), np.int32)
    logits = np.empty(answers.shape, np.float32)

    def call(chunk: list[int], size: int) -> tuple[jax.Array, jax.Array]:
        length = row_length(max(lengths[i] for i in chunk))
        tokens, last = pad_rows([texts[i] for i in fill_up(chunk, size)], length)
        inputs = put_rows(model.mesh, (tokens, last))
        return ablated_answers(config, model.params, *inputs, sets, outputs)

    def keep(chunk: list[int], found: tuple[np.ndarray, np.ndarray]) -> None:
        for kept, array in zip((answers, logits), found, strict=True):
            kept[chunk] = array[: len(chunk)]

    most = min(batch_size, len(texts))
    work = Work(
        lambda i: len(sets) * (text_flops(config, lengths[i]) + answer_flops(config)),
        lambda i: (texts[i], sets, outputs),
        lambda longest: len(sets) * row_flops(config, row_length(longest), config.num_layers, 1),
    )
    run_in_chunks("ablating heads", model, lengths, most, call, keep, work)
    check_logits(logits)
    return answers


@functools.partial(jax.jit, static_argnames="config")
def ablated_answers(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    sets: jax.Array,
    outputs: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Next tokens int32 [B, S] and their logits, set after set; arguments as of `ablate_heads`."""
    block = FAMILY_MODULES[config.family].Block(config)
    layout = text_layout(config, tokens.shape[1], last + 1)
    contexts = attention_context(config, layout)
    embedded = Decoder(config).apply(params, tokens, layout.positions, method="embed")

    def answers(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:  # bool [L, H]
        def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            def visit(site: str, value: jax.Array) -> jax.Array:
                if site != "head":
                    return value
                mean = outputs[index].astype(value.dtype)  # [H, K]
                return jnp.where(chosen[index][:, None], mean, value)

            here = contexts.of_layer(index, visit)
            return block.apply({"params": take_layer(params, index)}, x, here), None

        x, _ = jax.lax.scan(step, embedded, jnp.arange(config.num_layers))
        return top(Decoder(config).apply(params, at_positions(x, last), method="unembed"))

    tokens_of_sets, logits = jax.lax.map(answers, sets)  # [S, B]
    return tokens_of_sets.T, logits.T
