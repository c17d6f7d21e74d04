"""Prompts drawn, and what is read from them: theta, and what in-context learning answers.

Shapes: N prompts, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, sample
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Pair
from taskvec_jax.vectors.graded import Graded, Wanted
from taskvec_jax.vectors.sweep import read_texts

FEWEST_QUERIES = 30  # on test, that dev must leave to it if the two are not to share queries


MOST_ASSUMED = 3  # tokens of an output


class InContext(NamedTuple):
    """What the model says after whole prompts, demonstrations and query.

    Attributes:
      tokens: int32 [N], the most likely token.
      assumed: int32 [N, A], the first tokens of the pair's output; -1 where it has fewer.
      after: int32 [N, A], the most likely token after the prompt and the assumed tokens up to each:
        the next token of the answer where it begins with them.
      graded: graded scores of the first token, [N]; None where no wanted tokens were given.
    """

    tokens: np.ndarray
    assumed: np.ndarray
    after: np.ndarray
    graded: Graded | None = None

    def begun(self) -> list[tuple[int, ...]]:
        """The beginning of each answer: one token, and another after each that was assumed."""
        found = []
        for first, assumed, after in zip(
            self.tokens.tolist(), self.assumed.tolist(), self.after.tolist(), strict=True
        ):
            answer = [first]
            for token, following in zip(assumed, after, strict=True):
                if answer[-1] != token:
                    break
                answer.append(following)
            found.append(tuple(answer))
        return found

    def part(self, rows: slice) -> InContext:
        """What is said after some of the prompts."""
        return jax.tree.map(lambda values: values[rows], self)


def query_parts(fitted: FittedTask, settings: Settings) -> dict[str, list[Pair]]:
    """The pairs that dev and test ask for, no pair in both; empty where the two share them.

    Under the rule `paper` they do, as in the paper; else only where test would have fewer than
    `FEWEST_QUERIES` pairs to ask for.
    """
    pairs = fitted.pairs
    if settings.rule == "paper" or len(pairs) - len(pairs) // 2 < FEWEST_QUERIES:
        return {}
    order = draw(seeded(settings.seed, fitted.task.name, "queries"), pairs, len(pairs))
    return {"dev": order[: len(pairs) // 2], "test": order[len(pairs) // 2 :]}


def draw_prompts(
    fitted: FittedTask, settings: Settings, split: str, start: int = 0
) -> list[Prompt]:
    """The prompts of one split ("dev" or "test") under these settings, from number `start` on.

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
        start=start,
        queries=query_parts(fitted, settings).get(split, ()),
    )


def read_prompts(
    scorer: Scorer, prompts: Sequence[Prompt], batch_size: int, wanted: Wanted | None = None
) -> tuple[np.ndarray, InContext]:
    """Theta of each prompt and its in-context answer; the demonstrations are run once.

    What follows the answer's first token is read in the same pass, for a few tokens more a prompt,
    on the assumption that the answer is the pair's output.

    Args:
      batch_size: rows a compiled call works on.
      wanted: tokens for the graded scores of the in-context answers.

    Returns:
      Theta, float32 [N, L, D], after every layer, averaged over the prompt's dummy queries; and the
      in-context answers.

    Raises:
      TaskVecError: prompts of different numbers of dummy queries; texts that the model cannot
        read; or a residual stream that is not finite.
    """
    encode = scorer.model.tokenizer.encode_all
    count = _num_dummies(prompts)
    asked = [encode([*prompt.dummies(), prompt.icl()]) for prompt in prompts]
    assumed = _assumed(scorer, prompts, [len(icl) for *_, icl in asked])
    texts = [
        [*dummies, *_with_answer(icl, tokens)]
        for (*dummies, icl), tokens in zip(asked, assumed, strict=True)
    ]
    residuals, answers = read_texts(scorer.model, texts, batch_size, wanted, unanswered=count)
    theta = residuals[:, :count].mean(axis=1)
    graded = answers.graded and Graded(*(values[:, 0] for values in answers.graded))
    said = answers.tokens
    return theta, InContext(said[:, 0], assumed, said[:, 1:], graded)


def read_in_context(scorer: Scorer, prompts: Sequence[Prompt], batch_size: int) -> InContext:
    """The in-context answers of `read_prompts`, without theta.

    Raises:
      TaskVecError: texts that the model cannot read; a residual stream that is not finite.
    """
    asked = scorer.model.tokenizer.encode_all([prompt.icl() for prompt in prompts])
    assumed = _assumed(scorer, prompts, [len(icl) for icl in asked])
    texts = [_with_answer(ids, tokens) for ids, tokens in zip(asked, assumed, strict=True)]
    _, answers = read_texts(scorer.model, texts, batch_size)
    return InContext(answers.tokens[:, 0], assumed, answers.tokens[:, 1:])


def _assumed(scorer: Scorer, prompts: Sequence[Prompt], lengths: Sequence[int]) -> np.ndarray:
    """The first tokens of each pair's output, int32 [N, A], as far as prompts of these lengths
    leave room for them, filled up with -1."""
    assumed = np.full((len(prompts), MOST_ASSUMED), -1, np.int32)
    for row, prompt, length in zip(assumed, prompts, lengths, strict=True):
        room = max(0, min(MOST_ASSUMED, scorer.model.config.max_length - length))
        tokens = scorer.output_tokens(prompt.query)[:room]
        row[: len(tokens)] = tokens
    return assumed


def _with_answer(prompt: Sequence[int], assumed: np.ndarray) -> list[list[int]]:
    """A prompt, and the prompt with each beginning of an answer: 1 + A texts. An answer of fewer
    tokens repeats its last."""
    tokens = [token for token in assumed.tolist() if token >= 0]
    texts = [[*prompt, *tokens[:count]] for count in range(len(tokens) + 1)]
    return texts + texts[-1:] * (len(assumed) - len(tokens))


def read_theta(model: Model, prompts: Sequence[Prompt], batch_size: int) -> np.ndarray:
    """Theta of each prompt after every layer, without its in-context answer: [N, L, D].

    Raises:
      TaskVecError: as of `read_prompts`.
    """
    count = _num_dummies(prompts)
    texts = [model.tokenizer.encode_all(prompt.dummies()) for prompt in prompts]
    return read_texts(model, texts, batch_size, unanswered=count)[0].mean(axis=1)


def _num_dummies(prompts: Sequence[Prompt]) -> int:
    counts = {len(prompt.dummy_queries) for prompt in prompts}
    if len(counts) != 1 or not min(counts):
        raise TaskVecError(
            f"the prompts have {sorted(counts)} dummy queries; allowed: one or more, the same"
            " number in each, because theta is averaged over them"
        )
    return counts.pop()
