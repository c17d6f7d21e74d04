"""Controls and the verdict over them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import LLAMA, model_of

from experiments.page import main_results as page
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.control_prompts import majority_answer, other_prompts, shuffle_labels
from taskvec_jax.evaluation.controls import (
    CONTROLS,
    Control,
    Texts,
    Tokens,
    Vectors,
    difference_low,
    evaluate_with_controls,
    judge_controls,
)
from taskvec_jax.evaluation.judging import accuracy
from taskvec_jax.evaluation.protocol import Settings, evaluate_task
from taskvec_jax.evaluation.reading import read_prompts
from taskvec_jax.prompting.prompts import FittedTask, Prompt
from taskvec_jax.tasks import TASKS, Pair, Task

SMALL = Settings(num_prompts=4, batch_size=4)


@pytest.fixture(scope="module")
def random_model(tokenizer):
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, max_length=512)
    return model_of(config, tokenizer)


def test_the_majority_answer_is_the_commonest_output_and_the_earliest_of_equals():
    pairs = [Pair("1", " b"), Pair("2", "a"), Pair("3", "a"), Pair("4", "b"), Pair("5", "c")]
    task = Task("own", "x", tuple(pairs))
    assert majority_answer(FittedTask(task, tuple(pairs), False, 5)) == "b"


def test_shuffled_labels_keep_inputs_and_outputs_but_no_output_in_its_place():
    shown = tuple(Pair(f"x{i}", f"y{i}", ("z",)) for i in range(5))
    prompt = Prompt(shown, Pair("q", "a"), (Pair("d", "e"),))
    for seed in range(20):
        shuffled = shuffle_labels(prompt, seed)
        assert [p.input for p in shuffled.demonstrations] == [p.input for p in shown]
        assert {p.output for p in shuffled.demonstrations} == {p.output for p in shown}
        assert all(
            a.output != b.output for a, b in zip(shuffled.demonstrations, shown, strict=True)
        )
        assert shuffled.query == prompt.query
    assert shuffle_labels(prompt, 1) == shuffle_labels(prompt, 1)


def test_a_lone_demonstration_takes_the_output_of_a_dummy_query():
    prompt = Prompt((Pair("x", "y"),), Pair("q", "a"), (Pair("d", "e"),))
    assert shuffle_labels(prompt, 0).demonstrations == (Pair("x", "e"),)


def test_thetas_are_borrowed_from_every_other_task_in_turn(random_model):
    tasks = [TASKS[f"algorithmic_{name}"] for name in ("to_upper", "to_lower", "next_letter")]
    lent = other_prompts(random_model, tasks[0], tasks, SMALL)
    assert len(lent) == 4
    sources = [next(t.name for t in tasks[1:] if p.query in t.pairs) for p in lent]
    assert sources == [tasks[1].name, tasks[2].name] * 2
    assert other_prompts(random_model, tasks[0], tasks[:1], SMALL) == []


def score(correct: int, n: int = 50) -> dict[str, float]:
    return vars(accuracy(np.arange(n) < correct))


def test_the_interval_of_a_difference_equals_a_hand_computed_one():
    # .60 [.4618, .7239] less .34 [.2244, .4785]: .26 - sqrt(.1382^2 + .1385^2) = .26 - .1957
    assert difference_low(score(30), score(17)) == pytest.approx(0.0643, abs=2e-4)
    # .06 [.0206, .1622] less .02 [.0035, .1050]: .04 - sqrt(.0394^2 + .0850^2) = .04 - .0937
    assert difference_low(score(3), score(1)) == pytest.approx(-0.0537, abs=2e-4)
    assert difference_low(score(25), score(25)) < 0


@pytest.mark.parametrize(
    ("correct", "beats", "word"),
    [
        (40, True, "beats its controls (best: last-layer replay, 0.50)"),
        (31, False, "not shown to beat its controls: above last-layer replay (0.50)"),
        (25, False, "does not beat its controls: last-layer replay scores 0.50"),
        (12, False, "does not beat its controls: last-layer replay scores 0.50"),
    ],
)
def test_a_vector_beats_its_controls_when_every_difference_is_above_zero(correct, beats, word):
    controls: dict[str, object] = {name: score(5) for name in CONTROLS}
    controls["last_layer_replay"] = score(25)
    controls["other_task"] = None
    task = {"task_vector": score(correct), "baseline": score(20, 100), "controls": controls}
    verdict = judge_controls(task)
    assert verdict.beats is beats
    assert verdict.beats == (verdict.margin > 0)
    assert verdict.best_control == "last_layer_replay"
    assert word in verdict.words


def test_three_of_fifty_do_not_beat_one_of_fifty():
    controls = {name: score(0) for name in CONTROLS} | {"copy_input": score(1)}
    task = {"task_vector": score(3), "baseline": score(0, 100), "controls": controls}
    assert not judge_controls(task).beats


def test_the_zero_shot_baseline_counts_as_a_control():
    controls = {name: score(5) for name in CONTROLS}
    task = {"task_vector": score(25), "baseline": score(45, 100), "controls": controls}
    verdict = judge_controls(task)
    assert not verdict.beats
    assert verdict.best_control == "baseline"
    assert "zero-shot" in verdict.words


def test_the_controlled_run_gives_the_same_scores_as_the_plain_one(random_model):
    task = TASKS["algorithmic_to_lower"]
    plain = evaluate_task(random_model, task, SMALL)
    steps = []
    full, measured = evaluate_with_controls(
        random_model, task, list(TASKS.values()), SMALL, steps.append
    )
    assert sum(steps) == 4 * SMALL.num_prompts
    assert full.result == plain
    assert measured.theta.shape == (4, LLAMA.num_layers, LLAMA.width)
    assert list(full.controls) == list(CONTROLS)
    assert full.controls["random_vector"] == plain.random_vector
    assert full.test_accuracy_by_layer[plain.best_layer] == plain.task_vector.accuracy
    replay = full.controls["last_layer_replay"]
    assert replay
    assert full.test_accuracy_by_layer[-1] == replay.accuracy
    assert {"baseline", "controls", "test_accuracy_by_layer"} <= full.to_dict().keys()


def test_a_control_is_one_entry_from_its_answers_to_the_pages_tables(random_model, monkeypatch):
    """Answers as texts, as tokens and by a vector, and none, each scored as it is elsewhere."""
    task = TASKS["algorithmic_to_lower"]
    added = {
        "always_b": Control("always b", "b", lambda m: Texts(["b"] * len(m.measured.test))),
        "untouched": Control("no vector", "none", lambda m: Tokens(m.swept[:, 0])),
        "itself": Control("theta", "θ", lambda m: Vectors(m.measured.theta[:, m.measured.layer])),
        "absent": Control("nothing", "nil", lambda m: None),
    }
    for name, control in added.items():
        monkeypatch.setitem(CONTROLS, name, control)  # type: ignore[arg-type]
    found, m = evaluate_with_controls(random_model, task, [], SMALL)
    assert list(found.controls) == list(CONTROLS)
    of_b = sum(p.query.output == "b" for p in m.test)
    assert found.controls["always_b"] == accuracy(np.arange(len(m.test)) < of_b)
    assert found.controls["itself"] == found.result.task_vector
    assert found.controls["absent"] is None
    assert found.controls["other_task"] is None
    words, titles = page._all_controls(), [c.title for c in CONTROLS.values()]
    assert words.endswith("theta from shuffled labels, always b, no vector, theta and nothing")
    row = found.to_dict() | {"verdict": "", "beats_controls": False}
    assert page._controls_table({task.name: row}).columns[3:-2] == titles


def test_prompts_of_several_numbers_of_dummy_queries_are_refused(random_model):
    one, two = (
        Prompt((Pair("a", "b"),), Pair("c", "d"), (Pair("e", "f"),) * count) for count in (1, 2)
    )
    for prompts in ([one, two], [dataclasses.replace(one, dummy_queries=())]):
        with pytest.raises(TaskVecError, match="dummy queries; allowed: one or more, the same"):
            read_prompts(random_model, prompts, 2)
    both, alone = read_prompts(random_model, [two], 2, theta_only=[two]), [two]
    np.testing.assert_allclose(both.theta[0], both.theta[1], atol=1e-5)
    assert both.icl.tolist() == read_prompts(random_model, alone, 2).icl.tolist()


def test_majority_and_copy_are_what_their_names_say(random_model):
    same = Task("own", "copy", tuple(Pair(c, c) for c in "abcdefghijklmnop"))
    settings = dataclasses.replace(SMALL, num_demonstrations=2)
    full, _ = evaluate_with_controls(random_model, same, [same], settings)
    copy, majority = full.controls["copy_input"], full.controls["majority_class"]
    assert copy
    assert majority
    assert copy.accuracy == 1.0
    assert majority.accuracy <= 0.5
    assert full.controls["other_task"] is None
    assert full.majority_answer == "a"


def test_replaying_the_last_layer_repeats_what_was_said_to_the_dummy_query(random_model):
    """One dummy query: injected after the last block, its state gives its own next token."""
    task = TASKS["algorithmic_to_upper"]
    settings = dataclasses.replace(SMALL, num_dummy_queries=1)
    _, measured = evaluate_with_controls(random_model, task, [task], settings)
    from taskvec_jax.vectors.sweep import read_texts, sweep_layers

    encode = random_model.tokenizer.encode_all
    queries = encode([p.zero_shot() for p in measured.test])
    swept = sweep_layers(random_model, queries, measured.theta, 4).tokens
    said = read_texts(random_model, [encode(p.dummies()) for p in measured.test], 4)[1].tokens
    np.testing.assert_array_equal(swept[:, -1], said[:, 0])
