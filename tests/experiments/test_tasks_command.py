"""experiments.tasks: the list, a file's problems, what the tokenizer keeps."""

from __future__ import annotations

import pytest
from tiny_checkpoint import run


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"category": "own", "name": "x",\n "pairs": {"cat": "dog",\n "sun": "moon"}}')
    return path


def test_tasks_are_listed_with_what_the_tokenizer_keeps(default_model, own):
    result = run("tasks", f"--task_file={own}")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["algorithmic_to_upper"][1:3] == ["26", "26"]
    assert rows["own_x"][1:3] == ["2", "2"]
    assert f"{own}: fine; own_x (2 pairs)" in result.stdout
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
