"""Published claims: what the file holds, how verdicts are reached, and a run from end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from slow import slow

from experiments import claims
from experiments.page import claims as page
from experiments.published import published
from experiments.published.claims import FILE, LAYER_RULES, OURS, Claim, claims_about, read_claims
from experiments.run.journal import Journal
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.protocol import Settings
from taskvec_jax.evaluation.statistics import Interval, Outcomes
from taskvec_jax.tasks import TASKS

TASK = "algorithmic_to_upper"
MADE = {
    "paper": "made up",
    "where": "a test",
    "model": "smollm2-135m-instruct",
    "their_model": "SmolLM2",
    "quantity": "baseline",
    "value": 0.0,
    "n": 1000,
    "tasks": [TASK],
    "pairs": OURS,
    "layer_rule": "none",
}


def claim(**changes) -> Claim:
    return Claim(**{**MADE, **changes})


def test_the_file_holds_every_paper_and_names_only_tasks_there_are():
    found = read_claims()
    counts = {
        paper: len({c.their_model for c in found if c.paper == paper})
        for paper in ("2310.15916", "2504.04635", "2310.15213", "2506.09048", "2605.04061")
    }
    assert counts == {
        "2310.15916": 7,
        "2504.04635": 29,
        "2310.15213": 2,
        "2506.09048": 3,
        "2605.04061": 1,
    }
    for one in found:
        assert set(one.tasks) <= set(TASKS), one
        assert one.layer_rule in LAYER_RULES
        assert one.quantity in claims.OWN or claims.experiment_of(one.quantity), one.quantity


def test_the_papers_own_means_are_those_of_its_table():
    (vector,) = [c for c in claims_about("pythia-2.8b") if c.quantity == "task_vector"]
    table = published()["main"]["Pythia 2.8B"]
    assert vector.value == pytest.approx(
        sum(table[task]["task_vector"] for task in vector.tasks) / 18, abs=1e-4
    )


def test_a_model_is_found_by_letters_and_digits_and_its_rivals_stand_together():
    about = claims_about("checkpoints/Pythia-6.9B")
    assert {c.paper for c in about} == {"2310.15916", "2504.04635"}
    rules = {c.paper: c.layer_rule for c in about if c.quantity == "task_vector"}
    assert rules == {"2310.15916": "dev", "2504.04635": "best_on_test"}
    assert claims_about("pythia-6.9b-deduped") == []


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((0.50, 0.45, 0.55), (0.52, 0.47, 0.57), "agrees"),
        ((0.50, 0.45, 0.55), (0.80, 0.75, 0.85), "disagrees"),
        ((0.50, 0.30, 0.70), (0.52, 0.47, 0.57), "undecided"),
        ((0.90, 0.70, 0.95), (0.30, 0.10, 0.50), "disagrees"),
    ],
)
def test_a_verdict_follows_from_the_interval_of_the_difference(ours, theirs, said):
    found = claims.interval_of_difference(Interval(*ours), Interval(*theirs))
    assert claims.verdict(found) == said
    assert found.value == pytest.approx(ours[0] - theirs[0])


def test_the_interval_of_a_difference_is_newcombes():
    """56 of 70 against 48 of 80: .2, .0524 to .3339 (Newcombe 1998, method 10, example a)."""
    found = claims.interval_of_difference(claims.wilson(56, 70), claims.wilson(48, 80))
    assert [round(x, 4) for x in found] == [0.2, 0.0524, 0.3339]


def test_answers_that_are_all_alike_still_have_an_interval():
    found = claims.ours_of([Outcomes(list(range(20)), {"value": [0] * 20})], seed=0)
    assert (found["value"], found["low"]) == (0.0, 0.0)
    assert found["high"] == pytest.approx(claims.wilson(0, 20).high)


def test_layers_follow_the_rule_of_the_claim():
    found = {
        "task_vector": [[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]],
        "icl": [1, 1, 1],
        "dev_layer": 2,
    }

    def answers(**changes) -> list[int]:
        return claims.column(claim(quantity="task_vector", **changes), found)

    assert answers(layer_rule="dev") == [0, 0, 1]
    assert answers(layer_rule="best_on_test") == [1, 1, 1]
    assert answers(layer_rule="third") == [1, 1, 0]
    assert answers(layer_rule="fixed", layer=0) == [1, 0, 0]
    assert claims.column(claim(quantity="icl"), found) == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 1.5}, "value is 1.5; allowed: 0 to 1"),
        ({"n": 0}, "n is 0; allowed: a whole number"),
        ({"layer_rule": "mine"}, "layer_rule is 'mine'; allowed: none, dev"),
        ({"layer_rule": "fixed"}, "'fixed' and layer belong together"),
        ({"tasks": []}, "there are no tasks"),
        ({"colour": "red"}, "unknown fields colour"),
    ],
)
def test_a_claim_that_cannot_be_meant_is_refused(changes, message, tmp_path):
    path = tmp_path / "claims.json"
    path.write_text(json.dumps([{**MADE, **changes}]))
    with pytest.raises(TaskVecError, match=message):
        read_claims(path)


def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path):
    path = tmp_path / "claims.json"
    for text, message in (("{", "no claims can be read"), ("{}", "a list of objects")):
        path.write_text(text)
        with pytest.raises(TaskVecError, match=message):
            read_claims(path)
        read_claims.cache_clear()
    path.write_text(json.dumps([{"paper": "x"}]))
    with pytest.raises(TaskVecError, match=r"claim 1: .*missing"):
        read_claims(path)
    assert FILE.is_file()


@slow  # runs the default model
def test_claims_made_for_the_default_model_are_run_from_end_to_end(default_model, tmp_path):
    made = [
        MADE,
        {**MADE, "value": 1.0},
        {**MADE, "quantity": "icl", "value": 0.5, "n": 3},
        {**MADE, "quantity": "task_vector", "layer_rule": "best_on_test", "value": 0.0, "n": 100},
        {**MADE, "pairs": "a paper", "n": None},
        {**MADE, "model": "another"},
        {**MADE, "other_tasks": ["theirs"], "tasks": []},
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(made))
    settings = Settings(num_prompts=3, batch_size=3)
    tasks = [TASKS[TASK]]
    study = Study(default_model, tasks, tasks, settings, settings, tmp_path, Journal(tmp_path))
    result = claims.run(study, claims.Options(claims_file=str(path)))
    result = json.loads(json.dumps(result, allow_nan=False))
    zero, one, icl, vector, other, theirs = result["claims"]
    assert zero["ours"]["value"] in (0, 1 / 3, 2 / 3, 1)
    assert (zero["num_tasks"], zero["reasons"]) == (1, [])
    assert zero["ours"] == one["ours"]
    assert one["difference"]["value"] == pytest.approx(zero["ours"]["value"] - 1)
    for value in (zero, one, icl, vector):
        difference = Interval(**value["difference"])
        assert value["verdict"] == claims.verdict(difference)
    assert icl["verdict"] in ("undecided", "disagrees")  # 3 answers of each do not agree
    assert other["verdict"] == theirs["verdict"] == "not comparable"
    assert other["ours"] == zero["ours"]
    assert len(other["reasons"]) == 2
    assert theirs["ours"] is None
    shown = page.section(result)
    assert len(shown.tables[0].rows) == 6
    assert "6 published claims about smollm2-135m-instruct" in shown.words[0]
    nameless = dataclasses.replace(study, model=dataclasses.replace(default_model, name="own"))
    with pytest.raises(TaskVecError, match="no claim is about"):
        claims.run(nameless, claims.Options(claims_file=str(path)))


def test_claims_are_data_of_the_package():
    assert FILE.parent == Path(claims.__file__).parent / "published"
