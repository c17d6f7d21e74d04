"""The registry: an experiment is one file and one line."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest

from experiments.commands.registry import EXPERIMENTS, IN_PAPER, Experiment
from experiments.report import NAMES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_registered_experiment_runs_from_python_and_is_shown(name):
    experiment = EXPERIMENTS[name]
    assert name == experiment.module.NAME
    assert callable(experiment.module.run)
    assert callable(experiment.page.section)
    assert callable(experiment.page.draw_figures)
    if experiment.options is not None:
        assert dataclasses.is_dataclass(experiment.options())


def test_the_paper_begins_with_the_main_results():
    assert IN_PAPER[0].name == "main_results"


def test_what_the_paper_runs_is_on_the_page_and_so_are_slower_experiments():
    assert {experiment.name for experiment in IN_PAPER} < set(NAMES)
    slow = {"function_vectors", "learned_task_vector", "head_ablation", "positions", "emergence"}
    assert slow < set(NAMES)


def test_an_experiment_without_a_page_is_shown_by_its_numbers(monkeypatch):
    monkeypatch.setitem(sys.modules, "experiments.mine", types.ModuleType("experiments.mine"))
    page = Experiment("mine").page
    result = {"experiment": "mine", "settings": {"seed": 3}, "tasks": {"a": {"score": 0.25}}}
    rows = page.section(result).tables[0].rows
    assert [[cell.text for cell in row] for row in rows] == [["tasks.a.score", "0.25"]]
    assert page.draw_figures(result) == {}
