"""Prompts are the paper's, repeat from their seed, and suit the tokenizer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import tokenizers

from experiments.small_pythia.mixture import TRAINING_TASKS, build_tokenizer
from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.prompts import Prompt, fit, sample
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import TASKS, Pair, Task
from taskvec_jax.tasks.sampling import draw, seeded

NUMBERS: Any = {"num_demonstrations": 5, "num_dummy_queries": 2}


def test_a_prompt_is_rendered_as_the_paper_writes_it():
    prompt = Prompt(
        demonstrations=(Pair("Apple", "Red"), Pair("Lime", "Green")),
        query=Pair("Corn", "Yellow"),
        dummy_queries=(Pair("Plum", "Purple"),),
    )
    assert prompt.icl() == "example:Apple->Red\nexample:Lime->Green\nexample:Corn->"
    assert prompt.dummies() == ["example:Apple->Red\nexample:Lime->Green\nexample:Plum->"]
    assert prompt.zero_shot() == "example:Corn->"


@pytest.mark.parametrize("name", TASKS)
def test_every_kept_pair_is_one_token_after_a_clean_arrow(name, tokenizer):
    fitted = fit(TASKS[name], tokenizer)
    for pair in fitted.pairs[::7]:
        query = f"example:{pair.input}->"
        before, after = tokenizer.encode(query), tokenizer.encode(query + pair.output)
        assert after[: len(before)] == before
        if not name.startswith("knowledge"):
            assert len(after) == len(before) + 1
        assert tokenizer.pieces(query)[-1][1].endswith(">")


def test_letters_and_knowledge_stay_plain_and_word_lists_take_the_leading_space(tokenizer):
    for name, task in TASKS.items():
        fitted = fit(task, tokenizer)
        assert fitted.leading_space is name.startswith(("linguistic", "translation")), name
        assert all(pair.input.startswith(" ") is fitted.leading_space for pair in fitted.pairs)


def test_inputs_of_one_prompt_are_all_different(tokenizer):
    for prompt in sample(
        fit(TASKS["algorithmic_next_letter"], tokenizer), seed=0, split="dev", count=50, **NUMBERS
    ):
        pairs = [*prompt.demonstrations, prompt.query, *prompt.dummy_queries]
        assert len({pair.input for pair in pairs}) == 8


def test_prompts_depend_on_seed_task_split_and_number_alone(tokenizer):
    fitted = fit(TASKS["linguistic_antonyms"], tokenizer)

    def drawn(seed=0, split="dev", count=9):
        return sample(fitted, seed=seed, split=split, count=count, **NUMBERS)

    assert drawn() == drawn()
    assert drawn(count=4) == drawn()[:4]
    assert drawn(seed=1) != drawn()
    assert drawn(split="test") != drawn()
    other = fit(TASKS["linguistic_plural_singular"], tokenizer)
    assert sample(other, seed=0, split="dev", count=9, **NUMBERS) != drawn()


def test_draws_do_not_depend_on_the_hash_seed_or_the_process():
    code = (
        "from taskvec_jax.tasks.sampling import draw, seeded\n"
        "print(draw(seeded(0, 'task', 'dev', 3), list(range(1000)), 9))"
    )
    here = str(draw(seeded(0, "task", "dev", 3), list(range(1000)), 9))
    for hash_seed in ("0", "1", "random"):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == here
    # A golden: any change of the sequence makes old results unrepeatable.
    assert here == GOLDEN_DRAW


GOLDEN_DRAW = "[959, 148, 56, 405, 582, 11, 20, 642, 638]"


def test_a_draw_is_uniform_enough():
    counts = [0] * 5
    for i in range(5000):
        counts[draw(seeded("uniform", i), range(5), 1)[0]] += 1
    assert all(900 < count < 1100 for count in counts)


def test_too_few_pairs_for_a_prompt_are_refused(tokenizer):
    fitted = fit(TASKS["algorithmic_next_letter"], tokenizer)
    with pytest.raises(TaskVecError, match=r"need 33 different pairs, but only 25 are left"):
        sample(fitted, seed=0, split="dev", count=1, num_demonstrations=30, num_dummy_queries=2)


def test_the_form_and_the_length_of_answers_follow_what_the_task_says_not_its_category(tokenizer):
    words = TASKS["linguistic_antonyms"].pairs[:60]
    spaced, plain = (
        fit(Task("own", "x", words, leading_space=said), tokenizer) for said in (True, False)
    )
    assert (spaced.leading_space, plain.leading_space) == (True, False)
    assert all(pair.input.startswith(" ") for pair in spaced.pairs)
    assert set(plain.pairs) <= set(words)
    long = (Pair("Suva", "the islands of Fiji"), Pair("Oslo", "the south of Norway"))
    assert (
        fit(Task("own", "long", long, match="prefix"), tokenizer).pairs[0].output.endswith("Fiji")
    )
    with pytest.raises(TaskVecError, match="the answer is not one token"):
        fit(Task("knowledge", "long", long, match="exact"), tokenizer)


def test_few_pairs_are_warned_of(tokenizer):
    task = Task("translation", "odd", tuple(Pair(f"w{i}", "antidisestablish") for i in range(100)))
    with pytest.raises(TaskVecError, match="leaves none of 100 pairs"):
        fit(task, tokenizer)
    half = Task("translation", "half", (*task.pairs, Pair("chien", "dog"), Pair("chat", "cat")))
    fitted = fit(half, tokenizer)
    assert len(fitted.pairs) == 2
    assert "leaves 2 of 102 pairs (under 70)" in fitted.note
    assert fit(TASKS["algorithmic_next_letter"], tokenizer).note == ""


def test_a_tokenizer_that_merges_the_arrow_with_the_query_is_refused():
    text = "example:ab->"
    vocab = {c: i for i, c in enumerate(sorted(set(text)))}
    merges = [("b", "-"), ("b-", ">"), ("a", "-"), ("a-", ">")]
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    merging = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges)))
    task = Task("knowledge", "letters", (Pair("a", "b"), Pair("b", "a")))
    with pytest.raises(TaskVecError, match="not a token of its own"):
        fit(task, merging)


LETTERS = "abcdefghijklmnopqrstuvwxyz:->\n"
NEXT = Task("letters", "next", tuple(map(Pair, "abcdefghij", "bcdefghijk")))


def of_letters(tokens: str = LETTERS, **settings) -> tokenizers.Tokenizer:
    """One token for each character, `<unk>` for every other one, or what settings say."""
    vocab = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *tokens])}
    merges = tokenizers.models.BPE(vocab=vocab, merges=[], **{"unk_token": "<unk>", **settings})
    backend = tokenizers.Tokenizer(merges)
    backend.decoder = tokenizers.decoders.Fuse()
    return backend


@pytest.mark.parametrize("single", ["<s> $A </s>", "$A </s>"])
def test_a_tokenizer_that_appends_eos_is_refused_by_that_name(single):
    backend = of_letters()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    with pytest.raises(TaskVecError, match=r"'</s>' \(EOS\) after every text"):
        fit(NEXT, Tokenizer(backend))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert len(fit(NEXT, Tokenizer(backend)).pairs) == 10


def test_a_pair_that_holds_the_unknown_token_is_not_posed():
    pairs = (*NEXT.pairs, Pair("é", "a"), Pair("x", "é"), Pair("a b", "c"))
    fitted = fit(Task("letters", "some", pairs), Tokenizer(of_letters()))
    assert fitted.pairs == NEXT.pairs
    assert "leaves 10 of 13 pairs" in fitted.note
    assert "3 because the vocabulary cannot spell them" in fitted.note


@pytest.mark.parametrize("decoder", [tokenizers.decoders.Fuse(), None])
def test_a_pair_whose_text_is_changed_by_encoding_is_not_posed(decoder):
    """Upper case becomes lower case without a word, and accents are dropped."""
    backend = of_letters(unk_token=None)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Lowercase(), tokenizers.normalizers.StripAccents()]
    )
    backend.decoder = decoder
    pairs = (*NEXT.pairs, Pair("A", "a"), Pair("k", "L"), Pair("à", "b"), Pair("z", "東"))
    assert fit(Task("letters", "some", pairs), Tokenizer(backend)).pairs == NEXT.pairs


def test_a_text_that_a_tokenizer_cannot_read_at_all_is_not_posed():
    """Without an unknown token tokenizers raises an error of its own."""
    vocab = {name: i for i, name in enumerate(["example:", "->", "\n", *"abcdefghijk"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab))
    pattern = tokenizers.Regex(r"example:|->|[\s\S]")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    tokenizer = Tokenizer(backend)
    fitted = fit(Task("letters", "some", (*NEXT.pairs, Pair("k", "x"))), tokenizer)
    assert fitted.pairs == NEXT.pairs
    with pytest.raises(TaskVecError, match="cannot read the text 'x'"):
        tokenizer.encode("x")


def test_a_tokenizer_that_loses_the_line_break_is_refused():
    without = Tokenizer(of_letters(LETTERS.replace("\n", "")))
    with pytest.raises(TaskVecError, match="loses the separator between demonstrations"):
        fit(NEXT, without)


def test_the_small_models_tokenizer_poses_its_own_tasks_and_no_words():
    small = build_tokenizer()
    for task in TRAINING_TASKS:
        assert len(fit(task, small).pairs) == len(task.pairs), task.name
    for name, task in TASKS.items():
        if name.startswith(("knowledge", "linguistic")):
            with pytest.raises(TaskVecError, match=r"leaves none of .* because"):
                fit(task, small)


def test_an_answer_in_letters_is_spelled_only_if_each_letter_is_a_token(tokenizer):
    task = Task("knowledge", "own", (Pair("Suva", "Fiji"), Pair("a", "b"), Pair("中", "国际法")))
    assert len(fit(task, tokenizer).pairs) == 3
    letters = Tokenizer(of_letters(LETTERS + "中国际法"))
    task = Task("knowledge", "own", (Pair("suva", "fiji"), Pair("a", "b"), Pair("中", "国际法")))
    assert [pair.output for pair in fit(task, letters).pairs] == ["b", "国际法"]


def test_too_few_pairs_are_said_with_the_reason():
    pairs = (*NEXT.pairs, *(Pair(a, "no") for a in "nopqrstu"))
    fitted = fit(Task("letters", "some", pairs), Tokenizer(of_letters()))
    ways = r"8 because the answer is not one token\); keep .* with --filter=none, or ask for fewer"
    with pytest.raises(TaskVecError, match=rf"only 10 are left.*{ways}"):
        sample(fitted, seed=0, split="dev", count=1, num_demonstrations=9, num_dummy_queries=2)
