"""Answers of a model to the prompts of one task, scored by both rules.

What is predicted at the last token of a prompt settles most answers by itself: under `paper` all of
them, under `full` those whose first token begins no accepted answer. `complete` generates the rest,
greedily, until it is settled whether they are right.

Shapes: N prompts, B rows of a call, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.scoring import ScoringRule, cut, scoring_rule
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit
from taskvec_jax.tasks.sampling import seeded
from taskvec_jax.tasks.task import Pair, Task
from taskvec_jax.vectors.continuing import NOWHERE, SHORT, Beginnings
from taskvec_jax.vectors.graded import Wanted

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

    def is_whole(self, prompts: Sequence[Prompt], tokens: np.ndarray) -> np.ndarray:
        """Whether answers of these tokens alone, int [N, ...], are right by the rule `full`: bool
        [N, ...]."""
        rule = self.rule("full")
        return self._of_tokens(
            prompts, tokens, lambda token, pair: rule.is_right(self.text([token]), accepted(pair))
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
        if any(token in self.ends for token in ids):
            return self.rule("full").is_right(self.text(ids), accepted(pair))
        return self.rule("full").settled(self.model.tokenizer.decode(list(ids)), accepted(pair))

    def text(self, ids: Sequence[int]) -> str:
        """An answer as text: up to its first newline or end-of-text token, stripped."""
        ids = list(ids)
        stop = next((i for i, token in enumerate(ids) if token in self.ends), len(ids))
        return cut(self.model.tokenizer.decode(ids[:stop])) if stop else ""

    @functools.cached_property
    def beginnings(self) -> Beginnings:
        """The beginnings of prompts, run once for all answers to them."""
        return Beginnings(self.model)

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return frozenset(self.model.tokenizer.ends)

    def first_token(self, pair: Pair) -> int:
        """The first token of a pair's output, as it follows the query."""
        return self.output_tokens(pair)[0]

    def output_tokens(self, pair: Pair) -> list[int]:
        """The tokens of a pair's output, as it follows the query."""
        return self._continuations(pair)[0]

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
    context length leaves room for. Jobs that are the same (a letter that is asked for again, under
    one mean theta) are done once.

    Returns:
      For each job its answer so far and whether it is right.
    """
    kinds = [_kind(job) for job in jobs]
    different = dict(zip(kinds, jobs, strict=True))
    said = dict(zip(different, _complete(scorer, list(different.values())), strict=True))
    return [said[kind] for kind in kinds]


def _kind(job: Job) -> tuple[Hashable, ...]:
    """What decides the answer of a job; equal for jobs that are the same."""
    vector = None if job.vector is None else job.vector.tobytes()
    return job.pair, tuple(job.prompt), tuple(job.begun), job.layer, vector


def _complete(scorer: Scorer, jobs: Sequence[Job]) -> list[Said]:
    begun = [list(job.begun) for job in jobs]
    most = [0] * len(jobs)
    settled = [scorer.settled(job.pair, ids) for job, ids in zip(jobs, begun, strict=True)]
    going = [i for i, right in enumerate(settled) if right is None]
    for i in going:
        room = scorer.model.config.max_length - len(jobs[i].prompt)
        most[i] = min(1 + scorer.longest(jobs[i].pair), room)
    while going := [i for i in going if settled[i] is None and len(begun[i]) < most[i]]:
        for call in _calls(going, jobs):
            new = _next(scorer, [jobs[i] for i in call], [begun[i] for i in call])
            for i, token in zip(call, new.tolist(), strict=True):
                if token in scorer.ends:
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


def _calls(going: Sequence[int], jobs: Sequence[Job]) -> Iterator[list[int]]:
    """The answers of each call: those of short prompts together, of long ones (with demonstrations)
    those that are written in and those that are not."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for i in going:
        kind = len(jobs[i].prompt) > SHORT, _begins(jobs[i]) > 0
        kinds.setdefault(kind, []).append(i)
    return iter(kinds.values())


def _begins(job: Job) -> int:
    """How many tokens of a prompt are its beginning, which is kept: all but the last, over which a
    vector is written; none of a long prompt without a vector, because it is asked for once."""
    return 0 if job.vector is None and len(job.prompt) > SHORT else len(job.prompt) - 1


def _next(scorer: Scorer, jobs: Sequence[Job], begun: Sequence[Sequence[int]]) -> np.ndarray:
    """The next token of each answer."""
    nothing = np.zeros(scorer.model.config.width, np.float32)
    cuts = [_begins(job) for job in jobs]
    return scorer.beginnings.next_tokens(
        [job.prompt[:cut] for job, cut in zip(jobs, cuts, strict=True)],
        [[*job.prompt[cut:], *ids] for job, cut, ids in zip(jobs, cuts, begun, strict=True)],
        np.stack([nothing if job.vector is None else job.vector for job in jobs]),
        [NOWHERE if job.layer is None else job.layer for job in jobs],
    )
