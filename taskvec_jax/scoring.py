"""When an answer counts as right: two rules, as functions of text alone.

`paper` scores one predicted token, as the task-vector paper (Hendel et al. 2023) and its code do:
in knowledge tasks either text may begin with the other, elsewhere they are equal. `full` scores
generated text: a whole accepted answer, and then the end of a word. Under both, case is ignored in
translation and counts elsewhere. The same rule scores a model's answers and its controls, such as
the best constant answer.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from taskvec_jax.errors import TaskVecError

RuleName = Literal["paper", "full"]
PREFIX_CATEGORY = "knowledge"  # `paper`: one token is the beginning of an answer of several
CASELESS_CATEGORY = "translation"
_SAME = str.maketrans({"’": "'", "ʼ": "'", "‐": "-", "‑": "-"})  # typographic twins
_LAST = "\U0010ffff"  # sorts behind every text


@dataclasses.dataclass(frozen=True)
class ScoringRule:
    """A rule for the answers of one task.

    Attributes:
      name: "paper" or "full".
      prefix: an answer may be the beginning of an accepted one, or begin with it (`paper` only).
      ignore_case: case does not count.
    """

    name: RuleName
    prefix: bool = False
    ignore_case: bool = False

    def is_right(self, text: str, accepted: Iterable[str]) -> bool:
        """Whether an answer is right.

        Args:
          text: what the model says; under `paper` one token, decoded.
          accepted: the pair's output and its alternatives; space around them does not count.
        """
        text = self._comparable(cut(text))
        allowed = [a for answer in accepted if (a := self._comparable(answer))]
        if self.name == "full":
            return any(_begins_with_whole(text, a) for a in allowed)
        if self.prefix:
            return bool(text) and any(a.startswith(text) or text.startswith(a) for a in allowed)
        return text in allowed

    def _comparable(self, text: str) -> str:
        text = text.strip()
        if self.name == "full":
            text = unicodedata.normalize("NFC", text).translate(_SAME)
        return text.casefold() if self.ignore_case else text


def scoring_rule(name: str, category: str) -> ScoringRule:
    """The rule of a name for a category of tasks.

    Raises:
      TaskVecError: there is no rule of that name.
    """
    ignore_case = category == CASELESS_CATEGORY
    if name == "paper":
        return ScoringRule("paper", category == PREFIX_CATEGORY, ignore_case)
    if name == "full":
        return ScoringRule("full", False, ignore_case)
    raise TaskVecError(f"rule is {name!r}; allowed: {', '.join(get_args(RuleName))}")


def cut(generated: str, ends: Sequence[str] = ()) -> str:
    """Generated text up to its first newline or end-of-text mark, space around it removed.

    Args:
      ends: texts of special tokens that end an answer (`</s>`), where these are decoded as text.
    """
    for end in ("\n", *filter(None, ends)):
        generated = generated.split(end, 1)[0]
    return generated.strip()


def _begins_with_whole(text: str, answer: str) -> bool:
    """Whether the text is the answer, or goes on with what is no part of the answer's last word."""
    return text.startswith(answer) and not _continues_word(text[len(answer) : len(answer) + 1])


def _continues_word(character: str) -> bool:
    """Whether it is a letter, an accent put on one, a digit, a hyphen or an apostrophe."""
    return bool(character) and (
        character.isalnum() or character in "-'" or unicodedata.category(character)[0] == "M"
    )


class Constant(NamedTuple):
    """An answer that is given whatever is asked, and the share of pairs it is right for."""

    answer: str
    share: float


def best_constant(
    rule: ScoringRule, accepted: Sequence[Sequence[str]], vocabulary: Iterable[str]
) -> Constant:
    """The constant answer that is right most often, ties to the first.

    Args:
      accepted: for each pair, its output and alternatives.
      vocabulary: decoded tokens, of which `paper` answers one. `full` does not use it: a model can
        generate any text, and no text is right for more pairs than the best accepted answer.

    Raises:
      TaskVecError: there is no pair, or no answer to choose from.
    """
    pairs = [list(dict.fromkeys(filter(None, map(rule._comparable, a)))) for a in accepted]
    if rule.name == "full":
        candidates = {text: text for answers in pairs for text in answers}
    else:
        candidates = {}
        for token in vocabulary:
            candidates.setdefault(rule._comparable(cut(token)), cut(token))
        candidates.pop("", None)
    if not pairs or not candidates:
        raise TaskVecError("there is no pair or no token to choose a constant answer from")
    right = collections.Counter(_right_candidates(rule, pairs, candidates))
    best = max(candidates, key=lambda text: right[text])  # the first of the highest
    return Constant(candidates[best], right[best] / len(pairs))


def _right_candidates(
    rule: ScoringRule, pairs: Sequence[Sequence[str]], candidates: Iterable[str]
) -> Iterable[str]:
    """Every candidate once for each pair that it is right for; all texts are comparable ones."""
    ordered = sorted(candidates)
    known = set(ordered)
    for answers in pairs:
        found: set[str] = known.intersection(answers)
        for answer in answers:
            if not (rule.prefix or rule.name == "full"):
                continue
            start, stop = (bisect.bisect_left(ordered, answer + end) for end in ("", _LAST))
            longer = ordered[start:stop]
            if rule.name == "full":
                found.update(text for text in longer if _begins_with_whole(text, answer))
            else:
                found.update(longer)
                found.update(known.intersection(answer[:n] for n in range(1, len(answer))))
        yield from found
