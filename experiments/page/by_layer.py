"""Accuracy by layer, which two experiments show: the mean over tasks, and every task alone.

Curves are of dev prompts by first tokens, because whole answers are not generated after every
layer; the levels of zero-shot and ICL beside them are by first tokens too, on test.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about

SCORING = (
    "Curves over layers are scored by the first token of the answer, on dev prompts; so are the"
    " levels of zero-shot and ICL, on test prompts. Tables are scored by the rule of the run."
)
PANELS = 6  # small panels side by side


def level_of(task: dict[str, Any], column: str) -> float:
    """A task's share of first tokens that are right on test."""
    return float(np.mean(task["outcomes"][column]["correct_paper"]))


def draw_mean(result: dict[str, Any]) -> Any:
    """One thin line a task, coloured by category, and their mean between zero-shot and ICL."""
    from experiments.page import charts, figures

    tasks = result["tasks"]
    titles = about.task_titles({name: task["category"] for name, task in tasks.items()})
    categories = [task["category"] for task in tasks.values()]
    curves = np.array([task["dev_accuracy_by_layer"] for task in tasks.values()])  # [tasks, L]
    count = curves.shape[1]
    figure, (axes,) = figures.canvas(9, 4.2)
    for (name, task), curve in zip(tasks.items(), curves, strict=True):
        colour = figures.colour_of(task["category"], categories)
        axes.plot(range(count), curve, color=colour, lw=0.9, alpha=0.5, label=titles[name])
    mean, spread = curves.mean(axis=0), curves.std(axis=0)
    bands = (mean - spread, mean + spread) if len(tasks) > 1 else None
    charts.curve(axes, range(count), mean, "task_vector", label="mean", spread=bands, linewidth=3)
    levels = {
        name: float(np.mean([level_of(task, name) for task in tasks.values()]))
        for name in ("baseline", "icl")
    }
    for name, height in levels.items():
        charts.level(axes, height, name)
    peak = int(mean.argmax())
    axes.plot([peak], [mean[peak]], "o", color=figures.LOOKS["task_vector"].colour, ms=7)
    charts.layers(axes, count)
    charts.shares(axes)
    axes.set(
        xlabel="layer after which theta is read and written (0-based)",
        ylabel="share of first tokens right",
    )
    keys = [
        figures.line_entry(
            f"task vector, mean of {len(tasks)}" + (", ± 1 sd" if bands else ""),
            color=figures.LOOKS["task_vector"].colour,
            linewidth=3,
        ),
        *figures.key_of(
            levels, **{k: f"{figures.LOOKS[k].title} {v:.2f}" for k, v in levels.items()}
        ),
        *figures.category_key(categories),
    ]
    title = (
        f"Theta works best after layer {peak} of 0–{count - 1}: {mean[peak]:.2f} of first tokens,"
        f" {levels['baseline']:.2f} zero-shot, {levels['icl']:.2f} in context"
    )
    return figures.finish(figure, result, title, keys)


def draw_tasks(result: dict[str, Any]) -> Any:
    """A small panel a task."""
    from experiments.page import charts, figures

    tasks = result["tasks"]
    titles = about.task_titles({name: task["category"] for name, task in tasks.items()})
    categories = [task["category"] for task in tasks.values()]
    order = sorted(tasks, key=lambda name: categories.index(tasks[name]["category"]))
    count = len(next(iter(tasks.values()))["dev_accuracy_by_layer"])
    figure, panels = figures.small_multiples(len(tasks), PANELS, 1.12)
    lifted = 0
    for axes, name in zip(panels, order, strict=True):
        task = tasks[name]
        colour = figures.colour_of(task["category"], categories)
        curve = np.array(task["dev_accuracy_by_layer"])
        for column in ("baseline", "icl"):
            charts.level(axes, level_of(task, column), column)
        axes.plot(range(count), curve, color=colour, lw=1.8, label=titles[name])
        lifted += curve.max() > level_of(task, "baseline")
        charts.panel_title(axes, titles[name])
        charts.shares(axes)
        charts.layers(axes, count)
    charts.outer_labels(panels, "layer after which theta is read and written", "share right")
    keys = [*figures.key_of(("baseline", "icl")), *figures.category_key(categories)]
    title = (
        f"Task by task: at its best layer theta is above zero-shot on dev in {lifted} of"
        f" {len(tasks)}"
    )
    return figures.finish(figure, result, title, keys)
