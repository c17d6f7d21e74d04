"""experiments.tasks: the list, a file's problems, what the tokenizer keeps."""

from __future__ import annotations

import itertools
import re

import pytest
from in_process import experiment as run

from experiments.examples.template import write_template
from taskvec_jax.errors import TaskVecError
from taskvec_jax.tasks import select
from taskvec_jax.tasks.task_file import check_own_tasks


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"category": "own", "name": "x",\n "pairs": {"cat": "dog",\n "sun": "moon"}}')
    return path


def test_tasks_are_listed_with_what_the_tokenizer_keeps(default_model):
    result = run("tasks")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["algorithmic_to_upper"][1:3] == ["26", "26"]
    assert "translation_en_es: the tokenizer leaves 39 of 750 pairs" in result.stdout


def test_a_tasks_pairs_are_shown_token_by_token(default_model, own):
    result = run("tasks", f"--task_file={own}", "--show=own_x")
    assert result.returncode == 0, result.stderr
    assert "example|:| cat|->  →   dog" in result.stdout
    assert "own_x: 2 of 2 pairs are kept" in result.stdout


def test_every_problem_of_a_file_is_printed_with_its_line(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{"category": "own", "name": "x",\n "pairs": {"cat": "",\n "sun": 7}}')
    result = run("tasks", f"--task_file={path}")
    assert result.returncode == 2
    assert f"{path}:2: pair 1: '' must be a string" in result.stdout
    assert "pair 2: 7 must be a string" in result.stdout
    assert result.stderr.strip() == f"error: {path} has 2 problems"


def test_a_file_is_told_what_is_kept_why_the_rest_is_not_and_how_to_run_it(tmp_path, default_model):
    path = tmp_path / "animals.csv"
    words = "cat dog sun moon hot cold up down big small old young".split()
    rows = [f"{a},{b}\n" for a, b in itertools.pairwise(words)]
    path.write_text("".join(rows) + "x,New York\n")
    result = run("tasks", str(path), "--template=qa")
    assert result.returncode == 0, result.stderr
    assert f"{path}: fine; own_animals (12 pairs)" in result.stdout
    assert "1 pair left out: the answer is not one token; such as Q|:| x|\n|A|:  →   New| York" in (
        result.stdout
    )
    assert "11 pairs are few: prompts repeat each other" in result.stdout
    line = f"python -m experiments.layer_sweep --task_file={path} --tasks=own_animals --template=qa"
    assert f"to run it: {line}\n" in result.stdout


def test_a_file_with_too_little_left_is_told_the_way_out(tmp_path, default_model):
    path = tmp_path / "cities.json"
    path.write_text('{"a": "New York", "b": "Los Angeles"}')
    result = run("tasks", str(path))
    assert result.returncode == 0, result.stderr
    assert "needs 8 different pairs, and 0 are kept" in result.stdout
    assert "answers of several tokens are kept with --filter=none" in result.stdout
    assert "to run it" not in result.stdout
    assert "0 are kept" not in run("tasks", str(path), "--filter=none").stdout
    shown = run("tasks", str(path), "--show=own_cities")
    assert "left out  example|:|a|->  →  New| York  (the answer is not one token)" in shown.stdout


def test_a_file_to_begin_with_is_written_and_says_what_comes_next(tmp_path):
    path = tmp_path / "my tasks.csv"
    made = run("tasks", f"--new={path}")
    assert made.returncode == 0, made.stderr
    assert made.stdout == (
        f"wrote {path}; put your pairs into it, then: python -m experiments.tasks '{path}'\n"
    )
    assert "--tasks=own_my_tasks" in path.read_text()


@pytest.mark.parametrize(
    ("name", "tasks"), [("mine.csv", ["own_mine"]), ("m.py", ["own_past_tense", "own_reversed"])]
)
def test_a_file_to_begin_with_has_comments_and_tasks_that_can_be_run(tmp_path, name, tasks):
    path = tmp_path / name
    write_template(path)
    found, problems = check_own_tasks(path)
    assert (problems, [task.name for task in found]) == ([], tasks)
    assert all(len(task.pairs) >= 8 for task in found), "enough for a prompt"
    text = path.read_text()
    assert "--filter=none" in text
    assert f"python -m experiments.tasks {path}\n" in text
    (asked,) = re.findall(r"--tasks=(\S+)\n", text)
    assert [task.name for task in select(asked.split(","), None, path)] == tasks
    with pytest.raises(TaskVecError, match="is there already; choose another name"):
        write_template(path)
    assert path.read_text() == text


def test_a_file_to_begin_with_is_of_a_kind_that_has_comments(tmp_path):
    with pytest.raises(TaskVecError, match=r"ends in '\.json'; allowed: \.csv, \.py \(JSON has no"):
        write_template(tmp_path / "x.json")
    with pytest.raises(TaskVecError, match=r"cannot be written \(.*No such file"):
        write_template(tmp_path / "gone" / "x.csv")
