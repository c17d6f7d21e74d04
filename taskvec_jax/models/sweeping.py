"""`Model.sweep`: the fast sweep over all layers, for texts.

Shapes: N queries, L layers, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError, short_repr
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.checks import check_ids
from taskvec_jax.vectors.batching import Loaded
from taskvec_jax.vectors.graded import Wanted
from taskvec_jax.vectors.sweep import sweep_layers

MOST_ROWS = 64  # of a compiled call


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a model says when a vector is written after each of its layers.

    Attributes:
      tokens: int32 [N, L], the most likely next token with the vector written after layer l.
      untouched: int32 [N], the same with nothing written.
      logprob: float32 [N, L], log-probability of the likeliest of a query's answers, in nats; None
        without answers.
      untouched_logprob: float32 [N]; None without answers.
    """

    tokens: np.ndarray
    untouched: np.ndarray
    logprob: np.ndarray | None = None
    untouched_logprob: np.ndarray | None = None

    def records(self) -> list[dict[str, Any]]:
        """A flat dict for each query and layer; `layer` is None where nothing was written."""
        tokens = np.column_stack([self.untouched, self.tokens])
        logprob = None
        if self.logprob is not None and self.untouched_logprob is not None:
            logprob = np.column_stack([self.untouched_logprob, self.logprob])
        return [
            {
                "query": query,
                "layer": column - 1 if column else None,
                "token": int(tokens[query, column]),
            }
            | ({} if logprob is None else {"logprob": float(logprob[query, column])})
            for query, column in np.ndindex(*tokens.shape)
        ]


def sweep(
    model: Loaded,
    rows: Sequence[Sequence[int]],
    theta: Any,
    wanted: Sequence[Sequence[int]] | None,
) -> Sweep:
    """`Model.sweep` of queries as token ids.

    Args:
      theta: [L, D], or [N, L, D], one a query.
      wanted: for each query the ids of tokens that are right.

    Raises:
      TaskVecError: theta of another shape, or what `sweep_layers` refuses.
    """
    config, theta = model.config, np.asarray(theta, np.float32)
    shape = (config.num_layers, config.width)
    if theta.shape not in (shape, (1, *shape), (len(rows), *shape)):
        raise TaskVecError(
            f"theta has shape {theta.shape}; allowed: {shape}, one vector for each layer, or"
            f" {(len(rows), *shape)}, one for each query and layer (as `Model.read` gives them)"
        )
    theta = np.broadcast_to(theta, (len(rows), *shape))
    size = min(MOST_ROWS, 1 << (len(rows) - 1).bit_length())
    grading = None if wanted is None else _graded_by(model, wanted)
    found = sweep_layers(model, rows, theta, size, grading)
    said = None if found.graded is None else found.graded.logprob
    return Sweep(
        found.tokens[:, 1:],
        found.tokens[:, 0],
        None if said is None else said[:, 1:],
        None if said is None else said[:, 0],
    )


def _graded_by(model: Loaded, answers: Sequence[Sequence[int]]) -> Wanted:
    """Answers of different numbers as arrays; nothing is contrasted with them.

    Raises:
      TaskVecError: an id out of range, or a query without an answer.
    """
    if not all(len(ids) for ids in answers):
        raise TaskVecError("a query has no wanted tokens; allowed: one or more for each query")
    rows = [check_ids(model.config, ids, "wanted token id").tolist() for ids in answers]
    most = max(map(len, rows))
    right = [[*ids, *[ids[0]] * (most - len(ids))] for ids in rows]
    return Wanted(np.array(right, np.int32), np.array([ids[0] for ids in rows], np.int32))


def first_tokens(
    tokenizer: Tokenizer, texts: Sequence[Any], rows: Sequence[Sequence[int]], answers: Any
) -> list[list[int]]:
    """The ids of the first tokens of each query's answers.

    Args:
      texts: the queries, strings or token ids.
      rows: their token ids.
      answers: one item a query: a string as it would be written right after the query, a token id,
        or a list of these, of which any is right.

    Raises:
      TaskVecError: another number of answers than of queries, no answer, or a string that cannot
        follow its query.
    """
    given = [answers] if isinstance(answers, str | int | np.integer) else list(answers)
    if len(given) != len(rows):
        raise TaskVecError(f"{len(given)} answers for {len(rows)} queries; give one for each")

    def first(number: int, answer: Any) -> int:
        if isinstance(answer, int | np.integer):
            return int(answer)
        if not isinstance(answer, str) or not isinstance(texts[number], str):
            raise TaskVecError(
                f"answer {number} is {short_repr(answer)}; allowed: a token id or, where its query"
                " is a string too, a string"
            )
        ids = tokenizer.continuation(texts[number], answer)
        if not ids:
            raise TaskVecError(
                f"answer {number} is {answer!r}, which is empty or changes the tokens of the query"
                f" {short_repr(texts[number])} before it; begin it with a space, or give a token id"
            )
        return ids[0]

    found = []
    for number, one in enumerate(given):
        several = one if isinstance(one, list | tuple | np.ndarray) else [one]
        found.append(list(dict.fromkeys(first(number, answer) for answer in several)))
    return found
