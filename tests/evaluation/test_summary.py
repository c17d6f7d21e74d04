"""What a run says over its tasks, on columns whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from taskvec_jax.evaluation.intervals import means, share_of_gain
from taskvec_jax.evaluation.statistics import icl_able
from taskvec_jax.evaluation.summary import CARRIES, NOT_SHOWN, outcomes, summarise

CONTROLS = ("baseline", "best_constant", "other_task")
N = 50


def task(
    seed: int, able: bool = True, curve: tuple[float, ...] = (0.1, 0.9), **shares: float
) -> Any:
    """A task whose columns are right on these shares of its prompts, at random places."""
    rng = np.random.RandomState(seed)
    columns = {}
    for name, share in shares.items():
        right = np.zeros(N, int)
        right[rng.permutation(N)[: round(share * N)]] = 1
        columns[name] = {
            "correct": right.tolist(),
            "correct_full": right.tolist(),
            "correct_paper": right.tolist(),
        }
    return {
        "rule": "full",
        "icl_able": able,
        "dev_accuracy_by_layer": list(curve),
        "outcomes": {"queries": [f"q{i}" for i in range(N)], **columns},
    }


def run(tasks: dict[str, Any]) -> dict[str, Any]:
    return summarise(tasks, CONTROLS, seed=0)


def test_a_vector_that_carries_the_task_perfectly_gets_that_verdict():
    shares: dict[str, Any] = {"icl": 1.0, "task_vector": 1.0, "baseline": 0.1, "best_constant": 0.2}
    tasks = {f"t{i}": task(i, other_task=0.05, wrong_labels=0.3, **shares) for i in range(6)}
    found = run(tasks)
    assert found["primary"]["verdict"] == CARRIES
    assert found["primary"]["control"] == "best_constant"
    assert found["primary"]["difference"]["accuracy"] == pytest.approx(0.8)
    assert all(v["beats"] and v["verdict"] == CARRIES for v in found["verdicts"].values())
    assert found["share_of_icl_gain"]["icl_able"]["value"] == pytest.approx(1.0)
    assert found["pairing_share"]["value"] == pytest.approx(0.7 / 0.9)
    assert found["given_icl"]["right"]["value"] == 1.0
    assert found["given_icl"]["wrong"] is None  # there are no such prompts


def test_a_learner_that_ignores_labels_has_a_pairing_share_near_0():
    """Right whatever the labels say: theta from wrong labels answers as theta does."""
    tasks = {}
    for i in range(6):
        tasks[f"t{i}"] = task(
            i,
            icl=1.0,
            task_vector=0.96,
            baseline=0.0,
            best_constant=0.1,
            other_task=0.0,
            wrong_labels=0.96,
        )
    share = run(tasks)["pairing_share"]
    assert abs(share["value"]) < 0.05
    assert share["low"] < 0 < share["high"]
    # It does carry the task all the same.
    assert run(tasks)["primary"]["verdict"] == CARRIES


def test_a_vector_that_is_no_better_than_a_constant_is_not_shown_to_carry_the_task():
    shares: dict[str, Any] = {
        "icl": 0.9,
        "task_vector": 0.45,
        "baseline": 0.1,
        "best_constant": 0.45,
    }
    found = run({f"t{i}": task(i, other_task=0.0, wrong_labels=0.2, **shares) for i in range(6)})
    assert found["primary"]["verdict"] == NOT_SHOWN
    assert not any(v["beats"] for v in found["verdicts"].values())
    assert {v["hardest"] for v in found["verdicts"].values()} == {"best_constant"}


def test_one_control_that_is_not_beaten_is_enough_though_another_has_the_higher_mean():
    """The strongest control by mean is beaten; a weaker one is not told from the vector by a
    paired test, so the p-value of the run is that one's."""
    tasks = {}
    for i in range(3):
        tasks[f"t{i}"] = task(
            i, icl=1.0, task_vector=0.5, baseline=0.0, best_constant=0.0, other_task=0.5
        )
    found = run(tasks)
    assert found["primary"]["p"] == 1.0
    assert found["primary"]["verdict"] == NOT_SHOWN


def test_tasks_that_icl_does_stand_apart_and_none_of_them_is_no_comparison():
    shares: dict[str, Any] = {"icl": 0.9, "task_vector": 0.8, "baseline": 0.1, "best_constant": 0.1}
    tasks = {
        "able": task(0, other_task=0.0, **shares),
        "not": task(
            1, False, icl=0.1, task_vector=0.0, baseline=0.1, best_constant=0.3, other_task=0.0
        ),
    }
    found = run(tasks)
    assert found["groups"] == {"icl_able": ["able"], "all": ["able", "not"]}
    assert found["mean"]["icl_able"]["task_vector"]["accuracy"] == 0.8
    assert found["mean"]["icl_able"]["task_vector"]["low"] is None  # a single task
    assert found["mean"]["all"]["task_vector"]["accuracy"] == 0.4
    assert found["primary"]["num_tasks"] == 1
    assert found["pairing_share"] is None  # nothing was run with wrong labels
    none = run({"not": tasks["not"]})
    assert none["primary"] is none["given_icl"] is none["mean"]["icl_able"] is None


def test_the_summary_agrees_with_the_functions_it_is_made_of():
    tasks = {
        f"t{i}": task(
            i,
            icl=0.8,
            task_vector=0.6,
            baseline=0.1,
            best_constant=0.2,
            other_task=0.1,
            wrong_labels=0.3,
            curve=(0.1, 0.5 + i / 10, 0.6),
        )
        for i in range(4)
    }
    found, some = run(tasks), outcomes(tasks, list(tasks))
    assert found["mean"]["all"]["icl"] == means(some, ["icl"])["icl"]._asdict()
    share = share_of_gain(some, "task_vector", "wrong_labels", "baseline")
    assert share is not None
    assert found["pairing_share"] == share._asdict()
    gain = found["share_of_icl_gain"]["all"]
    assert gain["value"] == pytest.approx((0.6 - 0.1) / (0.8 - 0.1))
    assert gain["low"] < gain["value"] < gain["high"]
    assert found["peak"]["layer"] == 1
    assert icl_able([1] * 5, [0] * 5)
