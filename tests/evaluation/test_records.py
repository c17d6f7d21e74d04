"""Results as flat records: every number is there once, in one level, with what it is of."""

from __future__ import annotations

import json

import pytest

from taskvec_jax import load_result
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.records import Result

SHARE = {"accuracy": 0.5, "n": 4}
FILE = {
    "experiment": "main_results",
    "model": "m",
    "dtype": "float32",
    "run": {"model_key": "m", "seed": 3, "num_prompts": 4},
    "settings": {"tasks": ["a", "b"]},
    "provenance": {"seconds": 1},
    "categories": {"a": "letters", "b": "words"},
    "tasks": {
        "a": {
            "icl": SHARE,
            "controls": {"random": SHARE, "none": None},
            "curve_by_layer": [0.1, 0.2, 0.3],
            "examples": [{"query": "x", "said": {"icl": "y"}}],
        },
        "b": {"icl": SHARE, "controls": {"random": None}, "curve_by_layer": [0.4, 0.5, 0.6]},
    },
    "mean": {"icl": 0.5, "curve": [1, 2]},
}


def test_there_is_one_flat_record_for_each_task_with_all_its_numbers():
    first, second = Result(FILE).records()
    assert first == {
        "experiment": "main_results",
        "model": "m",
        "dtype": "float32",
        "seed": 3,
        "num_prompts": 4,
        "task": "a",
        "category": "letters",
        "icl.accuracy": 0.5,
        "icl.n": 4,
        "controls.random.accuracy": 0.5,
        "controls.random.n": 4,
        "controls.none": None,
    }
    assert second["controls.random"] is None


def test_the_items_of_a_list_are_records_numbered_by_layer_where_they_are_layers():
    rows = Result(FILE).records("curve_by_layer")
    assert [(row["task"], row["layer"], row["value"]) for row in rows] == [
        *(("a", layer, value) for layer, value in enumerate((0.1, 0.2, 0.3))),
        *(("b", layer, value) for layer, value in enumerate((0.4, 0.5, 0.6))),
    ]
    (example,) = Result(FILE).records("examples")
    assert (example["task"], example["index"]) == ("a", 0)
    assert (example["query"], example["said.icl"]) == ("x", "y")
    assert [row["value"] for row in Result(FILE).records("mean.curve")] == [1, 2]
    assert Result(FILE).lists() == ["curve_by_layer", "examples", "mean.curve"]
    with pytest.raises(TaskVecError, match=r"no list 'curve'.*curve_by_layer"):
        Result(FILE).records("curve")


def test_results_of_pairs_steps_and_models_have_records_too():
    learned = {"tasks": {"a": {"layers": [4, 7], "learned": [SHARE, SHARE]}}}
    assert [row["layer"] for row in Result(learned).records("learned")] == [4, 7]
    steps = {"steps": [{"step": 10, "icl": 0.1}, {"step": 20, "icl": 0.2}]}
    assert Result(steps).records() == steps["steps"]
    pairs = {"pairs": {"a-b": {"plain": {"a": SHARE}}}}
    (row,) = Result(pairs).records()
    assert (row["pair"], row["plain.a.accuracy"]) == ("a-b", 0.5)
    grid = {"tasks": ["a", "b"], "mean_distance": [[0, 1], [1, 0]], "chance": 0.5}
    assert Result(grid).records() == [{"chance": 0.5}]
    cells = Result(grid).records("mean_distance")
    assert [(c["index"], c["index2"], c["value"]) for c in cells] == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 0),
    ]


def test_a_result_is_read_from_its_file_and_nothing_else_is(tmp_path):
    path = tmp_path / "main_results.json"
    path.write_text(json.dumps(FILE))
    assert load_result(path).records() == Result(FILE).records()
    for text, message in (("{", "cannot be read"), ('{"a": 1}', "no result of an experiment")):
        path.write_text(text)
        with pytest.raises(TaskVecError, match=message):
            load_result(path)
    with pytest.raises(TaskVecError, match="cannot be read"):
        load_result(tmp_path / "none.json")
