"""Prompts through the model: theta of each, and what in-context learning answers.

Shapes: N prompts, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, sample
from taskvec_jax.vectors.sweep import read_texts


class PromptsRead(NamedTuple):
    """What is read from prompts.

    Attributes:
      theta: float32 [N, L, D], after every layer, averaged over the prompt's dummy queries.
      icl: int32 [N], the most likely token after the whole prompt, demonstrations and query.
    """

    theta: np.ndarray
    icl: np.ndarray


def draw_prompts(fitted: FittedTask, settings: Settings, split: str) -> list[Prompt]:
    """The prompts of one split ("dev" or "test") under these settings.

    Raises:
      TaskVecError: the task was fitted to another template, or has too few pairs.
    """
    if fitted.template != settings.template:
        raise TaskVecError(
            f"{fitted.task.name} was fitted to the template {fitted.template.label}, and the"
            f" settings say {settings.template.label}; fit(task, tokenizer, settings.template)"
        )
    return sample(
        fitted,
        seed=settings.seed,
        split=split,
        count=settings.num_prompts,
        num_demonstrations=settings.num_demonstrations,
        num_dummy_queries=settings.num_dummy_queries,
    )


def read_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    batch_size: int,
    *,
    theta_only: Sequence[Prompt] = (),
) -> PromptsRead:
    """Theta of each prompt and its in-context answer; the demonstrations are run once.

    Args:
      batch_size: rows a compiled call works on.
      theta_only: prompts of which only theta is wanted. They are read in the same calls, and their
        thetas come before those of `prompts`.

    Returns:
      theta of [*theta_only, *prompts], and icl of `prompts`.

    Raises:
      TaskVecError: prompts of different numbers of dummy queries; texts that the model cannot
        read; or a residual stream that is not finite.
    """
    encode = model.tokenizer.encode_all
    counts = {len(prompt.dummy_queries) for prompt in [*theta_only, *prompts]}
    if len(counts) != 1 or not min(counts):
        raise TaskVecError(
            f"the prompts have {sorted(counts)} dummy queries; allowed: one or more, the same"
            " number in each, because theta is averaged over them"
        )
    texts = [
        *(encode(prompt.dummies()) for prompt in theta_only),
        *(encode([*prompt.dummies(), prompt.icl()]) for prompt in prompts),
    ]
    residuals, answers = read_texts(model, texts, batch_size)  # [N, R, L, D], [N, R]
    theta = residuals[:, : counts.pop()].mean(axis=1)
    return PromptsRead(theta, answers.tokens[len(theta_only) :, -1])


def read_theta(model: Model, prompts: Sequence[Prompt], batch_size: int) -> np.ndarray:
    """Theta of each prompt after every layer, without its in-context answer: [N, L, D].

    Raises:
      TaskVecError: as of `read_prompts`.
    """
    return read_prompts(model, (), batch_size, theta_only=prompts).theta
