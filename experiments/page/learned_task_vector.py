"""How `experiments.learned_task_vector` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, score, text

NAME = "learned_task_vector"


def _at(task: dict[str, Any], name: str, layer: int) -> dict[str, Any]:
    """A score of a task at a layer; the nearest layer trained if that one was not."""
    layers = task["layers"]
    return task[name][min(range(len(layers)), key=lambda i: abs(layers[i] - layer))]


def section(result: dict[str, Any]) -> Section:
    """Learned beside extracted at each task's best layer."""
    tasks = result["tasks"]
    rows, no_worse, gains = [], 0, []
    selectivity: list[float] = []
    for name, task in tasks.items():
        at = task["extracted_layer"]
        own, mean, best = (_at(task, key, at) for key in ("extracted", "mean_theta", "learned"))
        no_worse += best["accuracy"] >= own["accuracy"]
        gains.append(best["accuracy"] - own["accuracy"])
        selectivity.append(best["accuracy"] - _at(task, "control", at)["accuracy"])
        nearest = min(task["layers"], key=lambda layer: abs(layer - at))
        rows.append(
            [
                text(name, note="few pairs: test prompts of its own" if task["dealt"] else ""),
                number(nearest, 0),
                score(task["baseline"]),
                score(own),
                score(mean),
                score(best),
                score(_at(task, "control", at)),
                number(selectivity[-1]),
                score(task["icl"]),
                number(task["cosine"][task["layers"].index(nearest)]),
                number(task["norm_ratio"][task["layers"].index(nearest)]),
                number(task["learned_layer"], 0),
                score(_at(task, "learned", task["learned_layer"])),
            ]
        )
    words = [
        f"At the layer where extracted theta does best on dev, the learned vector scores at least"
        f" as much on {no_worse} of {len(tasks)} tasks, {np.mean(gains):+.2f} on average.",
        "A control task has the same inputs with outputs dealt at random: there the learned vectors"
        f" score {np.mean(selectivity):.2f} less on average, which is what they owe to the task.",
    ]
    if (positions := result["recipe"]["num_positions"]) > 1:
        words.append(
            f"Learned vectors, and the mean they start from, are written over the last {positions}"
            " tokens of a query together; each prompt's own theta over the last one alone. What"
            " stood there of the query is gone: where that is all of it, no vector can answer."
        )
    if any(task["dealt"] for task in tasks.values()):
        names = ", ".join(name for name, task in tasks.items() if task["dealt"])
        words.append(
            f"Too few pairs to learn beside the main results' test prompts, so half of the pairs"
            f" were learned from and other prompts scored: {names}."
        )
    return Section(
        "What could a task vector do at best?",
        [*words, *result["notes"]],
        [
            Table(
                "Accuracy on test at the layer where extracted theta does best on dev",
                [
                    "task",
                    "layer",
                    "zero-shot",
                    "own theta",
                    "mean theta",
                    "learned",
                    "learned, control task",
                    "selectivity",
                    "ICL",
                    "cosine",
                    "norm",
                    "learned's layer",
                    "learned there",
                ],
                rows,
            )
        ],
        {
            NAME: "Above: accuracy on test of each prompt's own theta (solid), the learned vector"
            " (bold) and in-context learning (dashed). Below: cosine between the learned vector and"
            " the mean theta."
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """By layer when layers were many, a pair of bars a task when one was trained."""
    from experiments.page import figures

    tasks, categories = result["tasks"], result["categories"]
    if all(len(task["layers"]) > 1 for task in tasks.values()):
        return {NAME: _draw_by_layer(figures, tasks, categories)}
    figure, (axis,) = figures.canvas(9, 1.2 + 0.3 * len(tasks))
    for i, (name, task) in enumerate(tasks.items()):
        at = task["extracted_layer"]
        own, best = (_at(task, key, at)["accuracy"] for key in ("extracted", "learned"))
        colour = figures.colour_of(categories[name], categories.values())
        axis.plot([own, best], [i, i], color=colour, lw=2, alpha=0.5)
        axis.plot(own, i, "o", mfc="none", mec=colour, label=None if i else "own theta")
        axis.plot(best, i, "o", color=colour, label=None if i else "learned vector")
        axis.plot(
            task["icl"]["accuracy"],
            i,
            "|",
            color=figures.ink(),
            markersize=11,
            label=None if i else "in-context learning",
        )
    names = [
        f"{figures.short(name, categories[name])} (layer {task['extracted_layer']})"
        for name, task in tasks.items()
    ]
    axis.set_yticks(range(len(tasks)), names)
    axis.invert_yaxis()
    axis.set(xlim=(-0.02, 1.02), xlabel="accuracy on test")
    figure.legend(loc="outside lower center", ncols=3)
    return {NAME: figure}


def _draw_by_layer(figures: Any, tasks: dict[str, Any], categories: dict[str, str]) -> Any:
    """Two rows of panels, a column a task."""
    width = max(6.0, 3.3 * len(tasks))
    figure, panels = figures.canvas(
        width, 5.2, 2, len(tasks), sharex=True, sharey="row", height_ratios=[2, 1]
    )
    for i, (name, task) in enumerate(tasks.items()):
        above, below = panels[i], panels[len(tasks) + i]
        layers, category = task["layers"], categories[name]
        colour = figures.colour_of(category, categories.values())
        own, best = (
            np.array([s["accuracy"] for s in task[key]]) for key in ("extracted", "learned")
        )
        mean = [s["accuracy"] for s in task["mean_theta"]]
        above.fill_between(layers, own, best, where=best >= own, color=colour, alpha=0.15, lw=0)
        above.plot(layers, best, color=colour, lw=2.4, label=None if i else "learned vector")
        above.plot(layers, own, color=colour, lw=1.2, label=None if i else "each prompt's theta")
        above.plot(layers, mean, ":", color=colour, lw=1.2, label=None if i else "mean theta")
        above.axhline(
            task["icl"]["accuracy"],
            color=figures.ink(),
            ls="--",
            lw=0.9,
            label=None if i else "in-context learning",
        )
        above.set(title=figures.short(name, category), ylim=(-0.02, 1.02))
        below.plot(layers, np.array(task["cosine"], float), color=colour, lw=1.6)
        below.set(xlabel="layer", ylim=(-0.1, 1.05))
    panels[0].set_ylabel("accuracy on test")
    panels[len(tasks)].set_ylabel("cosine to mean theta")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
