"""The paper as long work: in which order, what is written when, and what is said meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convert import cli
from experiments import paper
from experiments.commands.registry import IN_PAPER
from experiments.run.journal import GOES_ON, Journal
from taskvec_jax.distributed.plan import parameter_count
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import SMALL_MODEL


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What `run_model` did on a study that computes nothing, in order."""
    deeds: list[str] = []
    journal = Journal(tmp_path)
    study = SimpleNamespace(journal=journal, out=tmp_path, overall=None)
    monkeypatch.setattr(paper, "study_from_flags", lambda **how: study)
    monkeypatch.setattr(paper, "FLAGS", SimpleNamespace(model=SMALL_MODEL, revision=None))

    def finish(study: Any, experiment: Any) -> None:
        deeds.append(f"{study.overall.place} {experiment.name}")
        journal.computed += 1

    def write(directories: Any, out: Path, cross: Path, without: list[str]) -> Path:
        ran = {deed.split()[-1] for deed in deeds}
        assert without == [one.name for one in IN_PAPER if one.name not in ran]
        deeds.append("page")
        return out / "report.html"

    monkeypatch.setattr(paper, "finish", finish)
    monkeypatch.setattr(paper.cross_models, "write", lambda directories, out: deeds.append("rows"))
    monkeypatch.setattr(paper.report, "write", write)
    return deeds


def test_the_main_results_come_first_and_the_page_is_written_after_each(done, tmp_path, capsys):
    paper.run_model(tmp_path, paper.overall_of([SMALL_MODEL]))
    count = len(IN_PAPER)
    names = [experiment.name for experiment in IN_PAPER]
    assert names[0] == "main_results"
    # The comparison with published models reads the main results alone.
    want = [[f"{i} of {count} {name}", "page"] for i, name in enumerate(names, start=1)]
    want[0].insert(1, "rows")
    assert done == [deed for deeds in want for deed in deeds]
    printed = capsys.readouterr().out
    assert f"experiment 1 of {count}: main_results on {SMALL_MODEL}" in printed
    assert f"experiment {count} of {count}: {names[-1]} on {SMALL_MODEL}" in printed
    assert f"{count} units were computed" in printed


def test_a_stopped_paper_leaves_the_page_of_what_is_done(done, tmp_path, monkeypatch):
    finish = paper.finish

    def stopped(study: Any, experiment: Any) -> None:
        if len(done) >= 6:
            raise KeyboardInterrupt
        finish(study, experiment)

    monkeypatch.setattr(paper, "finish", stopped)
    with pytest.raises(KeyboardInterrupt, match=GOES_ON):
        paper.run_model(tmp_path, paper.overall_of([SMALL_MODEL]))
    assert done[-1] == "page"
    Journal(tmp_path).close()  # nobody holds it


def test_several_models_are_one_piece_of_work_that_goes_by_their_sizes(monkeypatch):
    monkeypatch.setattr(paper, "FLAGS", SimpleNamespace(revision=None))
    overall = paper.overall_of([SMALL_MODEL, "pythia-70m"])
    assert len(overall.costs) == 2 * len(IN_PAPER)
    small, large = (parameter_count(describe(m)[1]) for m in (SMALL_MODEL, "pythia-70m"))
    costs = list(overall.costs.values())
    assert costs[0] / small == pytest.approx(costs[len(IN_PAPER)] / large)
    assert costs[0] / costs[1] == pytest.approx(IN_PAPER[0].minutes / IN_PAPER[1].minutes)


@pytest.mark.parametrize(
    ("raised", "said"),
    [(KeyboardInterrupt(GOES_ON), f"stopped; {GOES_ON}\n"), (KeyboardInterrupt(), "stopped\n")],
)
def test_who_stops_a_run_is_told_that_the_same_command_goes_on(monkeypatch, capsys, raised, said):
    """Of work that has a journal; the status is that of an interrupted command."""

    def main() -> None:
        raise raised

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 130
    assert capsys.readouterr().out == said


def test_every_experiment_of_the_paper_has_a_cost():
    assert all(experiment.minutes > 0 for experiment in IN_PAPER)
