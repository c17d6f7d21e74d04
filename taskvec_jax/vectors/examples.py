"""What vectors are learned from: zero-shot queries and what should come next.

Shapes: N examples, T tokens, A answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.tokenizer import PAD
from taskvec_jax.transformer.checks import (
    check_ids,
    check_length,
    check_range,
)
from taskvec_jax.transformer.config import DecoderConfig

NO_ANSWER = -1  # fills up the answers of an example that has fewer than others


class Examples(NamedTuple):
    """Zero-shot queries and what should come next.

    Attributes:
      tokens: int32 [N, T], right-padded.
      last: int32 [N], index of the last token.
      answers: int32 [N, A], tokens of which any is right; `NO_ANSWER` where there are fewer.
      wanted: float32 [N, V], log-probabilities to come close to instead of the answers; [N, 0]
        when the answers count.
    """

    tokens: np.ndarray
    last: np.ndarray
    answers: np.ndarray
    wanted: np.ndarray


def make_examples(
    queries: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    wanted: np.ndarray | None = None,
) -> Examples:
    """Pads token ids to `Examples`.

    Raises:
      TaskVecError: no example, or one without an answer.
    """
    if not queries or not all(answers):
        raise TaskVecError("there is nothing to learn from; every example needs an answer")
    last = np.array([len(query) - 1 for query in queries], np.int32)
    # To an even length only: padding is paid for at every step, forwards and backwards.
    tokens = np.full((len(queries), last.max() // 2 * 2 + 2), PAD, np.int32)
    for row, query in zip(tokens, queries, strict=True):
        row[: len(query)] = query
    padded = np.full((len(answers), max(map(len, answers))), NO_ANSWER, np.int32)
    for row, ids in zip(padded, answers, strict=True):
        row[: len(ids)] = ids
    if wanted is None:
        wanted = np.zeros((len(queries), 0), np.float32)
    return Examples(tokens, last, padded, wanted)


def check_examples(config: DecoderConfig, examples: Examples) -> None:
    """Refuses examples that a model cannot read or answer.

    Raises:
      TaskVecError: a query beyond the context, or a token id or an index out of range.
    """
    check_range("last token", examples.last, examples.tokens.shape[1])
    check_length(config, int(examples.last.max()) + 1)
    check_ids(config, examples.tokens)
    check_ids(config, examples.answers[examples.answers != NO_ANSWER], "answer's token id")
