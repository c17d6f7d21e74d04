"""How `experiments.learned_task_vector` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import Section, Table, left_out, mean_of, number, score, task_cell

NAME = "learned_task_vector"
CONTROL = "learned for a control task"


def _at(task: dict[str, Any], name: str, layer: int) -> Any:
    """What a task has for a layer, such as a score; the nearest layer trained if it was not."""
    layers = task["layers"]
    return task[name][min(range(len(layers)), key=lambda i: abs(layers[i] - layer))]


def section(result: dict[str, Any]) -> Section:
    """Learned beside extracted at each task's best layer."""
    tasks, titles = result["tasks"], about.titles_of(result)
    rows, no_worse, gains = [], 0, []
    selectivity: list[float] = []
    for name, task in tasks.items():
        at = task["extracted_layer"]
        own, mean, best = (_at(task, key, at) for key in ("extracted", "mean_theta", "learned"))
        no_worse += best["accuracy"] >= own["accuracy"]
        gains.append(best["accuracy"] - own["accuracy"])
        selectivity.append(_at(task, "selectivity", at))
        nearest = min(task["layers"], key=lambda layer: abs(layer - at))
        rows.append(
            [
                task_cell(
                    titles, name, "few pairs: test prompts of its own" if task["dealt"] else ""
                ),
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
        names = ", ".join(titles[name] for name, task in tasks.items() if task["dealt"])
        words.append(
            f"Too few pairs to learn beside the main results' test prompts, so half of the pairs"
            f" were learned from and other prompts scored: {names}."
        )
    return Section(
        "What could a task vector do at best?",
        [*words, *left_out(result["notes"])],
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
            NAME: "Accuracy on test of each prompt's own theta, the mean theta, the learned vector,"
            " one learned for a control task, and in-context learning.",
            f"{NAME}_cosine": "Cosine between the learned vector and the mean theta, by layer.",
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """By layer when layers were many, else the scores at the layer that was trained."""
    if all(len(task["layers"]) > 1 for task in result["tasks"].values()):
        return {NAME: _draw_by_layer(result), f"{NAME}_cosine": _draw_cosines(result)}
    return {NAME: _draw_scores(result)}


def _title(result: dict[str, Any]) -> str:
    tasks = result["tasks"].values()
    own, best, icl = (
        np.mean([_at(task, key, task["extracted_layer"])["accuracy"] for task in tasks])
        if key != "icl"
        else np.mean([task["icl"]["accuracy"] for task in tasks])
        for key in ("extracted", "learned", "icl")
    )
    return (
        f"A learned vector scores {best:.2f} where each prompt's own theta scores {own:.2f} and the"
        f" whole prompt {icl:.2f} ({mean_of(len(tasks))})"
    )


def _draw_scores(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks, titles = result["tasks"], about.titles_of(result)
    figure, (axis,) = figures.canvas(9, 0.27 * len(tasks) + 0.7)
    places = np.arange(len(tasks))[::-1]
    shown = ("baseline", "control", "extracted", "learned", "icl")
    for shift, key in zip((0.3, 0.15, 0, -0.15, -0.3), shown, strict=True):
        scores = [
            task[key] if key in ("baseline", "icl") else _at(task, key, task["extracted_layer"])
            for task in tasks.values()
        ]
        look = "task_vector" if key == "extracted" else key
        charts.pointed(axis, scores, places + shift, look)
    names = [f"{titles[name]} (layer {task['extracted_layer']})" for name, task in tasks.items()]
    axis.set_yticks(places, names)
    for y in places[:-1]:
        charts.rule(axis, y - 0.5)
    charts.shares(axis, "x")
    axis.set(ylim=(-0.6, len(tasks) - 0.4), xlabel="accuracy on test, with 95 % intervals")
    looks = ("baseline", "control", "task_vector", "learned", "icl")
    key = figures.point_key(looks, control=CONTROL)
    return figures.finish(figure, result, _title(result), key)


def _draw_by_layer(result: dict[str, Any]) -> Any:
    """A small panel a task."""
    from experiments.page import charts, figures

    tasks, titles = result["tasks"], about.titles_of(result)
    figure, panels = figures.small_multiples(len(tasks), 6, 1.2)
    for axis, (name, task) in zip(panels, tasks.items(), strict=True):
        layers = task["layers"]
        values = {
            key: [score["accuracy"] for score in task[key]]
            for key in ("extracted", "mean_theta", "learned", "control")
        }
        charts.level(axis, task["icl"]["accuracy"], "icl")
        charts.curve(axis, layers, values["control"], "control", label=CONTROL)
        charts.curve(axis, layers, values["learned"], "learned", linewidth=2.2)
        charts.curve(axis, layers, values["extracted"], "task_vector")
        charts.curve(
            axis, layers, values["mean_theta"], "task_vector", label="mean theta", linestyle=":"
        )
        charts.panel_title(axis, titles[name])
        charts.shares(axis)
        charts.layers(axis, max(layers) + 1)
    charts.outer_labels(panels, "layer", "accuracy on test")
    key = [
        *figures.key_of(("learned", "task_vector"), task_vector="each prompt's own theta"),
        figures.line_entry("mean theta", color=figures.LOOKS["task_vector"].colour, ls=":"),
        *figures.key_of(("control", "icl"), control=CONTROL),
    ]
    return figures.finish(figure, result, _title(result), key)


def _draw_cosines(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks, titles = result["tasks"], about.titles_of(result)
    figure, panels = figures.small_multiples(len(tasks), 6, 0.9)
    highest = []
    for axis, (name, task) in zip(panels, tasks.items(), strict=True):
        cosine = np.array(task["cosine"], float)
        axis.plot(task["layers"], cosine, color=figures.ink(), lw=1.6, label=titles[name])
        charts.panel_title(axis, titles[name])
        axis.set_ylim(-0.15, 1.05)
        axis.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        charts.layers(axis, max(task["layers"]) + 1)
        highest.append(float(np.nanmax(cosine)) if np.isfinite(cosine).any() else 0.0)
    charts.outer_labels(panels, "layer", "cosine")
    title = (
        f"Cosine of the learned vector and the mean theta: {np.mean(highest):.2f} at its"
        f" highest layer ({mean_of(len(tasks))})"
    )
    return figures.finish(figure, result, title)
