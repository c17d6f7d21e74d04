"""Results of two runs are never taken for those of one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from test_experiments import task_scores

from experiments import main_results
from experiments.cross_models import compare
from experiments.page.cross_models import section
from experiments.report import build
from experiments.run import identity
from experiments.run.results import write_json
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings

RUN: dict[str, Any] = {
    "model": "pythia-70m",
    "revision": None,
    "dtype": "float32",
    "quantization": "none",
    "matmul_precision": "highest",
    "weights_sha256": "1" * 64,
    "model_key": "pythia-70m",
    **identity.of_settings(Settings(), 4),
}
OTHER: dict[str, dict[str, Any]] = {  # what a run may differ in -> how it then says so
    "model": {"model": "pythia-160m", "model_key": "pythia-160m", "weights_sha256": "2" * 64},
    "revision": {
        "revision": "step1000",
        "model_key": "pythia-70m@step1000",
        "weights_sha256": "2" * 64,
    },
    "dtype": {"dtype": "bfloat16"},
    "quantization": {"quantization": "int8"},
    "matmul_precision": {"matmul_precision": "default"},
    "weights_sha256": {"weights_sha256": "2" * 64},
    "seed": {"seed": 7},
    "num_prompts": {"num_prompts": 8},
    "num_demonstrations": {"num_demonstrations": 3},
    "num_dummy_queries": {"num_dummy_queries": 3},
    "short_num_demonstrations": {"short_num_demonstrations": 5},
    "task_data": {"task_data": "/data"},
    "task_file": {"task_file": "/own.py"},
}
LAYERS = [0.1, 0.9, 0.2, 0.1]


def result_of(run: dict[str, Any], experiment: str = "main_results") -> dict[str, Any]:
    """A result file, as far as it is read here."""
    tasks = {"a_b": task_scores(0.0, 0.8, 0.9, LAYERS)}
    settings = {k: v for k, v in run.items() if k not in identity.OF_MODEL}
    return {
        "experiment": experiment,
        **{key: run[key] for key in identity.OF_MODEL},
        "run": settings,
        "provenance": {"tokenizer_sha256": "3" * 64},
        "settings": settings,
        "tasks": tasks,
        "num_layers": 4,
        "common_layer": 1,
        "curve_of_good_tasks": main_results.curve_of_good_tasks(tasks),
        "averages_where_icl_gains": main_results.averages_where_icl_gains(tasks),
    }


def write(directory: Path, run: dict[str, Any], experiment: str = "main_results") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / f"{experiment}.json").write_text(json.dumps(result_of(run, experiment)))
    return directory


def test_a_result_file_gives_back_the_run_it_is_of() -> None:
    assert identity.read(result_of(RUN)) == {**RUN, "tokenizer_sha256": "3" * 64}


def test_a_file_of_an_earlier_version_says_what_it_knows() -> None:
    about = {"dtype": "bfloat16", "weights": "whole", "seed": 1, "weights_sha256": "2" * 64}
    found = identity.read({"model": "pythia-70m", "provenance": about})
    assert found == {
        "model": "pythia-70m",
        "dtype": "bfloat16",
        "quantization": "none",
        "seed": 1,
        "weights_sha256": "2" * 64,
    }
    assert identity.differences(RUN, found) == ["dtype", "weights_sha256", "seed"]


@pytest.mark.parametrize("name", OTHER)
def test_runs_that_differ_in_anything_are_told_apart(name: str, tmp_path: Path) -> None:
    other = {**RUN, **OTHER[name]}
    assert identity.differences(RUN, copy.deepcopy(RUN)) == []
    assert identity.differences(RUN, other) == identity.differences(other, RUN) != []
    first, second = write(tmp_path / "first", RUN), write(tmp_path / "second", other)
    found = compare([first, second])
    ours = [label for label, model in found["models"].items() if model["ours"]]
    assert len(ours) == 2  # a row each
    assert identity.say(name, other) in ours[1]
    assert identity.say(name, other) not in ours[0]
    shown = {row[0].text for row in section(found).tables[0].rows}
    assert len([label for label in shown if label.endswith(" (this run)")]) == 2, "told apart"
    # Neither of them may lie beside the other.
    with pytest.raises(TaskVecError, match=r"main_results\.json is of another run \(.*--out"):
        identity.check_directory(first, other)
    identity.check_directory(first, RUN)
    write(first, other, "task_geometry")
    with pytest.raises(
        TaskVecError, match=r"main_results\.json and task_geometry\.json are of two"
    ):
        build([first])


@pytest.mark.parametrize("name", [n for n in OTHER if n != "weights_sha256"])
def test_the_default_directory_is_named_after_all_that_the_flags_say(name: str) -> None:
    defaults = identity.of_settings(Settings(), 4)
    plain = identity.directory_name(RUN, defaults)
    assert plain == "pythia-70m_float32"
    other = identity.directory_name({**RUN, **OTHER[name]}, defaults)
    assert other != plain
    assert "/" not in other


def test_only_what_differs_is_in_a_label() -> None:
    runs = [RUN, {**RUN, "seed": 1}, {**RUN, "seed": 1, "dtype": "bfloat16"}]
    places = [Path("a"), Path("b"), Path("c")]
    assert identity.labels(runs, places) == [
        "pythia-70m, float32, seed 0",
        "pythia-70m, float32, seed 1",
        "pythia-70m, bfloat16, seed 1",
    ]
    assert identity.labels(runs[:1], places[:1]) == ["pythia-70m"]
    assert identity.labels([RUN, RUN], places[:2]) == ["pythia-70m (a)", "pythia-70m (b)"]


def test_runs_of_two_models_with_other_settings_say_their_settings() -> None:
    other = {**RUN, **OTHER["model"], "num_prompts": 5}
    assert identity.labels([RUN, other], [Path("a"), Path("b")]) == [
        "pythia-70m, num_prompts 50",
        "pythia-160m, num_prompts 5",
    ]


def test_one_path_written_in_two_ways_is_one_run() -> None:
    key = {"model_key": "model-12345678"}
    one, other = {**RUN, "model": "/a/model", **key}, {**RUN, "model": "../a/model", **key}
    assert identity.differences(one, other) == []
    moved = {**one, "model_key": "model-87654321"}
    assert identity.differences(one, moved) == ["model"]


def test_a_directory_is_compared_once(tmp_path: Path) -> None:
    first = write(tmp_path / "first", RUN)
    with pytest.raises(TaskVecError, match="is named twice"):
        compare([first, tmp_path / "." / "first"])


def test_files_that_are_no_results_do_not_stand_in_the_way(tmp_path: Path) -> None:
    write(tmp_path, RUN)
    (tmp_path / "notes.json").write_text("[1]")
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "cross_models.json").write_text(json.dumps(compare([tmp_path])))
    assert set(identity.results_in(tmp_path)) == {"main_results.json"}
    identity.check_directory(tmp_path, RUN)


def test_what_replaces_a_result_of_other_tasks_says_so(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "main_results.json"
    for tasks, said in ((["a"], ""), (["a"], ""), (["a", "b"], "replaces a result of other tasks")):
        write_json(path, {"settings": {"tasks": tasks, "batch_size": len(said)}})
        assert said in (printed := capsys.readouterr().out)
        assert bool(printed) == bool(said)
        assert json.loads(path.read_text())["settings"]["tasks"] == tasks
