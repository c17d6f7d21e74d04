"""The parts of experiments that can be worked by hand."""

# Long because: the arithmetic of each experiment is tested by hand-made results.

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest

from experiments import bijections, conflicting_tasks, dose, main_results, task_geometry
from experiments.cross_models import compare
from experiments.page import style
from experiments.page.section import Table, headline, lines, number, score, text
from experiments.run.journal import Journal
from experiments.run.study import Study, some_of_each, task_sha256
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.geometry import cosine_distances
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit
from taskvec_jax.tasks import TASKS, Pair, Task


def fitted(category: str, name: str, *pairs: Pair, leading_space: bool = False) -> FittedTask:
    return FittedTask(Task(category, name, pairs), pairs, leading_space, len(pairs))


def test_conflicting_queries_are_shared_ones_whose_answers_cannot_be_mistaken():
    a = fitted(
        "translation", "en_es", Pair(" sun", " sol"), Pair(" no", " no"), Pair(" cat", " gato")
    )
    b = fitted(
        "translation",
        "en_fr",
        Pair("sun", "soleil"),
        Pair("no", "non", ("no",)),
        Pair("dog", "chien"),
    )
    assert conflicting_tasks.shared_queries(a, b) == [(Pair(" sun", " sol"), Pair("sun", "soleil"))]


def test_conflicting_prompts_never_show_their_query(tokenizer):
    a = fit(TASKS["algorithmic_next_letter"], tokenizer)
    b = fit(TASKS["algorithmic_to_upper"], tokenizer)
    of_a, of_b = conflicting_tasks.draw_pair_prompts(
        a, b, Settings(num_prompts=5, num_demonstrations=4)
    )
    assert len(of_a) == len(of_b) == 10
    for pa, pb in zip(of_a, of_b, strict=True):
        assert pa.query.input == pb.query.input
        assert pb.query.output == pb.query.input.upper()
        for prompt in (pa, pb):
            inputs = [p.input for p in (*prompt.demonstrations, *prompt.dummy_queries)]
            assert len(inputs) == len({*inputs, prompt.query.input}) - 1 == 6


def test_rates_of_a_b_and_neither_are_counted():
    right_a = np.array([True, True, False, False])
    right_b = np.array([False, True, True, False])
    found = conflicting_tasks.rates(right_a, right_b)
    assert [found[name]["accuracy"] for name in ("a", "b", "neither")] == [0.5, 0.5, 0.25]


def test_the_papers_conflicting_pairs_have_their_published_rates():
    rates = [conflicting_tasks._published(f"{a}-{b}") for a, b in conflicting_tasks.PAPER_PAIRS]
    assert [r and r["tv_accuracy_patched"] for r in rates] == [0.77, 0.78, 0.74, 0.97, 0.07]
    assert conflicting_tasks._published("own_x-own_y") is None


def test_a_task_is_turned_round_and_both_ways_mixed():
    task = Task("own", "x", (Pair("a", "1"), Pair("b", "2", ("1",)), Pair("2", "z")))
    ways = bijections.directions("pair", task)
    assert ways["forward"].pairs == task.pairs
    assert ways["backward"].pairs == (
        Pair("1", "a", ("b",)),
        Pair("2", "b"),
        Pair("z", "2"),
    )
    # "2" would have the answer z one way and b the other, so it is left out.
    assert {pair.input for pair in ways["both"].pairs} == {"a", "b", "1", "z"}
    assert len({pair.input for pair in ways["both"].pairs}) == len(ways["both"].pairs)


def test_two_unrelated_tasks_are_mixed_half_and_half_without_the_inputs_they_share():
    one = Task("own", "x", (Pair("a", "1"), Pair("b", "2"), Pair("c", "3")))
    other = Task("own", "y", (Pair("a", "p"), Pair("q", "r")))
    ways = bijections.mixture("both", one, other)
    assert ways["forward"].pairs == one.pairs[1:]
    assert ways["backward"].pairs == other.pairs[1:]
    assert ways["both"].pairs == (Pair("b", "2"), Pair("q", "r"))


def test_tasks_of_the_same_inputs_are_compared_among_themselves():
    letters = {"a", "b", "c"}
    inputs = {"next": letters, "upper": letters | {"z"}, "lower": {"A"}, "prev": {"b", "c", "d"}}
    assert task_geometry.same_inputs(inputs) == [["next", "upper", "prev"]]
    # Words tell the tasks apart where theta does not, and the other way round.
    thetas = [np.tile([[[1.0, 0.0]], [[1.0, 0.1]]], (1, 1, 1)) for _ in range(2)]
    found = task_geometry.describe(
        {"x_a": "x", "x_b": "x"}, thetas, 0, 0, ["aaa", "aab", "zzz", "zzy"], [["x_a", "x_b"]]
    )
    assert found["surface_separability"] == 1.0
    (group,) = found["same_inputs"]
    assert group["tasks"] == ["x_a", "x_b"]
    assert group["surface_separability"] == 1.0
    assert group["separability"] < 1.0
    assert group["chance"] == pytest.approx(1 / 3)


def test_self_inverse_pairs_stay_once_in_the_mix():
    task = Task("own", "x", (Pair("hot", "cold"), Pair("cold", "hot")))
    assert set(bijections.directions("pair", task)["both"].pairs) == set(task.pairs)


def test_mixed_scores_are_split_by_the_direction_of_the_query():
    value = {
        "outcomes": {
            "queries": [" a", " b", " 1", " 2"],
            "icl": {"correct": [1, 1, 1, 0]},
            "task_vector": {"correct": [1, 0, 0, 0]},
        }
    }
    split = bijections.split_by_direction(value, {"a", "b"})["by_direction"]
    assert split["forward"]["icl"]["accuracy"] == 1.0
    assert split["backward"]["icl"]["accuracy"] == 0.5
    assert split["forward"]["task_vector"]["accuracy"] == 0.5
    assert split["backward"]["task_vector"]["accuracy"] == 0.0


def test_theta_is_averaged_round_a_circle_over_prompts_that_do_not_show_the_query():
    def prompts(*shown: str) -> list[Prompt]:
        return [
            Prompt((Pair(a, "x"),), Pair(query, "x"), (Pair("d", "x"),))
            for query, a in zip("abc", shown, strict=True)
        ]

    theta, apart = np.array([[0.0], [3.0], [6.0]]), prompts("p", "q", "r")
    np.testing.assert_allclose(dose.average_round(theta, apart, 1), theta)
    np.testing.assert_allclose(dose.average_round(theta, apart, 2), [[1.5], [4.5], [3.0]])
    np.testing.assert_allclose(dose.average_round(theta, apart, 3), [[3.0]] * 3)
    # The second prompt shows the first one's query: it is passed over for it.
    leaking = prompts("p", "a", "r")
    np.testing.assert_allclose(dose.average_round(theta, leaking, 2), [[3.0], [4.5], [3.0]])
    np.testing.assert_allclose(dose.average_round(theta, leaking, 3), [[3.0], [3.0], [3.0]])


def task_scores(baseline: float, vector: float, icl: float, curve: list[float]) -> dict:
    values = {"baseline": baseline, "task_vector": vector, "icl": icl}
    return {
        **{k: {"accuracy": v, "low": v, "high": v, "n": 10} for k, v in values.items()},
        "dev_accuracy_by_layer": curve,
    }


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            (0.1, 0.4, 0.5),
            "lifts zero-shot accuracy from 0.10 to 0.40, where 5-shot prompting reaches 0.50"
            " (3 tasks that ICL does): 75% of what in-context learning adds.",
        ),
        # Nothing gained, or nothing to gain: no share, and no word of lifting.
        (
            (0.1, 0.1, 0.5),
            "does not lift zero-shot accuracy (0.10 without, 0.10 with it), where 5-shot prompting"
            " reaches 0.50 (3 tasks that ICL does).",
        ),
        (
            (0.1, 0.2, 0.1),
            "lifts zero-shot accuracy from 0.10 to 0.20, where 5-shot prompting reaches 0.10"
            " (3 tasks that ICL does).",
        ),
    ],
)
def test_the_headline_is_true_of_any_scores(scores, words):
    baseline, vector, icl = scores
    mean = {"baseline": baseline, "task_vector": vector, "icl": icl}
    assert headline("m", mean, 5, "3 tasks that ICL does") == f"On m one vector {words}"


def test_averages_are_over_tasks_where_icl_gains_a_fifth():
    tasks = {
        "a": task_scores(0.1, 0.5, 0.3, [0.0]),
        "b": task_scores(0.5, 0.6, 0.6, [0.0]),
        "c": task_scores(0.0, 0.3, 0.9, [0.0]),
    }
    found = main_results.averages_where_icl_gains(tasks)
    assert found["tasks"] == ["a", "c"]
    assert found["baseline"] == pytest.approx(0.05)
    assert found["task_vector"] == pytest.approx(0.4)
    assert found["icl"] == pytest.approx(0.6)
    assert main_results.averages_where_icl_gains({"b": tasks["b"]})["icl"] is None


def test_the_curve_is_over_tasks_above_three_quarters_with_its_spread():
    tasks = {
        "a": task_scores(0, 0, 0, [0.2, 1.0, 0.0]),
        "b": task_scores(0, 0, 0, [0.4, 0.8, 0.8]),
        "c": task_scores(0, 0, 0, [0.75, 0.0, 0.0]),
    }
    found = main_results.curve_of_good_tasks(tasks)
    assert found["tasks"] == ["a", "b"]
    np.testing.assert_allclose(found["mean"], [0.3, 0.9, 0.4])
    np.testing.assert_allclose(found["std"], [0.1, 0.1, 0.4])
    assert found["peak_layer"] == 1
    assert main_results.curve_of_good_tasks({"c": tasks["c"]})["mean"] is None


def test_geometry_of_thetas_on_two_axes_is_the_hand_computed_one():
    """Task a along x, task b along y at layer 1; at layer 0 all along x."""
    thetas = np.zeros((2, 3, 2, 4))
    thetas[:, :, 0, 0] = 1.0
    thetas[0, :, 1, 0] = [1.0, 2.0, 3.0]
    thetas[1, :, 1, 1] = [1.0, 2.0, 3.0]
    found = task_geometry.describe({"x_a": "x", "y_b": "y"}, [*thetas], 1, seed=0)
    assert found["within"]["mean"] == pytest.approx(0.0)
    assert found["between"]["mean"] == pytest.approx(1.0)
    assert found["mean_distance"] == [[0.0, 1.0], [1.0, 0.0]]
    assert found["separability_by_layer"][1] == 1.0
    assert found["chance"] == pytest.approx(2 / 5)
    assert found["own_neighbour"] == [1.0, 1.0]
    assert sum(found["within_histogram"]) == 6
    assert sum(found["between_histogram"]) == 9
    json.dumps(found, allow_nan=False)


def test_a_category_with_an_underscore_is_a_category_in_geometry():
    """Two tasks of my_cat lie along x, one of my along y: only whole names tell them apart."""
    tasks = {"my_cat_a": "my_cat", "my_cat_b": "my_cat", "my_dog": "my"}
    thetas = np.zeros((3, 2, 1, 3))
    thetas[:, :, 0] = [[[1, 0, 0], [1, 0.3, 0]], [[1, 0.01, 0], [1, 0.29, 0]], [[0, 0, 1]] * 2]
    found = task_geometry.describe(tasks, [*thetas], 0, seed=0)
    assert found["category_separability_by_layer"] == [1.0]
    assert found["separability_by_layer"] == [pytest.approx(2 / 6)]
    renamed = dict(zip(tasks, ["p", "q", "r"], strict=True))
    assert task_geometry.describe(renamed, [*thetas], 0, seed=0)[
        "category_separability_by_layer"
    ] == [pytest.approx(2 / 6)]


@pytest.mark.parametrize(("order", "nearest"), [([0, 1], 1.0), ([1, 0], 0.0)])
def test_thetas_from_wrong_labels_are_held_against_right_ones_of_other_prompts(order, nearest):
    """Two tasks on two axes; from wrong labels the same again, or each on the other's axis."""
    rng = np.random.RandomState(0)
    thetas = 0.1 * rng.standard_normal((2, 4, 1, 5)) + np.eye(5)[:2, None, None]
    found = task_geometry.describe(
        {"x_a": "x", "y_b": "y"}, [*thetas], 0, seed=0, wrong=[*thetas[order]]
    )
    assert found["wrong_labels"] == {"separability": 1.0, "nearest_right_theta": nearest}


def test_geometry_keeps_the_distances_of_one_layer_at_a_time(monkeypatch):
    made: list[weakref.ref[np.ndarray]] = []
    most = 0

    def watched(vectors: np.ndarray) -> np.ndarray:
        nonlocal most
        distances = cosine_distances(vectors)
        made.append(weakref.ref(distances))
        most = max(most, sum(array() is not None for array in made))
        return distances

    monkeypatch.setattr(task_geometry, "cosine_distances", watched)
    rng = np.random.RandomState(0)
    thetas = [rng.standard_normal((3, 6, 5)) for _ in range(2)]
    task_geometry.describe({"x_a": "x", "y_b": "y"}, thetas, 3, seed=0)
    assert len(made) >= 6
    assert most == 1


def test_categories_of_ones_own_have_colours_of_their_own():
    shown = ["knowledge", "knowledge_base", "my", "my_cat", "knowledge_base"]
    colours = {name: style.colour_of(name, shown) for name in shown}
    assert len(set(colours.values())) == 4
    assert colours["knowledge"] == style.colour_of("knowledge")
    assert style.colour_of("unheard_of", shown) == style.OTHER_COLOUR


def test_distances_are_summed_up_by_their_mean_and_quantiles() -> None:
    # 0, 1, ... 20: the 5th percentile is the second value, the 95th the last but one.
    found = task_geometry._describe(np.arange(21.0))
    assert found == {"mean": 10.0, "median": 10.0, "p05": 1.0, "p95": 19.0}
    assert task_geometry._describe(np.array([])) is None


def test_the_mean_distance_within_a_task_leaves_out_a_vector_from_itself() -> None:
    block = np.array([[0.0, 2.0], [2.0, 0.0]])
    assert task_geometry._block_mean(block, own=True) == 2.0
    assert task_geometry._block_mean(block, own=False) == 1.0
    assert task_geometry._block_mean(np.zeros((1, 1)), own=True) is None


def test_a_task_that_cannot_be_measured_is_left_out_with_its_reason_and_if_none_can_it_is_an_error(
    tmp_path,
):
    journal = Journal(tmp_path)
    study = Study(None, [], [], Settings(), Settings(), tmp_path, journal)  # type: ignore[arg-type]
    long, short = (Task("own", name, (Pair("a", "b"),) * n) for name, n in (("long", 3), ("x", 2)))

    def measure(task: Task) -> int:
        if len(task.pairs) < 3:
            raise TaskVecError(f"{task.name}: too few pairs")
        return len(task.pairs)

    assert study.each("t", [short, long], measure) == ({"own_long": 3}, ["own_x: too few pairs"])
    assert study.each("t", [], measure) == ({}, [])
    with pytest.raises(TaskVecError, match="t: no task can be measured: own_x: too few pairs"):
        study.each("t", [short], measure)
    journal.close()


def test_few_tasks_are_those_wanted_or_the_first_of_a_category():
    tasks = [Task(c, n, (Pair("a", "b"),)) for c, n in ("xp", "xq", "yp", "yq", "zp")]
    assert [t.name for t in some_of_each(tasks, ["x_q", "y_p", "gone"])] == ["x_q", "y_p", "z_p"]


def test_a_tasks_hash_follows_its_content():
    task = Task("x", "y", (Pair("a", "b"),))
    assert task_sha256(task) == task_sha256(Task("x", "y", (Pair("a", "b"),)))
    assert task_sha256(task) != task_sha256(Task("x", "y", (Pair("a", "c"),)))


def test_tables_line_up_as_text():
    value = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    table = Table(
        "t", ["name", "score"], [[text("long name"), score(value)], [text("x"), number(None)]]
    )
    assert lines(table) == [
        "name                  score",
        "long name  0.50 [0.25–0.75]",
        "x                         –",
    ]
    assert score(value).note == "0.25–0.75, n = 8"


def test_models_are_compared_by_the_share_of_their_depth(tmp_path):
    tasks = {"a": task_scores(0.0, 0.8, 0.9, [0.1, 0.9, 0.2, 0.1])}
    result = {
        "model": "mine",
        "tasks": tasks,
        "num_layers": 4,
        "common_layer": 1,
        "curve_of_good_tasks": main_results.curve_of_good_tasks(tasks),
        "averages_where_icl_gains": main_results.averages_where_icl_gains(tasks),
    }
    (tmp_path / "main_results.json").write_text(json.dumps(result))
    models = compare([tmp_path])["models"]
    assert models["mine"]["peak_layer"] == 1
    assert models["mine"]["curve"] == [0.1, 0.9, 0.2, 0.1]
    assert models["LLaMA 7B (paper)"]["peak_layer"] == 14
    assert len(models) == 8
    with pytest.raises(TaskVecError, match=r"run experiments\.main_results first"):
        compare([tmp_path / "gone"])
