"""What a run says over its tasks: means, the primary comparison, verdicts, ratios. From the record
of outcomes alone, so that a result file can be summed up again without a model.

A task in these functions is what `TaskResult.to_dict` or `ControlledResult.to_dict` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvec_jax.evaluation.columns import outcomes_of
from taskvec_jax.evaluation.intervals import (
    given,
    mean_difference,
    means,
    peak_layer,
    share_of_gain,
)
from taskvec_jax.evaluation.statistics import (
    Interval,
    Outcomes,
    beats_all,
    compare,
    decide,
)

Task = Mapping[str, Any]
VECTOR = "task_vector"
CARRIES, NOT_SHOWN = "carries the task", "not shown to carry the task"


def groups(tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """Names of the tasks that in-context learning does, by the dev prompts, and of all."""
    return {
        "icl_able": [name for name, task in tasks.items() if task["icl_able"]],
        "all": list(tasks),
    }


def outcomes(
    tasks: Mapping[str, Task], names: Sequence[str], key: str = "correct"
) -> list[Outcomes]:
    """The outcomes of some tasks (see `columns.outcomes_of`)."""
    return [outcomes_of(tasks[name]["outcomes"], key) for name in names]


def shared_columns(found: Sequence[Outcomes]) -> list[str]:
    """The columns that all of several tasks have."""
    if not found:
        return []
    return [name for name in found[0].correct if all(name in task.correct for task in found)]


def group_means(
    tasks: Mapping[str, Task], seed: int, key: str = "correct"
) -> dict[str, dict[str, Any] | None]:
    """{"icl_able", "all"} -> column -> mean with its intervals; None for a group without tasks."""
    found: dict[str, dict[str, Any] | None] = {}
    for group, names in groups(tasks).items():
        some = outcomes(tasks, names, key)
        found[group] = None
        if some:
            of_column = means(some, shared_columns(some), seed)
            found[group] = {column: mean._asdict() for column, mean in of_column.items()}
    return found


def summarise(tasks: Mapping[str, Task], controls: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Everything a result says over its tasks.

    Args:
      tasks: by name.
      controls: columns that a task vector has to beat, where a task has them; none: no verdict.

    Returns:
      `mean` and, by both rules, `mean_paper` and `mean_full` (see `group_means`); `groups`;
      `share_of_icl_gain`, the share of ICL's gain over zero-shot that the vector has; `given_icl`,
      P(vector right | ICL right) and P(vector right | ICL wrong); `peak`, of the mean dev curve;
      and with controls `primary`, `pairing_share` and `verdicts`.
    """
    names = groups(tasks)
    able = outcomes(tasks, names["icl_able"])
    every = outcomes(tasks, names["all"])
    curves = [task["dev_accuracy_by_layer"] for task in tasks.values()]
    by_rule = {rule: group_means(tasks, seed, f"correct_{rule}") for rule in ("paper", "full")}
    found: dict[str, Any] = {
        "groups": names,
        "mean": by_rule[next(iter(tasks.values()))["rule"]],
        "mean_paper": by_rule["paper"],
        "mean_full": by_rule["full"],
        "share_of_icl_gain": {
            group: _share_of_icl_gain(some, seed)
            for group, some in (("icl_able", able), ("all", every))
        },
        "given_icl": _given_icl(able, seed),
        "peak": peak_layer(curves, seed)._asdict(),
    }
    found["peak"]["others"] = {str(k): v for k, v in found["peak"]["others"].items()}
    if controls:
        found["primary"] = primary_comparison(able, controls, seed)
        found["pairing_share"] = pairing_share(able, seed)
        found["verdicts"] = verdicts(tasks, controls)
    return found


def _share_of_icl_gain(some: Sequence[Outcomes], seed: int) -> dict[str, float] | None:
    """(vector - zero-shot) / (ICL - zero-shot), a ratio of means."""
    if not some:
        return None
    lost = share_of_gain(some, "icl", VECTOR, "baseline", seed)
    return lost and Interval(1 - lost.value, 1 - lost.high, 1 - lost.low)._asdict()


def pairing_share(some: Sequence[Outcomes], seed: int) -> dict[str, float] | None:
    """The share of the vector's gain that needs the right pairing of inputs and labels."""
    if not some or "wrong_labels" not in shared_columns(some):
        return None
    share = share_of_gain(some, VECTOR, "wrong_labels", "baseline", seed)
    return share and share._asdict()


def _given_icl(some: Sequence[Outcomes], seed: int) -> dict[str, Any] | None:
    if not some:
        return None
    right, wrong = given(some, VECTOR, "icl", seed)
    return {"right": right and right._asdict(), "wrong": wrong and wrong._asdict()}


def primary_comparison(
    some: Sequence[Outcomes], controls: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """The run's one primary comparison: the vector against the strongest control, over the tasks
    that in-context learning does.

    The strongest control is the one of the highest mean. As it is found on the scored prompts, the
    p-value is the largest over all controls: the vector has to be above every one of them.
    """
    columns = [name for name in controls if name in shared_columns(some)]
    if not some or not columns:
        return None
    of_control = means(some, columns, seed)
    strongest = max(columns, key=lambda name: of_control[name].accuracy)
    difference = mean_difference(some, VECTOR, strongest, seed)
    tests = {name: compare(some, VECTOR, name) for name in columns}
    p = max(test.p if test.difference > 0 else 1.0 for test in tests.values())
    decision = decide(difference.accuracy, p)
    return {
        "control": strongest,
        "difference": difference._asdict(),
        "p": p,
        "decision": decision,
        "verdict": CARRIES if decision == "above" else NOT_SHOWN,
        "num_tasks": len(some),
    }


def verdicts(tasks: Mapping[str, Task], controls: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each task whether its vector is above every control, corrected over tasks (Holm)."""
    found = {name: outcomes_of(task["outcomes"]) for name, task in tasks.items()}
    of_task = {
        name: [c for c in controls if c in outcome.correct] for name, outcome in found.items()
    }
    return {
        name: {
            "beats": verdict.beats,
            "p": verdict.p,
            "hardest": verdict.hardest,
            "against": verdict.against._asdict(),
            "verdict": CARRIES if verdict.beats else NOT_SHOWN,
        }
        for name, verdict in beats_all(found, VECTOR, of_task).items()
    }
