"""The main table: zero-shot, task vector and in-context learning, with controls (paper, Table 1,
Figures 3 and 4, Table 6).

    python -m experiments.main_results
    python -m experiments.main_results --model=PATH --num_prompts=200
    python -m experiments.main_results --task_data=DIRECTORY --rule=paper
    python -m experiments.main_results --rerun=results/RUN/main_results.json --out=again

For every task: layers are chosen on dev, scores are on test, and beside the task vector stand its
controls, each scored by the same rule on the same prompts. Tasks that in-context learning does (on
dev) come first. The run's primary comparison is the vector against the strongest control over those
tasks; verdicts for single tasks are corrected for their number. Wrong labels are no control to be
beaten: the share of the vector's gain that needs the right pairing is estimated. With
--rule=paper, and the original's data as --task_data, this is the replication of the paper. The
statistics are those of `taskvec_jax.evaluation.statistics` and `intervals`.

Writes main_results.json and main_results, accuracy_by_layer, accuracy_by_layer_tasks (.png/.svg)
under --out. The JSON holds every answer to every test prompt (`outcomes`) and the tasks' pairs, so
that --rerun=FILE runs the same again.
Expected on the default model at the paper's settings: see README.

Time: 22 minutes (2 cores).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.published import published, published_means, published_name, published_scores
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.evaluation.controls import CONTROLS
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.summary import summarise

NAME = "main_results"
GOOD_TASK = 0.75  # tasks whose best dev accuracy exceeds this make the paper's curve by layer
ICL_GAIN = 0.20  # tasks where ICL beats the baseline by this make the paper's averages
MEASURES = ("baseline", "task_vector", "icl")
TO_BEAT = ("baseline", *(name for name, control in CONTROLS.items() if control.in_verdict))


def run(study: Study) -> dict[str, Any]:
    """Evaluates every task and puts the table together."""
    tasks = {}
    with studies.command.progress_bar(study.overall) as bar:
        row = bar.add_task("prompts", total=4 * study.settings.num_prompts * len(study.tasks))
        study.advance = lambda prompts: bar.advance(row, prompts)
        for i, task in enumerate(study.tasks):
            bar.update(row, description=task.name)
            tasks[task.name] = study.main(task)
            bar.update(row, completed=4 * study.settings.num_prompts * (i + 1))
        study.advance = lambda prompts: None
    assembled = assemble(study.model.name, tasks, study.settings.seed)
    return study.result(NAME, study.settings, {**assembled, "data": study.data()})


def assemble(model: str, tasks: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """What follows from the tasks' scores: statistics, one layer for all, published values.

    Args:
      tasks: `ControlledResult.to_dict` of each.
      seed: of the bootstraps.
    """
    curves = np.array([task["dev_accuracy_by_layer"] for task in tasks.values()])  # [tasks, L]
    common = best_layer(curves.mean(axis=0))
    name = published_name(model)
    found = summarise(tasks, TO_BEAT, seed=seed)
    verdicts = found.pop("verdicts")
    full = {
        task_name: {
            **task,
            **verdicts[task_name],
            "published": published_scores(name).get(task_name),
            "published_mean_of_7_models": published_means().get(task_name),
        }
        for task_name, task in tasks.items()
    }
    return {
        "tasks": full,
        **found,
        "common_layer": common,
        "common_layer_paper": {
            "one_layer": _mean_at(tasks, [common] * len(tasks)),
            "own_layer": _mean_at(tasks, [task["best_layer"] for task in tasks.values()]),
        },
        "num_layers": int(curves.shape[1]),
        "published_model": name,
        "published_source": published()["source"],
        "averages_where_icl_gains": averages_where_icl_gains(full),
        "curve_of_good_tasks": curve_of_good_tasks(tasks),
    }


def _mean_at(tasks: dict[str, dict[str, Any]], layers: list[int]) -> float:
    """Mean over tasks of test accuracy at a layer each, by the rule `paper`."""
    return float(
        np.mean(
            [
                task["test_accuracy_by_layer"][layer]
                for task, layer in zip(tasks.values(), layers, strict=True)
            ]
        )
    )


def averages_where_icl_gains(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the tasks where ICL beats the baseline by 0.20 or more (paper, Figure 4).

    Chosen on test, as in the paper: to stand beside its averages. The means of this run are over
    tasks chosen on dev.
    """
    gains = [
        name
        for name, task in tasks.items()
        # 0.20 as the paper's two digits mean it: 0.3 - 0.1 is a hair below 0.2 in binary
        if task["icl"]["accuracy"] - task["baseline"]["accuracy"] >= ICL_GAIN - 1e-9
    ]
    means = {
        measure: float(np.mean([tasks[name][measure]["accuracy"] for name in gains]))
        if gains
        else None
        for measure in MEASURES
    }
    return {"tasks": gains, **means}


def curve_of_good_tasks(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread by layer over tasks whose best dev accuracy exceeds 0.75 (Figure 3)."""
    good = [name for name, task in tasks.items() if max(task["dev_accuracy_by_layer"]) > GOOD_TASK]
    curves = np.array([tasks[name]["dev_accuracy_by_layer"] for name in good])
    return {
        "tasks": good,
        "mean": curves.mean(axis=0).tolist() if good else None,
        "std": curves.std(axis=0).tolist() if good else None,
        "peak_layer": best_layer(curves.mean(axis=0)) if good else None,
    }


if __name__ == "__main__":
    main(NAME)
