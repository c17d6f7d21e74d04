"""Answers are right or wrong as each rule says, and no constant answer is overlooked."""

from __future__ import annotations

import random

import pytest

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.scoring import (
    ScoringRule,
    Vocabulary,
    best_constant,
    cut,
    scoring_rule,
)
from taskvec_jax.tasks import TASKS, Task


def rule_of(name: str, category: str) -> ScoringRule:
    """The rule for a task that says nothing but its category."""
    task = Task(category, "x", ())
    return scoring_rule(name, match=task.match, ignore_case=task.ignore_case)


def right(rule: str, category: str, text: str, *accepted: str) -> bool:
    return rule_of(rule, category).is_right(text, accepted)


@pytest.mark.parametrize(
    ("text", "accepted", "expected"),
    [
        ("Paris", ["Paris"], True),
        (" Paris\nexample:Rome", ["Paris"], True),
        ("Paris, France", ["Paris"], True),
        ("Par", ["Paris"], False),  # the beginning of an answer is none
        ("Parisian", ["Paris"], False),
        ("Paris2", ["Paris"], False),
        ("is", ["isle", "island"], False),
        ("isle", ["island", "isle"], True),
        ("South America", ["South America"], True),
        ("South", ["South America"], False),
        ("North America", ["South America"], False),
        ("Guinea-Bissau", ["Guinea"], False),
        ("men's", ["men"], False),
        ("men’s", ["men"], False),
        ("men' s", ["men"], False),
        ("St. John’s", ["St. John's"], True),
        ("Asuncio\u0301n", ["Asunción"], True),  # composed and decomposed accents are one text
        ("cafe\u0332", ["cafe"], False),  # the last letter carries another mark
        ("paris", ["Paris"], False),
        ("\nParis", ["Paris"], False),
        ("", ["Paris"], False),
        ("Paris", [""], False),
        ("word.", [" word"], True),
    ],
)
def test_full_answers_begin_with_a_whole_accepted_one(text, accepted, expected):
    assert right("full", "knowledge", text, *accepted) is expected


@pytest.mark.parametrize(
    ("category", "text", "accepted", "expected"),
    [
        ("knowledge", "Par", ["Paris"], True),
        ("knowledge", "Paris", ["Par"], True),
        ("knowledge", "A", ["Asia"], True),
        ("knowledge", "a", ["Asia"], False),
        ("knowledge", "", ["Asia"], False),
        ("linguistic", "is", ["isle"], False),
        ("linguistic", "isle", ["island", "isle"], True),
        ("linguistic", " isle\n", ["isle"], True),
        ("translation", "is", ["isle"], False),
        ("linguistic", "", [""], False),
    ],
)
def test_papers_answers_are_equal_or_in_knowledge_one_begins_the_other(
    category, text, accepted, expected
):
    assert right("paper", category, text, *accepted) is expected


@pytest.mark.parametrize("rule", ["paper", "full"])
def test_case_is_ignored_in_translation_alone(rule):
    assert right(rule, "translation", "god", "God")
    assert right(rule, "translation", "March", "march")
    assert right(rule, "translation", "ÉTÉ", "été")
    assert not right(rule, "linguistic", "god", "God")
    assert not right(rule, "algorithmic", "a", "A")


def test_generated_text_is_cut_at_the_first_end():
    assert cut(" Paris\nexample") == "Paris"
    assert cut("Paris</s>Rome\n", ["</s>"]) == "Paris"
    assert cut("a\nb</s>", ["</s>", ""]) == "a"


def test_an_unknown_rule_is_refused_with_those_there_are():
    with pytest.raises(TaskVecError, match="rule is 'strict'; allowed: paper, full"):
        scoring_rule("strict")


@pytest.mark.parametrize("category", ["knowledge", "linguistic", "translation"])
@pytest.mark.parametrize("name", ["paper", "full"])
def test_the_best_constant_is_what_trying_every_text_finds(name, category):
    rule, rng = rule_of(name, category), random.Random(0)
    for _ in range(200):
        texts = ["".join(rng.choices("aAb '", k=rng.randint(1, 3))) for _ in range(14)]
        pairs = [rng.choices(texts, k=rng.randint(1, 3)) for _ in range(rng.randint(1, 8))]
        pairs = [[text for text in pair if text.strip()] or ["a"] for pair in pairs]
        # Under `full` no text at all may beat it: the accepted ones, longer and shorter ones.
        tried = (
            texts
            if name == "paper"
            else {t + more for p in pairs for t in p for more in ("", " b")}
        )
        if not any(text.strip() for text in tried):
            continue
        shares = [
            sum(rule.is_right(text, pair) for pair in pairs) / len(pairs) for text in {*tried}
        ]
        best = best_constant(rule, pairs, Vocabulary(texts))
        assert best.share == max(shares)
        assert best.share == sum(rule.is_right(best.answer, pair) for pair in pairs) / len(pairs)


def test_one_letter_is_the_best_constant_of_continents_under_the_papers_rule():
    # Hand count: continents beginning with A: Asia, Africa, Antarctica and Australia.
    accepted = [(p.output, *p.accepted) for p in TASKS["knowledge_location_continent"].pairs]
    best = best_constant(rule_of("paper", "knowledge"), accepted, Vocabulary(["Asia", " A", "B"]))
    starting = sum(any(a.startswith("A") for a in answers) for answers in accepted)
    assert best == ("A", starting / len(accepted))
    whole = best_constant(rule_of("full", "knowledge"), accepted, Vocabulary(["A"]))
    assert whole.answer in {answers[0] for answers in accepted}
    assert whole.share < best.share


def test_a_constant_needs_pairs_and_tokens():
    for pairs, vocabulary in (([], ["a"]), ([["a"]], []), ([["a"]], [" ", "\n"])):
        with pytest.raises(TaskVecError, match="constant answer"):
            best_constant(rule_of("paper", "knowledge"), pairs, Vocabulary(vocabulary))
