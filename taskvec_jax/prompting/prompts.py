"""Prompts: which demonstrations, which query, and the text they become.

In the paper a prompt is `example:{x}->{y}` lines and a query `example:{x}->` (Section 3). Theta is
read at the last `->` of demonstrations + a dummy query, and written at the `->` of the query alone.
Other ways to write a pair are in templates.py.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Pair, Task, check_task

LEADING_SPACE_SHARE = 0.7  # of the pairs that the plain form keeps
FEW_PAIRS = 70
LETTERS = 3  # an answer of this many letters, each its own token, counts as spelled out
NOT_SPELLED = "the vocabulary cannot spell them (their text does not come back from its tokens)"
CHANGED = "the answer changes the tokens before it"
KEEP_LONGER = "keep answers of several tokens with --filter=none"
NOT_ONE = "the answer is not one token"
BY_LETTER = "the answer is spelled letter by letter, so that its first token says one letter"
FILTERS = ("single_token", "none")
# By the tokenizer's hash and rows: a run reads the same one before and with its model.
_fitted: dict[tuple[str, int | None, Task, Template, str], FittedTask] = {}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One draw of a task, all of its inputs different.

    Attributes:
      demonstrations: shown with their answers.
      query: the pair that is asked for.
      dummy_queries: inputs in the query's place while theta is read.
      template: how it is written.
    """

    demonstrations: tuple[Pair, ...]
    query: Pair
    dummy_queries: tuple[Pair, ...]
    template: Template = PAPER

    def icl(self) -> str:
        """Demonstrations and the query: ordinary in-context learning."""
        return self._with_query(self.query)

    def dummies(self) -> list[str]:
        """Demonstrations and a dummy query, one text for each."""
        return [self._with_query(pair) for pair in self.dummy_queries]

    def zero_shot(self) -> str:
        """The query alone."""
        return self.template.zero_shot(self.query.input)

    def _with_query(self, query: Pair) -> str:
        shown = [self.template.show(pair.input, pair.output) for pair in self.demonstrations]
        asked = self.template.ask(query.input)
        return self.template.header + self.template.separator.join([*shown, asked])


@dataclasses.dataclass(frozen=True)
class FittedTask:
    """A task as one tokenizer can pose it.

    Attributes:
      task: the task.
      pairs: those that are kept, as they are written in the prompt.
      leading_space: answers are written with a space before them; inputs too, where it is not the
        template's own space.
      num_all: pairs before filtering.
      left_out: why pairs are left out -> how many.
      template: how the pairs are written in a prompt.
    """

    task: Task
    pairs: tuple[Pair, ...]
    leading_space: bool
    num_all: int
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False)
    template: Template = PAPER

    def zero_shot(self, pair: Pair) -> str:
        """The text of a query without demonstrations; the answer follows it directly."""
        return self.template.zero_shot(pair.input)

    @property
    def note(self) -> str:
        """A warning if the tokenizer left few pairs, else an empty string."""
        if len(self.pairs) >= min(FEW_PAIRS, self.num_all):
            return ""
        return (
            f"{self.task.name}: the tokenizer leaves {len(self.pairs)} of {self.num_all} pairs"
            f" (under {FEW_PAIRS}), so prompts repeat each other; {_reasons(self.left_out)}"
        )


def fit(
    task: Task, tokenizer: Tokenizer, template: Template = PAPER, filter: str = "single_token"
) -> FittedTask:
    """Keeps the pairs this tokenizer can pose.

    A pair's text must come back from its tokens, the unknown token not among them. The query's last
    token must hold the end of the template's cue (the arrow) and nothing from before it. With the
    filter "single_token" the answer must be one token after it where the task's `match` is "exact";
    where it is "prefix", or with the filter "none", it may be several, but must not be spelled
    letter by letter. Where `leading_space` is "auto", pairs take the form with leading spaces when
    it keeps at least 0.7 times as many pairs as the plain form (the paper's code). A template that
    writes a space before {y} decides that itself, and one whose answers begin a line takes the
    plain form. Remembered: controls ask for every other task once a task.

    Args:
      filter: one of `FILTERS`.

    Raises:
      TaskVecError: no pair is left; the template does not suit this tokenizer; or no `Task`.
    """
    check_task(task)
    if filter not in FILTERS:
        raise TaskVecError(f"filter is {filter!r}; allowed: {', '.join(FILTERS)}")
    key = tokenizer.sha256, tokenizer.num_rows, task, template, filter
    if key not in _fitted:
        _fitted[key] = _fit(task, tokenizer, template, filter)
    return _fitted[key]


def _fit(task: Task, tokenizer: Tokenizer, template: Template, filter: str) -> FittedTask:
    if end := tokenizer.appended():
        raise TaskVecError(
            f"this tokenizer puts {end!r} (EOS) after every text, so a prompt would end in it and"
            f" not in {template.cue!r}; set add_eos_token to false in tokenizer_config.json, or"
            f" take {end!r} out of the post_processor of tokenizer.json, and convert again"
        )
    single = is_single(task, filter)
    wanted = task.leading_space
    if template.answer_space or (template.cue.endswith("\n") and wanted == "auto"):
        wanted = False  # the template says how answers begin
    pairs = [pair._replace(output=template.answer_space + pair.output) for pair in task.pairs]
    plain = ([], {}) if wanted is True else _sift(pairs, tokenizer, single, template)
    (kept, left_out), leading_space = plain, bool(template.answer_space)
    if wanted is not False:
        spaced, reasons = _sift([*map(_spaced, pairs)], tokenizer, single, template)
        always = wanted is True
        if always or (spaced and len(spaced) >= LEADING_SPACE_SHARE * len(kept)):
            kept, left_out, leading_space = spaced, reasons, True
    if not kept:
        longer = f"; {KEEP_LONGER}" if NOT_ONE in left_out else ""
        raise TaskVecError(
            f"{task.name}: this tokenizer leaves none of {len(task.pairs)} pairs;"
            f" {_reasons(left_out)}{longer}; choose other tasks or another template (--template),"
            f" or see each pair's tokens with python -m experiments.tasks --show={task.name}"
        )
    lines = template.separator.join([template.show(kept[0].input, kept[0].output)] * 2)
    lines = template.header + lines
    if not tokenizer.spells(lines):
        raise TaskVecError(
            f"{task.name}: this tokenizer loses the separator between demonstrations, or the header"
            f" ({lines!r} does not come back from its tokens); prompts need a tokenizer that has"
            " them, or another template (--template)"
        )
    return FittedTask(
        task, tuple(kept), leading_space, len(task.pairs), left_out, template=template
    )


def is_single(task: Task, filter: str) -> bool:
    """Whether a task's answers have to be one token."""
    return task.match == "exact" and filter == "single_token"


def _spaced(pair: Pair) -> Pair:
    return Pair(f" {pair.input}", f" {pair.output}", pair.accepted)


def _sift(
    pairs: Sequence[Pair], tokenizer: Tokenizer, single: bool, template: Template
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs that can be posed; and why the others cannot -> how many."""
    faults = [why_left_out(pair, tokenizer, single, template) for pair in pairs]
    kept = [pair for pair, fault in zip(pairs, faults, strict=True) if not fault]
    return kept, dict(Counter(filter(None, faults)))


def why_left_out(pair: Pair, tokenizer: Tokenizer, single: bool, template: Template) -> str:
    """Why a pair, in the form in which it is written, cannot be posed; empty if it can.

    Args:
      single: the answer must be one token.
    """
    query = template.zero_shot(pair.input)
    text = query + pair.output
    try:
        before, after = tokenizer.encode_all([query, text])
        if not tokenizer.spells(text, after):
            return NOT_SPELLED
        if not tokenizer.ends_in(query, template.cue):
            return f"{template.cue!r} is not a token of its own after the query"
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


def _ways_out(left_out: Mapping[str, int]) -> str:
    """What to do where a task has too few pairs for a prompt."""
    fewer = "ask for fewer demonstrations or dummy queries"
    if not left_out:
        return f"; {fewer}"
    ways = f"{KEEP_LONGER}, or {fewer}" if NOT_ONE in left_out else fewer
    return f" ({_reasons(left_out)}); {ways}"


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
            f" {len(fitted.pairs)} are left{_ways_out(fitted.left_out)}"
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
                template=fitted.template,
            )
        )
    return prompts
