"""Prompts: which demonstrations, which query, and the text they become.

A prompt is `example:{x}->{y}` lines and a query `example:{x}->` (paper, Section 3). Theta is read
at the last `->` of demonstrations + a dummy query, and written at the `->` of the query alone.
"""

from __future__ import annotations

import dataclasses
import weakref

from taskvec_jax.errors import TaskVecError
from taskvec_jax.sampling import draw, seeded
from taskvec_jax.tasks.task import Pair, Task, check_task
from taskvec_jax.tokenizer import ARROW, Tokenizer

PREFIX = "example:"
SEPARATOR = "\n"
UNFILTERED_CATEGORY = "knowledge"  # answers may be several tokens long
RULE_CATEGORY = "algorithmic"  # letters stand as they are, never behind a space
LEADING_SPACE_SHARE = 0.7  # of the pairs that the plain form keeps
FEW_PAIRS = 70
_fitted: weakref.WeakKeyDictionary[Tokenizer, dict[Task, FittedTask]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One draw of a task, all of its inputs different.

    Attributes:
      demonstrations: shown with their answers.
      query: the pair that is asked for.
      dummy_queries: inputs that stand in the query's place while theta is read.
    """

    demonstrations: tuple[Pair, ...]
    query: Pair
    dummy_queries: tuple[Pair, ...]

    def icl(self) -> str:
        """Demonstrations and the query: ordinary in-context learning."""
        return self._with_query(self.query)

    def dummies(self) -> list[str]:
        """Demonstrations and a dummy query, one text for each."""
        return [self._with_query(pair) for pair in self.dummy_queries]

    def zero_shot(self) -> str:
        """The query alone."""
        return render_query(self.query.input)

    def _with_query(self, query: Pair) -> str:
        lines = [render_query(pair.input) + pair.output for pair in self.demonstrations]
        return SEPARATOR.join([*lines, render_query(query.input)])


def render_query(text: str) -> str:
    """`example:{x}->`, ending in the arrow."""
    return f"{PREFIX}{text}{ARROW}"


@dataclasses.dataclass(frozen=True)
class FittedTask:
    """A task as one tokenizer can pose it.

    Attributes:
      task: the task.
      pairs: those that stay, written as they stand in the prompt.
      leading_space: the pairs are written ` x` -> ` y`.
      num_all: pairs before filtering.
    """

    task: Task
    pairs: tuple[Pair, ...]
    leading_space: bool
    num_all: int

    @property
    def note(self) -> str:
        """A warning if the tokenizer left few pairs, else an empty string."""
        if len(self.pairs) >= min(FEW_PAIRS, self.num_all):
            return ""
        return (
            f"{self.task.name}: the tokenizer leaves {len(self.pairs)} of {self.num_all} pairs"
            f" (under {FEW_PAIRS}), so prompts repeat each other"
        )


def fit(task: Task, tokenizer: Tokenizer) -> FittedTask:
    """Keeps the pairs this tokenizer can pose.

    The arrow must be the query's last token, alone. Outside the knowledge category the answer must
    be one token after it. Word lists take the form with leading spaces when it keeps at least 0.7
    times as many pairs as the plain form; letters and knowledge stay plain (the paper's code).
    Remembered for each tokenizer: controls ask for every other task once a task.

    Raises:
      TaskVecError: no pair is left; the template does not suit this tokenizer; or no `Task`.
    """
    check_task(task)
    known = _fitted.setdefault(tokenizer, {})
    if task not in known:
        known[task] = _fit(task, tokenizer)
    return known[task]


def _fit(task: Task, tokenizer: Tokenizer) -> FittedTask:
    single = task.category != UNFILTERED_CATEGORY
    plain = [pair for pair in task.pairs if _fits(pair, tokenizer, single)]
    kept, leading_space = plain, False
    if single and task.category != RULE_CATEGORY:
        spaced = [pair for pair in map(_spaced, task.pairs) if _fits(pair, tokenizer, single)]
        if len(spaced) >= LEADING_SPACE_SHARE * len(plain):
            kept, leading_space = spaced, True
    if not kept:
        raise TaskVecError(
            f"{task.name}: this tokenizer leaves none of {len(task.pairs)} pairs: either '{ARROW}'"
            " is not a token of its own after the query, or no answer is one token;"
            " choose other tasks, or give others with --task_data"
        )
    return FittedTask(task, tuple(kept), leading_space, len(task.pairs))


def _spaced(pair: Pair) -> Pair:
    return Pair(f" {pair.input}", f" {pair.output}", pair.accepted)


def _fits(pair: Pair, tokenizer: Tokenizer, single: bool) -> bool:
    query = render_query(pair.input)
    answer = tokenizer.continuation(query, pair.output)
    return (len(answer) == 1 if single else len(answer) > 0) and tokenizer.ends_in_arrow(query)


def sample(
    fitted: FittedTask,
    *,
    seed: int,
    split: str,
    count: int,
    num_demonstrations: int,
    num_dummy_queries: int,
    start: int = 0,
) -> list[Prompt]:
    """Draws prompts from number `start` on; prompt i depends on (seed, task, split, i) and the
    numbers alone.

    Raises:
      TaskVecError: the task has fewer pairs than one prompt needs.
    """
    need = num_demonstrations + 1 + num_dummy_queries
    if need > len(fitted.pairs):
        raise TaskVecError(
            f"{fitted.task.name}: {num_demonstrations} demonstrations, a query and"
            f" {num_dummy_queries} dummy queries need {need} different pairs, but only"
            f" {len(fitted.pairs)} are left; ask for fewer demonstrations or dummy queries"
        )
    prompts = []
    for i in range(start, start + count):
        pairs = draw(seeded(seed, fitted.task.name, split, i), fitted.pairs, need)
        query, *rest = pairs
        prompts.append(
            Prompt(
                demonstrations=tuple(rest[:num_demonstrations]),
                query=query,
                dummy_queries=tuple(rest[num_demonstrations:]),
            )
        )
    return prompts
