"""Two runs compared prompt by prompt, several seeds side by side, and records that read back."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from experiments.commands import seeds
from experiments.compare import compare_runs, paired, section
from experiments.page.section import lines
from experiments.run.rerun import task_of, task_record
from taskvec_jax.errors import TaskVecError
from taskvec_jax.tasks import TASKS, Pair, Task


def result(
    right: list[int], queries: list[str] | None = None, rule: str = "full"
) -> dict[str, Any]:
    """A result of one task, as far as it is read here."""
    column = {"correct": right, "correct_paper": right, "correct_full": right}
    asked = queries or [f"q{i}" for i in range(len(right))]
    outcomes = {"queries": asked, "answers": [], "prompts": [], "icl": column}
    return {
        "model": "m",
        "run": {"seed": 0},
        "tasks": {"a_b": {"rule": rule, "outcomes": outcomes}},
    }


def test_prompts_of_two_runs_are_paired_by_their_query():
    one = result([1, 0, 1, 1], ["x", "y", "x", "z"])["tasks"]["a_b"]["outcomes"]
    two = result([0, 1, 1], [" y", "x", "w"])["tasks"]["a_b"]["outcomes"]
    found = paired(one, two, "icl")
    assert found is not None
    # x is asked twice in one run and once in the other: the first time counts.
    assert list(found.queries) == ["x", "y"]
    assert found.correct == {"first": [1, 0], "second": [1, 0]}
    assert paired(one, two, "task_vector") is None
    assert paired(one, result([1], ["v"])["tasks"]["a_b"]["outcomes"], "icl") is None


def test_a_difference_of_two_runs_is_tested_on_pairs():
    # 9 prompts turn right and none turns wrong: exact, 2 / 2^9.
    found = compare_runs(
        result([1] * 16 + [0] * 34), result([1] * 25 + [0] * 25), ["icl", "baseline"]
    )
    assert list(found["columns"]) == ["icl"]
    icl = found["columns"]["icl"]
    assert icl["difference"]["accuracy"] == pytest.approx(0.18)
    assert icl["p"] == icl["tasks"]["a_b"]["p"] == 2 / 2**9
    assert icl["decision"] == "above"
    table = lines(section(found, ["one", "other"]).tables[0])
    assert table[1].startswith("icl, mean of 1")
    assert "+0.18" in table[1]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(TaskVecError, match="of two rules"):
        compare_runs(result([1]), result([1], rule="paper"), ["icl"])
    with pytest.raises(TaskVecError, match="nothing to compare: the two results share 1 tasks"):
        compare_runs(result([1]), result([1]), ["task_vector"])


def test_means_of_several_seeds_stand_side_by_side():
    def of_seed(value: float, able: bool = True) -> dict[str, Any]:
        mean = {"icl": {"accuracy": value, "low": 0.1, "high": 0.9}}
        return {
            "experiment": "main_results",
            "mean": {"icl_able": mean if able else None, "all": mean},
        }

    found = seeds.together({0: of_seed(0.5), 1: of_seed(0.7), 7: of_seed(0.3, able=False)})
    assert found["of"] == "main_results"
    assert list(found["seeds"]) == ["0", "1", "7"]
    assert found["over_seeds"]["all"]["icl"] == {
        "mean": pytest.approx(0.5),
        "lowest": 0.3,
        "highest": 0.7,
    }
    assert found["over_seeds"]["icl_able"]["icl"]["mean"] == pytest.approx(0.6)
    rows = [[cell.text for cell in row] for row in seeds.table(found).rows]
    assert rows[0][3] == "–"  # seed 7 has no task that ICL does


def test_a_task_is_read_back_from_its_record():
    own = Task("own", "x", (Pair("a", "b", ("c",)), Pair("d", "e")), related=("own_y",))
    for task in (*TASKS.values(), own):
        assert task_of(copy.deepcopy(task_record(task))) == task
