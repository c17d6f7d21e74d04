"""Controls: how each is made, and that a result holds them all."""

# Long because: every control is tested on the same tiny model.

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import LLAMA, PYTHIA, model_of
from slow import slow

from experiments.main_results import TO_BEAT, assemble
from experiments.page import main_results as page
from experiments.run.study import without_controls
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation import controls, lending
from taskvec_jax.evaluation.answers import Job, Said, Scorer, accepted, scorer_of
from taskvec_jax.evaluation.columns import Given
from taskvec_jax.evaluation.control_prompts import share_wrong, wrong_labels
from taskvec_jax.evaluation.controlled import evaluate_with_controls
from taskvec_jax.evaluation.controls import CONTROLS, Control, Vectors
from taskvec_jax.evaluation.lending import Other, rank_lent
from taskvec_jax.evaluation.protocol import Written, evaluate_task
from taskvec_jax.evaluation.random_vectors import random_with_covariance
from taskvec_jax.evaluation.reading import query_parts, read_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.prompting.prompts import FittedTask, Prompt
from taskvec_jax.tasks import TASKS, Pair, Task
from taskvec_jax.tasks.related import are_related
from taskvec_jax.vectors.sweep import sweep_layers

SMALL = Settings(num_prompts=4, batch_size=4)
GRADED = ("logprob", "rank", "logit_difference")  # these follow the order of sums


@pytest.fixture(scope="module")
def random_model(tokenizer):
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, max_length=512)
    return model_of(config, tokenizer)


def scorer_over(*pairs: Pair, category: str = "own") -> Scorer:
    """A scorer that is never asked for a model's answer."""
    task = Task(category, "x", pairs)
    return Scorer(None, FittedTask(task, pairs, False, len(pairs)))  # type: ignore[arg-type]


def test_wrong_labels_are_all_wrong_where_some_order_makes_them_so():
    shown = tuple(Pair(f"x{i}", label) for i, label in enumerate("aabbc"))
    scorer = scorer_over(*shown, Pair("q", "d"))
    prompt = Prompt(shown, Pair("q", "d"), (Pair("e", "f"),))
    for seed in range(20):
        relabelled = wrong_labels(scorer, prompt, seed)
        assert [p.input for p in relabelled.demonstrations] == [p.input for p in shown]
        assert sorted(p.output for p in relabelled.demonstrations) == list("aabbc")
        assert share_wrong(scorer, [prompt], [relabelled]) == 1.0
        assert (relabelled.query, relabelled.dummy_queries) == (prompt.query, prompt.dummy_queries)
    assert wrong_labels(scorer, prompt, 1) == wrong_labels(scorer, prompt, 1)


def test_labels_that_no_order_makes_wrong_give_way_to_other_outputs_of_the_task():
    shown = tuple(Pair(f"x{i}", label) for i, label in enumerate("aaab"))
    scorer = scorer_over(*shown, Pair("q", "c"), Pair("r", "a"))
    prompt = Prompt(shown, Pair("q", "c"), ())
    relabelled = wrong_labels(scorer, prompt, 0)
    assert share_wrong(scorer, [prompt], [relabelled]) == 1.0
    # A task of one answer has no wrong label, and that is counted.
    one = tuple(Pair(f"x{i}", "a") for i in range(3))
    alike = Prompt(one[:2], one[2], ())
    same = wrong_labels(scorer_over(*one), alike, 0)
    assert share_wrong(scorer_over(*one), [alike], [same]) == 0.0


def test_an_accepted_alternative_is_no_wrong_label():
    shown = (Pair("x", "a", ("b",)), Pair("y", "b"), Pair("z", "c"))
    scorer = scorer_over(*shown)
    for seed in range(10):
        relabelled = wrong_labels(scorer, Prompt(shown, Pair("q", "d"), ()), seed)
        assert [p.output for p in relabelled.demonstrations] == ["c", "a", "b"]


def test_a_random_vector_has_thetas_covariance_and_size():
    rng = np.random.RandomState(0)
    base = rng.standard_normal((40, 2, 3)) * np.array([3.0, 1.0, 0.1]) + np.array([9.0, 0.0, 0.0])
    theta = base.astype(np.float32)
    drawn = random_with_covariance(theta, 4_000, 0, "t")
    sizes = np.linalg.norm(drawn, axis=-1)
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[:1], sizes.shape), rtol=1e-5)
    np.testing.assert_allclose(sizes[0], np.linalg.norm(theta, axis=-1).mean(axis=0), rtol=1e-5)
    spread = drawn[:, 0].std(axis=0)
    assert spread[0] > 1.5 * spread[1] > 5 * spread[2]  # along theta's own directions
    assert np.abs(drawn.mean(axis=0)).max() < 0.5  # theta's mean is not in it
    np.testing.assert_array_equal(drawn, random_with_covariance(theta, 4_000, 0, "t"))
    lone = random_with_covariance(theta[:1], 3, 0, "t")
    np.testing.assert_allclose(
        np.linalg.norm(lone, axis=-1), np.linalg.norm(theta[:1], axis=-1).repeat(3, 0), rtol=1e-5
    )


def test_the_median_of_the_unrelated_tasks_is_beaten_and_the_nearest_is_shown():
    def other(name: str, accuracy: float, related: bool = False) -> Other:
        theta = np.full((3, 2), accuracy, np.float32)
        return Other(name, theta, np.zeros((2, 3), int), 1, accuracy, related)

    materials: Any = SimpleNamespace()
    materials.measured = SimpleNamespace(test=[0, 0])
    materials.others = [
        other("a", 0.1),
        other("b", 0.9, True),
        other("c", 0.3),
        other("d", 0.2),
        other("e", 0.0),
    ]
    chosen = CONTROLS["other_task"].make(materials)
    nearest = CONTROLS["nearest_task"].make(materials)
    assert isinstance(chosen, Vectors)
    assert isinstance(nearest, Vectors)
    assert chosen.test[0, 0] == np.float32(0.2)  # of .0, .1, .2, .3 the upper of the middle two
    assert nearest.test[0, 0] == np.float32(0.9)
    materials.others = [other("a", 0.5, related=True)]
    assert CONTROLS["other_task"].make(materials) is None
    assert not CONTROLS["nearest_task"].in_verdict


def test_related_tasks_are_declared_by_group_or_by_the_task_itself():
    def related(one: str, two: str) -> bool:
        return are_related(TASKS[one], TASKS[two])

    assert related("translation_fr_en", "translation_es_en")
    assert related("algorithmic_to_upper", "algorithmic_next_letter")
    assert not related("translation_fr_en", "linguistic_antonyms")
    own = Task("own", "x", (Pair("a", "b"),), related=("own_y",))
    assert are_related(own, Task("own", "y", (Pair("a", "b"),)))
    assert are_related(Task("own", "y", (Pair("a", "b"),)), own)
    with pytest.raises(TaskVecError, match="related is 'own_y'; it must be names of tasks"):
        Task("own", "x", (Pair("a", "b"),), related="own_y")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def controlled(random_model):
    """One task with all controls, thetas of two others lent."""
    names = ("to_upper", "to_lower", "list_first")
    tasks = [TASKS[f"algorithmic_{name}"] for name in names]
    steps: list[int] = []
    full, measured = evaluate_with_controls(random_model, tasks[1], tasks, SMALL, steps.append)
    assert sum(steps) == 4 * SMALL.num_prompts
    return full, measured


@slow  # a run without the controls, compiled anew
def test_the_controlled_run_gives_the_same_scores_as_the_plain_one(random_model, controlled):
    full, measured = controlled
    plain = evaluate_task(random_model, TASKS["algorithmic_to_lower"], SMALL)
    assert measured.theta.shape == (4, LLAMA.num_layers, LLAMA.width)
    for name, column in plain.outcomes.items():
        ours = full.result.outcomes[name]
        if isinstance(column, dict):  # another number of copies is another program
            for key in GRADED:
                assert ours[key] == pytest.approx(column[key], abs=3 if key == "rank" else 1e-3)
            assert {k: v for k, v in ours.items() if k not in GRADED} == {
                k: v for k, v in column.items() if k not in GRADED
            }
        else:
            assert ours == column
    assert full.result.task_vector == plain.task_vector
    assert list(full.controls) == list(CONTROLS)
    assert full.controls["random"] == plain.random
    taken = without_controls(full.to_dict())
    assert taken["outcomes"].keys() == plain.outcomes.keys()
    assert taken == plain.to_dict() | {"outcomes": taken["outcomes"]}


def test_a_result_holds_every_column_at_its_own_layer(controlled):
    full, _ = controlled
    recorded = full.result.outcomes
    assert set(recorded) == {
        "queries",
        "answers",
        "prompts",
        "baseline",
        "icl",
        "task_vector",
        *CONTROLS,
    }
    for name, column in recorded.items():
        if isinstance(column, dict):
            assert len(column["correct"]) == len(column["predicted"]) == 4
            written = name not in ("baseline", "icl", "best_constant", "copy")
            assert (column["layer"] is not None) == written
    assert recorded["last_layer_replay"]["layer"] == LLAMA.num_layers - 1
    assert recorded["copy"]["predicted"] == [q.strip() for q in recorded["queries"]]
    assert len(set(recorded["best_constant"]["predicted"])) == 1
    assert set(full.other_tasks) == {"algorithmic_to_upper", "algorithmic_list_first"}
    assert full.other_tasks["algorithmic_to_upper"]["related"]
    curve = full.test_accuracy_by_layer
    replay = np.mean(recorded["last_layer_replay"]["correct_paper"])
    assert curve[-1] == replay


def test_the_best_constant_is_chosen_on_all_pairs_and_not_on_the_scored_prompts(tokenizer):
    pairs = (
        *[Pair(str(i), "Asia") for i in range(6)],
        *[Pair(f"{i}.", "Africa") for i in range(5)],
    )
    task = Task("knowledge", "x", pairs)
    model: Any = SimpleNamespace(tokenizer=tokenizer)
    scorer = Scorer(model, FittedTask(task, pairs, False, 11))
    materials: Any = SimpleNamespace()
    materials.measured = SimpleNamespace(scorer=scorer, test=[0, 0, 0])
    made = CONTROLS["best_constant"].make(materials)
    assert isinstance(made, Given)
    assert made.full == ["Asia"] * 3
    assert made.paper == ["A"] * 3  # right for all by the paper's rule


def test_a_control_is_one_entry_from_its_answers_to_the_pages_tables(random_model, monkeypatch):
    """Answers as texts, by a vector, and none, each scored as it is elsewhere."""
    task = TASKS["algorithmic_to_lower"]
    added = {
        "always_b": Control("always b", "b", lambda m: Given(*[["b"] * len(m.measured.test)] * 2)),
        "itself": Control(
            "theta",
            "θ",
            lambda m: Written(m.measured.layer, m.measured.theta[:, m.measured.layer]),
        ),
        "absent": Control("nothing", "nil", lambda m: None),
    }
    monkeypatch.setattr(controls, "CONTROLS", CONTROLS)
    for name, control in added.items():
        monkeypatch.setitem(CONTROLS, name, control)  # type: ignore[arg-type]
    found, m = evaluate_with_controls(random_model, task, [], SMALL)
    assert list(found.controls) == list(CONTROLS)
    of_b = [int(p.query.output == "b") for p in m.test]
    assert found.result.outcomes["always_b"]["correct"] == of_b
    assert found.controls["itself"] == found.result.task_vector
    assert found.controls["absent"] is None
    titles = [c.title for c in CONTROLS.values()]
    row = found.to_dict() | {"beats": False}
    assert page._controls_table({task.name: row}).columns[3:-3] == titles


def test_a_constant_answer_beats_no_control(tokenizer):
    """A decoder that always says " A": the final norm gives a constant, and the unembedding makes
    one token of it. Every column is scored, and the constant is told from a task vector."""
    config = dataclasses.replace(
        PYTHIA, vocab_size=tokenizer.vocab_size, max_length=512, tied_unembed=False, num_layers=2
    )
    model = model_of(config, tokenizer)
    (token,) = tokenizer.encode("A")
    inner = model.params["params"]
    norm = inner["final_norm"]
    norm["scale"] = 0 * norm["scale"]
    norm["bias"] = 0 * norm["bias"] + 1
    kernel = np.zeros(np.shape(inner["unembed"]["kernel"]), np.float32)
    kernel[:, token] = 1
    inner["unembed"]["kernel"] = kernel
    task = TASKS["knowledge_location_continent"]
    others = [task, TASKS["algorithmic_to_upper"]]
    settings = Settings(num_prompts=12, batch_size=12, rule="paper")
    found, _ = evaluate_with_controls(model, task, others, settings)
    recorded = found.result.outcomes
    for name, column in recorded.items():
        if isinstance(column, dict) and name not in ("best_constant", "copy"):
            assert set(column["predicted"]) == {"A"}
            assert column["correct"] == recorded["baseline"]["correct"]
            assert sum(column["correct_full"]) == 0
    assert found.result.task_vector.accuracy > 0.2  # one letter is right for four of seven
    assert found.controls["best_constant"] == found.result.task_vector
    assembled = assemble("m", {task.name: found.to_dict()}, seed=0)
    assert not assembled["tasks"][task.name]["beats"]
    assert assembled["primary"] is None  # there is nothing that in-context learning does
    assert assembled["pairing_share"] is None


def test_every_control_but_the_estimates_has_to_be_beaten():
    assert TO_BEAT == (
        "baseline",
        "best_constant",
        "copy",
        "last_layer_replay",
        "other_task",
        "zero_demonstrations",
        "mean_theta",
        "random",
    )


def test_prompts_of_several_numbers_of_dummy_queries_are_refused(random_model):
    scorer = scorer_of(random_model, TASKS["algorithmic_to_upper"], SMALL)
    one, two = (
        Prompt((Pair("a", "b"),), Pair("c", "d"), (Pair("e", "f"),) * count) for count in (1, 2)
    )
    for prompts in ([one, two], [dataclasses.replace(one, dummy_queries=())]):
        with pytest.raises(TaskVecError, match="dummy queries; allowed: one or more, the same"):
            read_prompts(scorer, prompts, 2)


def test_replaying_the_last_layer_repeats_what_was_said_to_the_dummy_query(random_model):
    """One dummy query: injected after the last block, its state gives its own next token."""
    from taskvec_jax.evaluation.measuring import measure
    from taskvec_jax.vectors.sweep import read_texts, sweep_layers

    task = TASKS["algorithmic_to_lower"]
    measured = measure(random_model, task, dataclasses.replace(SMALL, num_dummy_queries=1))
    encode = random_model.tokenizer.encode_all
    queries = encode([p.zero_shot() for p in measured.test])
    swept = sweep_layers(random_model, queries, measured.theta, 4).tokens
    said = read_texts(random_model, [encode(p.dummies()) for p in measured.test], 4)[1].tokens
    np.testing.assert_array_equal(swept[:, -1], said[:, 0])


def test_dev_and_test_ask_for_different_pairs_where_enough_are_left():
    pairs = tuple(Pair(f"x{i}", f"y{i}") for i in range(61))
    fitted = FittedTask(Task("own", "x", pairs), pairs, False, 61)
    parts = query_parts(fitted, SMALL)
    assert len(parts["test"]) == 31
    assert {*parts["dev"], *parts["test"]} == set(pairs)
    assert not {*parts["dev"]} & {*parts["test"]}
    assert query_parts(fitted, dataclasses.replace(SMALL, seed=1)) != parts
    # As the paper does it, and where fewer than 30 would be left to test, all are shared.
    assert query_parts(fitted, dataclasses.replace(SMALL, rule="paper")) == {}
    few = dataclasses.replace(fitted, pairs=pairs[:58])
    assert query_parts(few, SMALL) == {}
    assert len(query_parts(dataclasses.replace(fitted, pairs=pairs[:60]), SMALL)["test"]) == 30


def test_answers_are_listed_with_the_output_first():
    assert accepted(Pair(" x", " y", (" z",))) == ["y", "z"]


def test_lent_thetas_are_ranked_by_whole_answers_where_their_first_tokens_do_best(
    random_model, controlled, monkeypatch
):
    _, m = controlled
    names = ("a", "b", "c", "d", "e")
    lent = {name: m.theta[i % 4] * (1 + i) for i, name in enumerate(names)}
    asked: list[Job] = []

    def complete(scorer: Scorer, jobs: list[Job]) -> list[Said]:
        asked.extend(jobs)
        return [Said("", job.begun[0] % 2 == 0) for job in jobs]

    monkeypatch.setattr(lending, "complete", complete)
    monkeypatch.setattr(Scorer, "by_first_token", lambda self, dev, tokens: tokens % 3 == 0)
    monkeypatch.setattr(Scorer, "may_be_right", lambda self, dev, tokens: tokens % 5 != 0)
    others = rank_lent(m, lent, {}, SMALL)
    assert [other.name for other in others] == list(names)
    queries = random_model.tokenizer.encode_all([p.zero_shot() for p in m.dev])
    for other in others:
        theta = np.broadcast_to(other.theta, (len(m.dev), *other.theta.shape))
        tokens = sweep_layers(random_model, queries, theta, 4).tokens[:, 1:]
        np.testing.assert_array_equal(other.tokens, tokens)
        assert other.layer == int((tokens % 3 == 0).mean(axis=0).argmax())
        there = tokens[:, other.layer]
        assert other.accuracy == ((there % 2 == 0) & (there % 5 != 0)).mean()
    assert {job.layer for job in asked} <= {other.layer for other in others}
    assert len(asked) < sum(other.tokens.size for other in others)
