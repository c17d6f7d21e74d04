"""Answers of a model to the prompts of one task, scored by both rules.

What is predicted at the last token of a prompt settles most answers by itself: under `paper` all of
them, under `full` those whose first token begins no accepted answer. `complete` generates the rest,
greedily, until it is settled whether they are right.

Shapes: N prompts, B rows of a call, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.scoring import ScoringRule, cut, scoring_rule
from taskvec_jax.models.generating import generate
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit
from taskvec_jax.tasks.sampling import seeded
from taskvec_jax.tasks.task import Pair, Task
from taskvec_jax.transformer.edits import replace
from taskvec_jax.vectors.graded import Wanted

CALLS = (4, 16)  # rows of a call of the generation, so that few programs are compiled
WANTED_STEP = 8  # first tokens of accepted answers are filled up to a multiple of this many


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores the answers of one model to one task."""

    model: Model
    fitted: FittedTask

    def rule(self, name: str) -> ScoringRule:
        """The rule of a name for this task."""
        task = self.fitted.task
        return scoring_rule(name, match=task.match, ignore_case=task.ignore_case)

    def words(self, tokens: np.ndarray) -> list[str]:
        """Decodes predicted tokens [N]."""
        return [self.model.tokenizer.decode_answer(int(token)) for token in tokens]

    def by_first_token(self, prompts: Sequence[Prompt], tokens: np.ndarray) -> np.ndarray:
        """Whether predicted tokens, int [N, ...], are right by the rule `paper`: bool [N, ...]."""
        rule, decode = self.rule("paper"), self.model.tokenizer.decode_answer
        return self._of_tokens(
            prompts, tokens, lambda token, pair: rule.is_right(decode(token), accepted(pair))
        )

    def may_be_right(self, prompts: Sequence[Prompt], tokens: np.ndarray) -> np.ndarray:
        """Whether answers that begin with these tokens, int [N, ...], may be right by the rule
        `full`: bool [N, ...]."""
        return self._of_tokens(
            prompts, tokens, lambda token, pair: self.settled(pair, [token]) is not False
        )

    def _of_tokens(self, prompts: Sequence[Prompt], tokens: np.ndarray, judge) -> np.ndarray:
        flat = np.asarray(tokens).reshape(len(prompts), -1)
        found = np.zeros(flat.shape, bool)
        for row, prompt, values in zip(found, prompts, flat, strict=True):
            right = {token: judge(token, prompt.query) for token in set(values.tolist())}
            row[:] = [right[token] for token in values.tolist()]
        return found.reshape(np.shape(tokens))

    def settled(self, pair: Pair, ids: Sequence[int]) -> bool | None:
        """Whether an answer that begins with these tokens is right by the rule `full`; None where
        that depends on what follows."""
        if any(token in self._ends for token in ids):
            return self.rule("full").is_right(self.text(ids), accepted(pair))
        return self.rule("full").settled(self.model.tokenizer.decode(list(ids)), accepted(pair))

    def text(self, ids: Sequence[int]) -> str:
        """An answer as text: up to its first newline or end-of-text token, stripped."""
        ids = list(ids)
        stop = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        return cut(self.model.tokenizer.decode(ids[:stop])) if stop else ""

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        return frozenset(self.model.tokenizer.ends)

    def first_token(self, pair: Pair) -> int:
        """The first token of a pair's output, as it follows the query."""
        return self._continuations(pair)[0][0]

    def longest(self, pair: Pair) -> int:
        """Tokens of the longest accepted answer of a pair."""
        return max(map(len, self._continuations(pair)))

    @functools.cached_property
    def _continued(self) -> dict[Pair, list[list[int]]]:
        """What `_continuations` found before."""
        return {}

    def _continuations(self, pair: Pair) -> list[list[int]]:
        """The tokens of each accepted answer as it follows the query, the output's first."""
        if pair not in self._continued:
            self._continued[pair] = self._continue(pair)
        return self._continued[pair]

    def _continue(self, pair: Pair) -> list[list[int]]:
        query = self.fitted.zero_shot(pair)
        space = " " if self.fitted.leading_space else ""
        answers = (pair.output, *(space + answer for answer in pair.accepted))
        before, *after = self.model.tokenizer.encode_all(
            [query, *(query + answer for answer in answers)]
        )
        found = [ids[len(before) :] for ids in after if ids[: len(before)] == before]
        found = [ids for ids in found if ids]
        if not found:
            raise TaskVecError(f"{self.fitted.task.name}: no answer follows the query {query!r}")
        return found

    def wanted(self, prompts: Sequence[Prompt], seed: int) -> Wanted:
        """The tokens that graded scores look at.

        The wrong answer that the right one is held against is the output of another pair of the
        task, drawn by seed, whose first token is none of the right ones. Where all outputs begin
        alike it is the right one itself, and the difference 0.
        """
        pairs = self.fitted.pairs
        right = [[ids[0] for ids in self._continuations(p.query)] for p in prompts]
        size = -(-max(map(len, right)) // WANTED_STEP) * WANTED_STEP
        contrast = []
        for prompt, tokens in zip(prompts, right, strict=True):
            rng = seeded("contrast", seed, self.fitted.task.name, prompt.query.input)
            chosen = tokens[0]
            for _ in range(CONTRAST_DRAWS):
                other = self.first_token(pairs[int(rng.random() * len(pairs))])
                if other not in tokens:
                    chosen = other
                    break
            contrast.append(chosen)
        filled = [tokens + tokens[:1] * (size - len(tokens)) for tokens in right]
        return Wanted(np.array(filled, np.int32), np.array(contrast, np.int32))


CONTRAST_DRAWS = 100  # of another pair; where all of them begin alike there is no contrast


def scorer_of(model: Model, task: Task, settings: Settings) -> Scorer:
    """The scorer of a task's answers under these settings.

    Raises:
      TaskVecError: the task does not suit the tokenizer.
    """
    return Scorer(model, fit(task, model.tokenizer, settings.template, settings.filter))


def accepted(pair: Pair) -> list[str]:
    """The accepted answers of a pair, its output first, without space around them."""
    return [pair.output.strip(), *(answer.strip() for answer in pair.accepted)]


class Job(NamedTuple):
    """An answer that has begun.

    Attributes:
      pair: what was asked.
      prompt: token ids of the prompt.
      begun: the first new tokens, at least one.
      layer, vector: what is written over the prompt's last token; None: nothing.
    """

    pair: Pair
    prompt: Sequence[int]
    begun: tuple[int, ...]
    layer: int | None = None
    vector: np.ndarray | None = None


class Said(NamedTuple):
    """A whole answer, or the beginning that shows it to be right or wrong."""

    text: str
    right: bool


def complete(scorer: Scorer, jobs: Sequence[Job]) -> list[Said]:
    """Goes on with answers until it is settled whether they are right by the rule `full`.

    An answer has at most one token more than the longest accepted one of its pair, or what the
    context length leaves room for.

    Returns:
      For each job its answer so far and whether it is right.
    """
    begun = [list(job.begun) for job in jobs]
    most = [0] * len(jobs)
    settled = [scorer.settled(job.pair, ids) for job, ids in zip(jobs, begun, strict=True)]
    going = [i for i, right in enumerate(settled) if right is None]
    for i in going:
        room = scorer.model.config.max_length - len(jobs[i].prompt)
        most[i] = min(1 + scorer.longest(jobs[i].pair), room)
    while going := [i for i in going if settled[i] is None and len(begun[i]) < most[i]]:
        for call, size in _calls(going, jobs, begun):
            filled = call + call[-1:] * (size - len(call))
            new = _next(scorer.model, [jobs[i] for i in filled], [begun[i] for i in filled])
            for i, token in zip(call, new, strict=False):
                if token is None:
                    settled[i] = scorer.rule("full").is_right(
                        scorer.text(begun[i]), accepted(jobs[i].pair)
                    )
                else:
                    begun[i].append(token)
                    settled[i] = scorer.settled(jobs[i].pair, begun[i])
    said = []
    for job, ids, right in zip(jobs, begun, settled, strict=True):
        text = scorer.text(ids)
        if right is None:
            right = scorer.rule("full").is_right(text, accepted(job.pair))
        said.append(Said(text, right))
    return said


def _calls(
    going: Sequence[int], jobs: Sequence[Job], begun: Sequence[Sequence[int]]
) -> Iterator[tuple[list[int], int]]:
    """The answers of each call, and the call's rows: written ones and others apart, by length."""
    for written in (True, False):
        left = sorted(
            (i for i in going if (jobs[i].vector is not None) == written),
            key=lambda i: len(jobs[i].prompt) + len(begun[i]),
        )
        while left:
            size = CALLS[0] if len(left) <= CALLS[0] else CALLS[1]
            yield left[:size], size
            left = left[size:]


def _next(model: Model, jobs: Sequence[Job], begun: Sequence[Sequence[int]]) -> list[int | None]:
    """The next token of each answer; None where it ends. All jobs are written to, or none is."""
    edits = ()
    if jobs[0].vector is not None:
        edits = replace(
            np.stack([job.vector for job in jobs if job.vector is not None]),
            layer=np.array([job.layer for job in jobs]),
            position=np.array([len(job.prompt) - 1 for job in jobs]),
        )
    texts = [[*job.prompt, *ids] for job, ids in zip(jobs, begun, strict=True)]
    made = generate(
        model.config,
        model.params,
        texts,
        max_new_tokens=1,
        edits=edits,
        eos=model.tokenizer.ends,
        mesh=model.mesh,
    )
    return [ids[0] if ids else None for ids in made]
