"""What is held against a model on the host, before a compiled program runs and after it.

JAX wraps negative indices, clamps reads and drops writes that are out of range without a message,
and the argmax of NaN is a token like any other. So every program checks its inputs and its results
here. Inside a program values cannot be looked at: there, what is out of range gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig

DAMAGED = "the weights are damaged, or overflow in this dtype: try --dtype=float32"


def is_concrete(value: Any) -> bool:
    """Whether the numbers of a value can be looked at here: not traced, and all in this process."""
    if isinstance(value, Tracer):
        return False
    return value.is_fully_addressable if isinstance(value, jax.Array) else True


def check_length(config: DecoderConfig, num_tokens: int) -> None:
    """Refuses a text beyond the context length.

    Raises:
      TaskVecError: it has more than `max_length` tokens.
    """
    if num_tokens > config.max_length:
        raise TaskVecError(
            f"{num_tokens} tokens in a text; this model reads at most {config.max_length}, its"
            " context length: take fewer demonstrations (--num_demonstrations), shorter texts, or"
            " a model of longer context"
        )


def check_ids(config: DecoderConfig, tokens: Any, name: str = "token id") -> Any:
    """Refuses token ids that the vocabulary does not have.

    Args:
      tokens: int, of any shape; lists are welcome. Traced ones cannot be looked at and pass.
      name: of one of them, for the message.

    Returns:
      The same as an array.

    Raises:
      TaskVecError: they are not whole numbers, or one is not from 0 to V - 1.
    """
    if is_concrete(tokens):
        try:
            tokens = np.asarray(tokens)
        except ValueError:
            raise TaskVecError(
                f"{name}s are lists of different lengths; pad them, for example with"
                " model.tokenizer.pad"
            ) from None
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TaskVecError(f"{name}s are of type {tokens.dtype}; they must be whole numbers")
    if isinstance(tokens, np.ndarray) and tokens.size:
        outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
        if outside.size:
            raise TaskVecError(
                f"{name} {outside.flat[0]} is out of range; allowed: 0 to {config.vocab_size - 1},"
                " the vocabulary of this model"
            )
    return tokens


def check_tokens(config: DecoderConfig, tokens: Any) -> Any:
    """Refuses token rows that a decoder cannot read.

    Args:
      tokens: int [B, T]; lists are welcome. Of traced ones only the shape is checked.

    Returns:
      The same as an array.

    Raises:
      TaskVecError: another shape, more tokens than the context length, or an id out of range.
    """
    tokens = check_ids(config, tokens)
    if tokens.ndim != 2 or not tokens.size:
        raise TaskVecError(
            f"tokens have shape {tokens.shape}; allowed: (rows, tokens in a row), so one text is"
            " [[1, 2, 3]]"
        )
    check_length(config, tokens.shape[1])
    return tokens


def check_texts(config: DecoderConfig, texts: Sequence[Sequence[int]]) -> None:
    """Refuses texts, as lists of token ids, that a model cannot read.

    Raises:
      TaskVecError: there is none, one is empty or longer than the context, or holds an id out of
        range.
    """
    try:
        lengths = [len(text) for text in texts]
    except TypeError:
        raise TaskVecError(
            f"texts are {str(texts)[:60]}; each must be a list of token ids, so one text is"
            " [[1, 2, 3]]"
        ) from None
    if not lengths or not min(lengths):
        raise TaskVecError("there is no text to read; every text needs at least one token")
    check_length(config, max(lengths))
    check_ids(config, np.concatenate([np.asarray(text) for text in texts]))


def check_range(name: str, values: Any, size: int) -> None:
    """Refuses indices on the host that are not from 0 to size - 1.

    Raises:
      TaskVecError: one is not.
    """
    values = np.asarray(values)
    if values.size and not (values.min() >= 0 and values.max() < size):
        raise TaskVecError(
            f"{name}s run from {values.min()} to {values.max()}; allowed: 0 to {size - 1}, counted"
            " from 0"
        )


def check_finite(residuals: np.ndarray, logits: np.ndarray | None = None) -> None:
    """Stops on a residual stream [..., L, D], or logits of any shape, that are not finite.

    Raises:
      TaskVecError: it names the first layer with a value that is not finite.
    """
    axes = tuple(i for i in range(residuals.ndim) if i != residuals.ndim - 2)
    finite = np.isfinite(residuals).all(axis=axes)
    if not finite.all():
        raise TaskVecError(
            f"the residual stream after layer {int(np.argmin(finite))} is not finite; {DAMAGED}"
        )
    if logits is not None:
        check_logits(logits)


def check_logits(logits: np.ndarray) -> None:
    """Stops on logits of any shape that are not finite.

    Raises:
      TaskVecError: there are some.
    """
    if not np.isfinite(logits).all():
        raise TaskVecError(f"the logits, after the last layer, are not finite; {DAMAGED}")


def check_vectors(vectors: np.ndarray, layers: np.ndarray) -> None:
    """Stops on vectors to be written that are not numbers.

    Args:
      vectors: [C, D] or [N, C, D], with more axes between C and D where several tokens are
        written together.
      layers: int [C] or [N, C], the layer of each.

    Raises:
      TaskVecError: it names the layer after which the first such vector was to be written.
    """
    axes = tuple(range(layers.ndim, vectors.ndim))
    _stop_at(
        np.asarray(~np.isfinite(vectors).all(axis=axes)), layers, "the vector to be written", ""
    )


def check_answers(values: np.ndarray, layers: np.ndarray) -> None:
    """Stops on answers, with a vector written, whose logit, loss or divergence is not finite.

    Args:
      values: [N, C], one for each written vector.
      layers: int [N, C], the layer after which each was written.

    Raises:
      TaskVecError: it names the layer of the first such answer.
    """
    why = (
        ": what is computed from it, or from another vector written to the same text, overflows in"
        " this dtype; try --dtype=float32"
    )
    _stop_at(~np.isfinite(values), layers, "the answer with a vector written", why)


def _stop_at(bad: np.ndarray, layers: np.ndarray, what: str, why: str) -> None:
    if bad.any():
        layer = int(np.broadcast_to(layers, bad.shape)[bad].min())
        raise TaskVecError(f"{what} after layer {layer} is not finite{why}")
