"""The whole paper on a tiny model, and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
from in_process import experiment as here
from slow import slow
from tiny_checkpoint import SMALL, run, save_tiny

from experiments.bijections import SOURCES
from experiments.commands.registry import IN_PAPER
from experiments.report import build
from taskvec_jax.models.origin import path_key
from taskvec_jax.tasks import TASKS as ALL_TASKS

TASKS_KNOWN = set(ALL_TASKS)
# Below these, names are of pairs, doses, places, layers or other tasks.
VARIED = (
    *(".pairs", ".demonstrations", ".dummy_queries", ".added", ".averaged_over_prompts"),
    *(".positions", ".others", ".other_tasks", ".versions", ".source", ".categories", ".device"),
)
TASKS = "algorithmic_next_letter,algorithmic_prev_letter"  # two directions: they conflict


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory, tokenizer) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def paper(tmp_path_factory, tiny_path) -> Path:
    """Results of experiments.paper."""
    out = tmp_path_factory.mktemp("paper")
    result = run("paper", f"--model={tiny_path}", f"--tasks={TASKS}", *SMALL, f"--out={out}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "report.html" in result.stdout
    return out


def test_the_paper_writes_every_result_figure_and_the_page(paper, tiny_path):
    for name in (experiment.name for experiment in IN_PAPER):
        result = json.loads(
            (paper / f"{name}.json").read_text(),
            parse_constant=pytest.fail,
        )
        assert result["experiment"] == name
        assert result["provenance"]["command"].startswith("python -m experiments.paper")
        assert result["model"] == str(tiny_path)
        precision = [result[name] for name in ("dtype", "quantization", "revision")]
        assert precision == ["float32", "none", None]
        assert result["weights_sha256"] == "random 0"
        assert result["run"]["seed"] == 0
        assert result["run"]["num_prompts"] == 2
    stems = {path.stem for path in paper.glob("*.png")}
    assert stems == {path.stem for path in paper.glob("*.svg")}
    assert {"main_results", "accuracy_by_layer", "conflicting_tasks", "cross_models_depth"} <= stems
    assert not list(paper.glob(".*"))


def names_in(value: Any, tasks: set[str], at: str = "") -> Iterator[str]:
    """The names that lead to each value of a result; those of tasks, pairs and doses are alike."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            varied = key in tasks or at.endswith(VARIED) or key.split("-")[0] in tasks
            yield from names_in(part, tasks, f"{at}.{'*' if varied else key}")
    elif isinstance(value, list) and value and not isinstance(value[0], int | float | str):
        yield from names_in(value[0], tasks, f"{at}[]")
    elif value is not None:
        yield at


@pytest.mark.parametrize("name", [experiment.name for experiment in IN_PAPER])
def test_the_results_that_pages_are_tested_with_have_the_names_of_real_ones(paper, name):
    real = json.loads((paper / f"{name}.json").read_text())
    made = synthetic.make(name, 4)
    known = {*TASKS_KNOWN, *made["categories"]}
    real_names, made_names = (
        {
            path
            for key in result.keys() - {"data", "vectors", "settings", "run", "published"}
            for path in names_in(result[key], known, f".{key}")
        }
        for result in (real, made)
    )
    # What is None here, such as an interval of two prompts or a mean of no task, has no names.
    absent = {path for path in made_names - real_names if not _is_none(real, path, known)}
    assert absent == set()


def _is_none(value: Any, path: str, tasks: set[str]) -> bool:
    """Whether a real result has nothing, or None, at the place or at one that leads to it."""
    for step in path.replace("[]", ".[]").strip(".").split("."):
        if not value:
            return True  # None, or an empty list
        if step == "[]":
            value = value[0]
        elif step == "*":
            value = next(iter(value.values()))
        elif step not in value:
            return False
        else:
            value = value[step]
    return value is None or value == {} or value == []


def test_main_results_hold_every_control_and_the_published_numbers(paper):
    result = json.loads((paper / "main_results.json").read_text())
    assert list(result["tasks"]) == TASKS.split(",")
    for task in result["tasks"].values():
        assert set(task["controls"]) == {
            "best_constant",
            "copy",
            "last_layer_replay",
            "other_task",
            "nearest_task",
            "zero_demonstrations",
            "mean_theta",
            "random",
            "wrong_labels",
        }
        assert isinstance(task["beats"], bool)
        assert task["verdict"]
        assert task["published"] is None
        assert 0 < task["published_mean_of_7_models"]["task_vector"] <= 1
        assert 0 <= task["wrong_label_share"] <= 1
    assert set(result["common_layer_paper"]) == {"one_layer", "own_layer"}
    assert set(result["mean"]) == {"icl_able", "all"}


@slow  # test_jobs.py does both too
def test_a_result_file_alone_runs_the_same_again_and_two_runs_are_compared(paper, tmp_path):
    """Model, settings and pairs are in the file; every answer is the same, to the byte."""
    first = paper / "main_results.json"
    result = here("main_results", f"--rerun={first}", "--batch_size=4", f"--out={tmp_path}")
    assert result.returncode == 0, result.printed
    one, two = (json.loads((p / "main_results.json").read_text()) for p in (paper, tmp_path))
    for key in ("tasks", "mean", "primary", "data", "run"):
        assert one[key] == two[key]
    result = here("compare", str(first), str(tmp_path / "main_results.json"))
    assert result.returncode == 0, result.printed
    assert "task_vector, mean of 2" in result.printed
    assert "not shown" in result.printed
    refused = here("main_results", f"--rerun={first}", "--seed=1", f"--out={tmp_path / 'x'}")
    assert refused.returncode == 2
    assert "leave out --seed" in refused.printed


def test_the_page_is_rebuilt_from_json_alone(paper, tmp_path):
    before = (paper / "report.html").read_bytes()
    result = here("report", f"--results={paper}", f"--out={tmp_path}")
    assert result.returncode == 0, result.printed
    rebuilt = (tmp_path / "report.html").read_bytes()
    # Without a comparison of models in --out that section is missing; all else is the same.
    section = re.compile(
        rb'<section id="main-results">.*?</section>|<section id="0-main.*?</section>', re.S
    )
    assert section.findall(before) == section.findall(rebuilt) != []
    assert build([paper], paper).encode() == before


@slow  # a whole paper
def test_an_experiment_that_cannot_be_run_is_left_out_and_leaves_nothing_stale(tmp_path, tiny_path):
    """Three thetas are too few for geometry; all else runs."""
    (tmp_path / "task_geometry.json").write_text("{}")
    tasks = "algorithmic_to_upper,algorithmic_to_lower,algorithmic_next_letter"
    flags = (f"--model={tiny_path}", f"--tasks={tasks}", "--num_prompts=1", "--batch_size=4")
    result = run("paper", *flags, f"--out={tmp_path}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "left out: geometry needs at least 4 thetas" in result.stdout
    assert not (tmp_path / "task_geometry.json").exists()
    assert (tmp_path / "portability.json").exists()
    assert "report.html" in result.stdout


@slow
def test_a_second_run_computes_nothing_and_gives_the_same_bytes(paper, tiny_path):
    before = {p.name: p.read_bytes() for p in paper.iterdir() if p.suffix in (".png", ".svg")}
    flags = (f"--model={tiny_path}", f"--tasks={TASKS}", *SMALL, f"--out={paper}")
    result = run("main_results", *flags, PYTHONHASHSEED="5")
    assert result.returncode == 0, result.stderr
    journal = (paper / "journal.jsonl").read_bytes()
    result = run("conflicting_tasks", *flags, PYTHONHASHSEED="6")
    assert result.returncode == 0, result.stderr
    assert (paper / "journal.jsonl").read_bytes() == journal
    assert {name: (paper / name).read_bytes() for name in before} == before


def test_all_pairs_of_tasks_that_share_queries_conflict(tmp_path, tiny_path):
    tasks = (
        "algorithmic_to_upper,algorithmic_next_letter,algorithmic_prev_letter,algorithmic_to_lower"
    )
    flags = (f"--model={tiny_path}", f"--tasks={tasks}", *SMALL, f"--out={tmp_path}")
    result = here("conflicting_tasks", "--all_pairs", *flags)
    assert result.returncode == 0, result.printed
    pairs = json.loads((tmp_path / "conflicting_tasks.json").read_text())["pairs"]
    assert len(pairs) == 6  # lower-case letters three ways; to_lower takes capitals
    for pair in pairs.values():
        assert pair["a"] != pair["b"]
        for name in ("plain", "theta", "random"):
            assert {"a", "b", "neither"} == set(pair[name])
            assert pair[name]["a"]["n"] == 4


@slow  # two whole papers
def test_foreign_task_data_own_tasks_and_several_models_run_everything(
    tmp_path, tiny_path, tokenizer
):
    """The original's layout, category/name.json: {input: output}, or a list of pairs."""
    data = tmp_path / "data"
    words = "red blue green black white brown grey pink gold silver cream orange".split()
    for category, name in (("linguistic", "colours"), ("knowledge", "shades")):
        (data / category).mkdir(parents=True)
        pairs = dict(zip(words, words[1:] + words[:1], strict=True))
        listed = [{"input": word, "output": answer} for word, answer in pairs.items()]
        content = json.dumps(pairs if category == "linguistic" else listed)
        if category == "linguistic":  # an input is there twice, as in the original's files
            content = content.replace("{", '{"red": "never", ', 1)
        (data / category / f"{name}.json").write_text(content)
    own = tmp_path / "own.py"
    own.write_text(
        "from taskvec_jax.tasks import Pair, Task\n"
        "TASKS = [Task('own', 'same', tuple(Pair(c, c) for c in 'abcdefghijklmnop'))]\n"
    )
    other = save_tiny(tmp_path / "tiny2", tokenizer, seed=1)
    result = run(
        "paper",
        f"--model={tiny_path},{other}",
        f"--task_data={data}",
        "--rule=paper",
        f"--task_file={own}",
        "--tasks=linguistic_colours,knowledge_shades,own_same",
        f"--out={tmp_path / 'out'}",
        "--num_prompts=2",
        "--batch_size=4",
    )
    assert result.returncode == 0, result.stdout + result.stderr

    def directory_of(model: Path) -> Path:
        (found,) = (tmp_path / "out").glob(f"{path_key(model)}_float32_num_prompts2_*")
        return found

    for name in (experiment.name for experiment in IN_PAPER):
        for model in (tiny_path, other):
            found = json.loads((directory_of(model) / f"{name}.json").read_text())
            assert {"linguistic_colours", "knowledge_shades", "own_same"} <= set(
                found["settings"]["tasks"]
            )
    # None of the pairs of directions has its task here; every one of them says so.
    notes = json.loads((directory_of(tiny_path) / "bijections.json").read_text())["notes"]
    assert notes == [
        f"{pair} is left out: no task {source} in this run" for pair, source in SOURCES.items()
    ]
    assert notes[-1] == "copy is left out: no task linguistic_antonyms in this run"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "tiny2" in page
    models = json.loads((tmp_path / "out" / "cross_models.json").read_text())["models"]
    assert sum(model["ours"] for model in models.values()) == 2
