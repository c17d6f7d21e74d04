"""Which predicted tokens are right, by the paper's rule, and the accuracy of a set of answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt
from taskvec_jax.tasks.task import Match, Pair


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of correct answers with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    n: int


def accuracy(correct: Sequence[bool] | np.ndarray) -> Accuracy:
    """Share of True with its 95 % interval (Wilson 1927, score interval).

    Raises:
      TaskVecError: there is nothing to count.
    """
    n = len(correct)
    if not n:
        raise TaskVecError("there are no answers to score; ask for at least one prompt")
    z = 1.959963984540054
    share = float(np.mean(correct))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Accuracy(share, max(0.0, centre - half), min(1.0, centre + half), n)


def is_correct(match: Match, pair: Pair, answer: str) -> bool:
    """The paper's rule.

    "exact": equal to the output or to an accepted alternative. "prefix": either string begins with
    the other, because the answer may be several tokens and only one is decoded.

    Args:
      match: of the task (`Task.match`).
      answer: one predicted token, decoded and stripped.
    """
    allowed = [pair.output.strip(), *pair.accepted]
    if match == "exact":
        return answer in allowed
    return bool(answer) and any(a.startswith(answer) or answer.startswith(a) for a in allowed)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores predicted tokens for one task and one model."""

    model: Model
    fitted: FittedTask

    def answers(self, tokens: np.ndarray) -> list[str]:
        """Decodes predicted tokens [N]."""
        return [self.model.tokenizer.decode_answer(int(token)) for token in tokens]

    def correct(self, prompts: Sequence[Prompt], tokens: np.ndarray) -> np.ndarray:
        """Whether each predicted token, int [N, ...], is right for its prompt: bool [N, ...]."""
        match = self.fitted.task.match
        decoded = {int(t): self.model.tokenizer.decode_answer(int(t)) for t in np.unique(tokens)}
        flat = tokens.reshape(len(prompts), -1)
        right = [
            [is_correct(match, prompt.query, decoded[int(token)]) for token in row]
            for prompt, row in zip(prompts, flat, strict=True)
        ]
        return np.array(right, bool).reshape(tokens.shape)

    def strictly_correct(self, prompts: Sequence[Prompt], tokens: np.ndarray) -> np.ndarray:
        """The strict rule: the predicted token, int [N], is the first one of the answer."""
        tokenizer = self.model.tokenizer
        first = [
            {
                tokenizer.continuation(self.fitted.zero_shot(p.query), answer)[:1][0]
                for answer in self._written(p.query)
                if tokenizer.continuation(self.fitted.zero_shot(p.query), answer)
            }
            for p in prompts
        ]
        return np.array([int(t) in f for t, f in zip(tokens, first, strict=True)], bool)

    def _written(self, pair: Pair) -> list[str]:
        space = " " if self.fitted.leading_space else ""
        return [pair.output, *(space + answer for answer in pair.accepted)]
