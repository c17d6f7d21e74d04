"""When an answer counts as right: two rules, as functions of text alone.

`paper` scores one predicted token, as the task-vector paper (Hendel et al. 2023) and its code do:
where a task's `match` is "prefix" either text may begin with the other, elsewhere they are equal.
`full` scores generated text: a whole accepted answer, and then the end of a word. Under both, case
is ignored where the task says so (`ignore_case`, translation) and counts elsewhere. The same rule
scores a model's answers and its controls, such as the best constant answer.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from taskvec_jax.errors import TaskVecError

RuleName = Literal["paper", "full"]
_SAME = str.maketrans({"’": "'", "ʼ": "'", "‐": "-", "‑": "-"})  # typographic twins
_LAST = "\U0010ffff"  # sorts behind every text
UNFINISHED = "\ufffd"  # what tokenizers decode the beginning of a character to


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
          text: the answer of the model; under `paper` one token, decoded.
          accepted: the pair's output and its alternatives; space around them does not count.
        """
        text = self.comparable(cut(text))
        allowed = [a for answer in accepted if (a := self.comparable(answer))]
        if self.name == "full":
            return any(_begins_with_whole(text, a) for a in allowed)
        if self.prefix:
            return bool(text) and any(a.startswith(text) or text.startswith(a) for a in allowed)
        return text in allowed

    def settled(self, begun: str, accepted: Iterable[str]) -> bool | None:
        """Whether an answer is right, as far as its beginning tells.

        Args:
          begun: generated text so far, not cut.

        Returns:
          What `is_right` will say however the text goes on; None where that depends on what
          follows. Always None under `paper`, whose answers are single tokens.
        """
        if self.name == "paper":
            return None
        accepted = list(accepted)
        if "\n" in begun:
            return self.is_right(begun, accepted)
        known = self.comparable(begun.rstrip(UNFINISHED))
        allowed = [a for answer in accepted if (a := self.comparable(answer))]
        if any(len(known) > len(a) and _begins_with_whole(known, a) for a in allowed):
            return True
        start = _without_marks(known)
        return None if any(_without_marks(a).startswith(start) for a in allowed) else False

    def comparable(self, text: str) -> str:
        """A text without the differences that do not count."""
        text = text.strip()
        if self.name == "full":
            text = unicodedata.normalize("NFC", text).translate(_SAME)
        return text.casefold() if self.ignore_case else text


def scoring_rule(
    name: str, *, match: Literal["exact", "prefix"] = "exact", ignore_case: bool = False
) -> ScoringRule:
    """The rule of a name for a task.

    Args:
      name: "paper" or "full".
      match, ignore_case: as the task says (`tasks.Task`).

    Raises:
      TaskVecError: there is no rule of that name.
    """
    if name == "paper":
        return ScoringRule("paper", match == "prefix", ignore_case)
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


def _without_marks(text: str) -> str:
    """A text whose accents are left out: one may be generated after the letter it stands on."""
    parts = unicodedata.normalize("NFD", text)
    return "".join(c for c in parts if unicodedata.category(c)[0] != "M")


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


class Vocabulary:
    """The answers that one token can give, prepared once for all tasks of a model."""

    def __init__(self, decoded: Iterable[str]) -> None:
        """Takes decoded tokens; ties between constant answers go to the first."""
        self._answers = list(dict.fromkeys(filter(None, map(cut, decoded))))
        self._prepared: dict[bool, tuple[dict[str, str], list[str]]] = {}

    def comparable(self, ignore_case: bool) -> tuple[dict[str, str], list[str]]:
        """{answer as it is compared: answer}, in order, and the former sorted."""
        if ignore_case not in self._prepared:
            answers: dict[str, str] = {}
            for answer in self._answers:
                answers.setdefault(answer.casefold() if ignore_case else answer, answer)
            self._prepared[ignore_case] = answers, sorted(answers)
        return self._prepared[ignore_case]


def best_constant(
    rule: ScoringRule, accepted: Sequence[Sequence[str]], vocabulary: Vocabulary
) -> Constant:
    """The constant answer that is right most often, ties to the first.

    Args:
      accepted: for each pair, its output and alternatives.
      vocabulary: the tokens of which `paper` answers one. `full` does not use it: a model can
        generate any text, and no text is right for more pairs than the best accepted answer.

    Raises:
      TaskVecError: there is no pair, or no answer to choose from.
    """
    pairs = [list(dict.fromkeys(filter(None, map(rule.comparable, a)))) for a in accepted]
    if rule.name == "full":
        candidates = {text: text for answers in pairs for text in answers}
        ordered = sorted(candidates)
    else:
        candidates, ordered = vocabulary.comparable(rule.ignore_case)
    if not pairs or not candidates:
        raise TaskVecError("there is no pair or no token to choose a constant answer from")
    right: collections.Counter[str] = collections.Counter()
    for answers in pairs:
        right.update(_right_constants(rule, answers, candidates, ordered))
    most = max(right.values(), default=0)
    best = next(text for text in candidates if right[text] == most)
    return Constant(candidates[best], most / len(pairs))


def _right_constants(
    rule: ScoringRule, answers: Sequence[str], candidates: Mapping[str, str], ordered: list[str]
) -> set[str]:
    """The candidates that are right for a pair; all texts as they are compared."""
    found = {answer for answer in answers if answer in candidates}
    if rule.name == "paper" and not rule.prefix:
        return found
    for answer in answers:
        start, stop = (bisect.bisect_left(ordered, answer + end) for end in ("", _LAST))
        longer = ordered[start:stop]
        if rule.name == "full":
            found.update(text for text in longer if _begins_with_whole(text, answer))
        else:
            found.update(longer)
            found.update(
                short for n in range(1, len(answer)) if (short := answer[:n]) in candidates
            )
    return found
