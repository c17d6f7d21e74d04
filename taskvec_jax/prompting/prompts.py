"""Prompts: which demonstrations, which query, and the text they become.

A prompt is `example:{x}->{y}` lines and a query `example:{x}->` (paper, Section 3). Theta is read
at the last `->` of demonstrations + a dummy query, and written at the `->` of the query alone.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence

from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.tokenizer import ARROW, Tokenizer
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Pair, Task, check_task

PREFIX = "example:"
SEPARATOR = "\n"
LEADING_SPACE_SHARE = 0.7  # of the pairs that the plain form keeps
FEW_PAIRS = 70
LETTERS = 3  # an answer of this many letters, each its own token, counts as spelled out
NOT_SPELLED = "the vocabulary cannot spell them (their text does not come back from its tokens)"
NO_ARROW = f"'{ARROW}' is not a token of its own after the query"
CHANGED = "the answer changes the tokens before it"
NOT_ONE = "the answer is not one token"
BY_LETTER = "the answer is spelled letter by letter, so that its first token says one letter"
FILTERS = ("single_token", "none")
_fitted: weakref.WeakKeyDictionary[Tokenizer, dict[tuple[Task, str], FittedTask]] = (
    weakref.WeakKeyDictionary()
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One draw of a task, all of its inputs different.

    Attributes:
      demonstrations: shown with their answers.
      query: the pair that is asked for.
      dummy_queries: inputs in the query's place while theta is read.
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
      pairs: those that are kept, as they are written in the prompt.
      leading_space: the pairs are written ` x` -> ` y`.
      num_all: pairs before filtering.
      left_out: why pairs are left out -> how many.
    """

    task: Task
    pairs: tuple[Pair, ...]
    leading_space: bool
    num_all: int
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def note(self) -> str:
        """A warning if the tokenizer left few pairs, else an empty string."""
        if len(self.pairs) >= min(FEW_PAIRS, self.num_all):
            return ""
        return (
            f"{self.task.name}: the tokenizer leaves {len(self.pairs)} of {self.num_all} pairs"
            f" (under {FEW_PAIRS}), so prompts repeat each other; {_reasons(self.left_out)}"
        )


def fit(task: Task, tokenizer: Tokenizer, filter: str = "single_token") -> FittedTask:
    """Keeps the pairs this tokenizer can pose.

    A pair's text must come back from its tokens, the unknown token not among them. The arrow must
    be the query's last token, alone. With the filter "single_token" the answer must be one token
    after it where the task's `match` is "exact"; where it is "prefix", or with the filter "none",
    it may be several, but must not be spelled letter by letter. Where `leading_space` is "auto",
    pairs take the form with leading spaces when it keeps at least 0.7 times as many pairs as the
    plain form (the paper's code).
    Remembered for each tokenizer: controls ask for every other task once a task.

    Args:
      filter: one of `FILTERS`.

    Raises:
      TaskVecError: no pair is left; the template does not suit this tokenizer; or no `Task`.
    """
    check_task(task)
    if filter not in FILTERS:
        raise TaskVecError(f"filter is {filter!r}; allowed: {', '.join(FILTERS)}")
    known = _fitted.setdefault(tokenizer, {})
    if (task, filter) not in known:
        known[task, filter] = _fit(task, tokenizer, filter)
    return known[task, filter]


def _fit(task: Task, tokenizer: Tokenizer, filter: str) -> FittedTask:
    if end := tokenizer.appended():
        raise TaskVecError(
            f"this tokenizer puts {end!r} (EOS) after every text, so a prompt would end in it and"
            f" not in '{ARROW}'; set add_eos_token to false in tokenizer_config.json, or take"
            f" {end!r} out of the post_processor of tokenizer.json, and convert again"
        )
    single = task.match == "exact" and filter == "single_token"
    plain = ([], {}) if task.leading_space is True else _sift(task.pairs, tokenizer, single)
    (kept, left_out), leading_space = plain, False
    if task.leading_space is not False:
        spaced, reasons = _sift([*map(_spaced, task.pairs)], tokenizer, single)
        always = task.leading_space is True
        if always or (spaced and len(spaced) >= LEADING_SPACE_SHARE * len(kept)):
            kept, left_out, leading_space = spaced, reasons, True
    if not kept:
        raise TaskVecError(
            f"{task.name}: this tokenizer leaves none of {len(task.pairs)} pairs;"
            f" {_reasons(left_out)}; choose other tasks, or give others with --task_data"
        )
    lines = SEPARATOR.join([render_query(kept[0].input) + kept[0].output] * 2)
    if not tokenizer.spells(lines):
        raise TaskVecError(
            f"{task.name}: this tokenizer loses the line break between demonstrations ({lines!r}"
            " does not come back from its tokens); prompts need a tokenizer that has one"
        )
    return FittedTask(task, tuple(kept), leading_space, len(task.pairs), left_out)


def _spaced(pair: Pair) -> Pair:
    return Pair(f" {pair.input}", f" {pair.output}", pair.accepted)


def _sift(
    pairs: Sequence[Pair], tokenizer: Tokenizer, single: bool
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs that can be posed; and why the others cannot -> how many."""
    faults = [_fault(pair, tokenizer, single) for pair in pairs]
    kept = [pair for pair, fault in zip(pairs, faults, strict=True) if not fault]
    return kept, dict(Counter(filter(None, faults)))


def _fault(pair: Pair, tokenizer: Tokenizer, single: bool) -> str:
    """Why a pair cannot be posed; empty if it can.

    Args:
      single: the answer must be one token.
    """
    query = render_query(pair.input)
    text = query + pair.output
    try:
        before, after = tokenizer.encode_all([query, text])
        if not tokenizer.spells(text, after):
            return NOT_SPELLED
        if not tokenizer.ends_in_arrow(query):
            return NO_ARROW
    except TaskVecError:  # no token for it at all, or one that the model has no row for
        return NOT_SPELLED
    if after[: len(before)] != before or len(after) == len(before):
        return CHANGED
    tokens, letters = len(after) - len(before), pair.output.strip()
    if single:
        return "" if tokens == 1 else NOT_ONE
    cased = letters[:1].lower() != letters[:1].upper()
    return BY_LETTER if cased and tokens >= len(letters) >= LETTERS else ""


def _reasons(left_out: Mapping[str, int]) -> str:
    ordered = sorted(left_out.items(), key=lambda item: -item[1])
    return "left out: " + ", ".join(f"{count} because {reason}" for reason, count in ordered)


def sample(
    fitted: FittedTask,
    *,
    seed: int,
    split: str,
    count: int,
    num_demonstrations: int,
    num_dummy_queries: int,
    start: int = 0,
    queries: Sequence[Pair] = (),
) -> list[Prompt]:
    """Draws prompts from number `start` on; prompt i depends on (seed, task, split, i), the numbers
    and `queries` alone.

    Args:
      queries: pairs to ask for, in turn; prompt i asks for the one of number i, round a circle.
        When there are none each prompt draws its query too, as the paper does.

    Raises:
      TaskVecError: the task has fewer pairs than one prompt needs.
    """
    need = num_demonstrations + 1 + num_dummy_queries
    if need > len(fitted.pairs):
        raise TaskVecError(
            f"{fitted.task.name}: {num_demonstrations} demonstrations, a query and"
            f" {num_dummy_queries} dummy queries need {need} different pairs, but only"
            f" {len(fitted.pairs)} are left; ask for fewer demonstrations or dummy queries"
            + (f" ({_reasons(fitted.left_out)})" if fitted.left_out else "")
        )
    prompts = []
    for i in range(start, start + count):
        rng = seeded(seed, fitted.task.name, split, i)
        if queries:
            query = queries[i % len(queries)]
            rest = draw(rng, [p for p in fitted.pairs if p.input != query.input], need - 1)
        else:
            query, *rest = draw(rng, fitted.pairs, need)
        prompts.append(
            Prompt(
                demonstrations=tuple(rest[:num_demonstrations]),
                query=query,
                dummy_queries=tuple(rest[num_demonstrations:]),
            )
        )
    return prompts
