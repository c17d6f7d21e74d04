"""Answers are generated as far as they must be, and no further, with the same result."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import LLAMA, model_of

from experiments.small_pythia.mixture import TRAINING_TASKS
from taskvec_jax import load_model, replace
from taskvec_jax.evaluation import answers, layers
from taskvec_jax.evaluation.answers import Job, Said, Scorer, accepted, complete, scorer_of
from taskvec_jax.evaluation.columns import Given, Predicted, score_columns
from taskvec_jax.evaluation.layers import Chosen, Swept, layers_of_dev
from taskvec_jax.evaluation.reading import (
    MOST_ASSUMED,
    InContext,
    draw_prompts,
    read_in_context,
    read_prompts,
)
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.scoring import cut, scoring_rule
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.prompting.prompts import Prompt, fit
from taskvec_jax.tasks import TASKS, Pair, Task
from taskvec_jax.vectors.sweep import inject_vectors

SETTINGS = Settings(num_prompts=8, batch_size=8)


@pytest.fixture(scope="module")
def small():
    return load_model(SMALL_MODEL)


@pytest.fixture(scope="module")
def scorer(small):
    task = next(task for task in TRAINING_TASKS if task.name == "algorithmic_to_upper")
    return scorer_of(small, task, SETTINGS)


@pytest.mark.parametrize("ignore_case", [True, False])
def test_what_is_settled_by_a_beginning_stays_so_however_the_text_goes_on(ignore_case):
    rule = scoring_rule("full", ignore_case=ignore_case)
    rng = np.random.RandomState(0)
    letters = ["a", "b", "B", " ", "-", "'", "\n", "é", "e\u0301", "e", "\u0301", ",", "ab"]
    seen = set()
    for _ in range(4_000):
        texts = ["".join(rng.choice(letters, rng.randint(1, 4))) for _ in range(3)]
        allowed = [text for text in texts if text.strip()]
        whole = "".join([rng.choice([*texts, ""]), *rng.choice(letters, rng.randint(0, 4))])
        final = rule.is_right(whole, allowed)
        for length in range(len(whole) + 1):
            said = rule.settled(whole[:length], allowed)
            assert said in (None, final), (whole, length, allowed)
            seen.add(said)
    assert seen == {None, True, False}
    assert scoring_rule("paper").settled("x", ["y"]) is None
    # Half a character, as tokenizers decode it, settles nothing.
    assert rule.settled("Asunci\ufffd", ["Asunción"]) is None


def test_answers_completed_are_those_that_generation_gives(tokenizer):
    """States written at several layers, and none, on a random model whose tokens are words; each
    answer is judged as the whole generated text is."""
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, num_layers=3)
    model = model_of(config, tokenizer)
    scorer = scorer_of(model, TASKS["algorithmic_to_upper"], SETTINGS)
    prompts = draw_prompts(scorer.fitted, SETTINGS, "test")
    texts = tokenizer.encode_all([p.zero_shot() for p in prompts])
    at = np.arange(len(prompts)) % 3
    vectors = np.random.RandomState(0).standard_normal((len(prompts), config.width))
    for written in (True, False):
        edits = replace(vectors, layer=at, position=-1) if written else ()
        whole = model.generate(texts, max_new_tokens=6, edits=edits, return_ids=True)
        jobs, expected = [], []
        for i, ids in enumerate(whole):
            for size in range(1, 4 * bool(ids)):
                said = tokenizer.decode(ids[:size]).strip()
                for answer in sorted({said, said + "x", said[:-1]} - {""}):
                    pair = Pair(prompts[i].query.input, answer)
                    job = Job(pair, texts[i], (ids[0],))
                    if written:
                        job = job._replace(layer=int(at[i]), vector=vectors[i])
                    jobs.append(job)
                    text = cut(tokenizer.decode(ids[: 1 + scorer.longest(pair)]))
                    expected.append(scorer.rule("full").is_right(text, accepted(pair)))
        assert [answer.right for answer in complete(scorer, jobs)] == expected
        assert {True, False} == set(expected)


def test_answers_that_are_the_same_are_generated_once(tokenizer, monkeypatch):
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    scorer = scorer_of(model_of(config, tokenizer), TASKS["algorithmic_to_upper"], SETTINGS)
    (query,) = tokenizer.encode_all(["example:a->"])
    vectors = np.random.RandomState(0).standard_normal((2, config.width)).astype(np.float32)
    plain = Job(Pair("a", "A"), query, (3,))
    written = [plain._replace(layer=1, vector=vector.copy()) for vector in (*vectors, *vectors)]
    other = plain._replace(pair=Pair("a", "b"))
    asked: list[int] = []

    def one_by_one(scorer: Scorer, jobs: list[Job]) -> list[Said]:
        asked.append(len(jobs))
        return [Said(f"{job.pair.output} {job.layer} {job.vector}", True) for job in jobs]

    monkeypatch.setattr(answers, "_complete", one_by_one)
    jobs = [plain, *written, other, plain._replace(layer=0, vector=vectors[0]), plain]
    said = complete(scorer, jobs)
    assert asked == [5]
    assert [answer.text for answer in said] == [
        f"{job.pair.output} {job.layer} {job.vector}" for job in jobs
    ]


def test_the_second_token_read_in_context_is_the_one_that_generation_gives(small, scorer):
    prompts = draw_prompts(scorer.fitted, SETTINGS, "test")
    theta, icl = read_prompts(scorer, prompts, 8)
    texts = small.tokenizer.encode_all([p.icl() for p in prompts])
    made = small.generate(texts, max_new_tokens=2, return_ids=True)
    begun = icl.begun()
    assert sum(len(ids) == 2 for ids in begun) >= 6  # it knows the task, so the guess is right
    for ids, whole in zip(begun, made, strict=True):
        assert list(ids[: len(whole)]) == whole[: len(ids)]
    # Theta is what it is without the text that is read for the second token.
    dummies = [small.read(p.dummies()).mean(axis=0) for p in prompts]
    np.testing.assert_allclose(theta, np.stack(dummies), atol=1e-4)


@pytest.mark.parametrize("spare", [0, 2, 99])
def test_tokens_after_each_beginning_of_an_output_are_those_of_the_whole_text(tokenizer, spare):
    """Outputs of 1 to 6 tokens, in a context that leaves room for `spare` tokens, or for all."""
    words = ["red", "red blue", "red blue green", "red blue green one two three"]
    task = Task("words", "own", tuple(Pair(x, words[i % 4]) for i, x in enumerate("abcdefghijkl")))
    settings = dataclasses.replace(SETTINGS, num_demonstrations=2, filter="none")
    fitted = fit(task, tokenizer, settings.template, "none")
    prompts = draw_prompts(fitted, settings, "test")
    asked = tokenizer.encode_all([p.icl() for p in prompts])
    most = max(map(len, asked)) + spare
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, max_length=most)
    model = model_of(config, tokenizer)
    scorer = Scorer(model, fitted)
    found = read_in_context(scorer, prompts, 8)
    assert found.assumed.shape == (8, MOST_ASSUMED)
    for ids, first, assumed, after, prompt in zip(asked, *found[:3], prompts, strict=True):
        tokens = [token for token in assumed.tolist() if token >= 0]
        room = min(MOST_ASSUMED, most - len(ids))
        assert tokens == scorer.output_tokens(prompt.query)[:room]
        texts = [[*ids, *tokens[:count]] for count in range(len(tokens) + 1)]
        expected = model.logits(texts).argmax(axis=-1).tolist()
        assert [int(first), *after.tolist()[: len(tokens)]] == expected


def test_an_answer_begins_as_far_as_its_assumed_tokens_are_right():
    said = InContext(
        np.array([5, 5, 5, 9]),
        np.array([[5, 6], [5, 6], [5, -1], [5, 6]]),
        np.array([[6, 7], [8, 7], [8, 8], [6, 7]]),
    )
    assert said.begun() == [(5, 6, 7), (5, 8), (5, 8), (9,)]


def test_graded_scores_are_those_of_the_logits(small, scorer):
    prompts = draw_prompts(scorer.fitted, SETTINGS, "test")
    wanted = scorer.wanted(prompts, seed=0)
    for row, other, prompt in zip(wanted.right, wanted.contrast, prompts, strict=True):
        assert row[0] == scorer.first_token(prompt.query)
        assert other not in row
    theta, icl = read_prompts(scorer, prompts, 8, wanted)
    queries = [p.zero_shot() for p in prompts]
    answers = inject_vectors(
        small,
        small.tokenizer.encode_all(queries),
        theta[:, 2:3],
        np.array([2]),
        8,
        grading=wanted,
    )
    edits = replace(theta[:, 2], layer=2, position=-1)
    logits = {
        "untouched": small.logits(queries),
        "written": small.logits(queries, edits=edits),
        "icl": small.logits([p.icl() for p in prompts]),
    }
    assert answers.graded is not None
    assert icl.graded is not None
    found = {
        "untouched": [values[:, 0] for values in answers.graded],
        "written": [values[:, 1] for values in answers.graded],
        "icl": list(icl.graded),
    }
    rows = np.arange(len(prompts))
    for name, values in logits.items():
        wide = values.astype(np.float64)
        log_p = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
        best = np.take_along_axis(wide, wanted.right, axis=-1).max(axis=-1)
        expected = np.take_along_axis(log_p, wanted.right, axis=-1).max(axis=-1)
        logprob, rank, difference = found[name]
        np.testing.assert_allclose(logprob, expected, atol=1e-3)
        np.testing.assert_allclose(difference, best - wide[rows, wanted.contrast], atol=1e-3)
        np.testing.assert_array_equal(rank, (wide > best[:, None] + 1e-9).sum(axis=-1))


def test_the_layer_is_the_one_that_generating_everywhere_would_choose(monkeypatch):
    rng = np.random.RandomState(0)
    generated, possible = [], 0
    for _ in range(300):
        sets, n, count = rng.randint(1, 4), rng.randint(1, 7), rng.randint(1, 9)
        may = rng.rand(sets, n, count) < rng.rand()
        right = may & (rng.rand(sets, n, count) < rng.rand())
        likely = rng.rand(sets, n, count) < 0.5
        prompts = [Prompt((), Pair(str(i), "a"), ()) for i in range(n)]
        possible += may.sum()
        # which set an answer is of stands in its vector and its token
        vectors = np.broadcast_to(np.arange(sets)[:, None, None, None], (sets, n, count, 1))

        def finish(scorer, jobs, right=right):
            generated.append(len(jobs))
            cells = [(int(job.vector[0]), int(job.pair.input), job.layer) for job in jobs]
            assert len(set(cells)) == len(cells)
            return [Said("", bool(right[cell])) for cell in cells]

        monkeypatch.setattr(layers, "complete", finish)
        monkeypatch.setattr(layers, "AT_ONCE", rng.randint(1, 12))
        monkeypatch.setattr(layers, "AT_LEAST", rng.randint(1, 4))
        scorer = SimpleNamespace(
            may_be_right=lambda _, tokens, may=may: may[tokens[0, 0]],
            is_whole=lambda _, tokens, likely=likely: likely[tokens[0, 0]],
            beginnings=SimpleNamespace(read=lambda texts: None),
        )
        chosen = layers_of_dev(
            scorer,  # type: ignore[arg-type]
            prompts,
            queries=[[0]] * n,
            several=[Swept(of_set, of_set[..., 0]) for of_set in vectors],
            rule="full",
        )
        shares = right.mean(axis=1)  # [sets, L]
        assert chosen == [Chosen(int(of_set.argmax()), of_set.max()) for of_set in shares]
    assert 0 < sum(generated) < possible


def test_columns_are_scored_by_both_rules_and_the_one_in_force_is_named(scorer):
    prompts = [Prompt((), Pair("a", "A"), ()), Prompt((), Pair("b", "B"), ())]
    ids = scorer.model.tokenizer.encode_all([p.zero_shot() for p in prompts])
    (right,), (wrong,) = scorer.model.tokenizer.encode("A"), scorer.model.tokenizer.encode("c")
    columns = {
        "model": Predicted([(right,), (wrong,)], ids),
        "text": Given(["A", "c"], ["A", "B"]),
    }
    for rule in ("paper", "full"):
        found = score_columns(scorer, prompts, columns=columns, rule=rule)
        assert found["model"]["correct_paper"] == [1, 0]
        assert found["model"]["correct_full"][1] == 0
        assert found["text"]["correct_paper"] == [1, 0]
        assert found["text"]["correct_full"] == [1, 1]
        for column in found.values():
            assert column["correct"] == column[f"correct_{rule}"]
        assert "logprob" not in found["text"]
