"""How `experiments.dose` is shown: its words, tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import Section, Table, left_out, mean_of, score, task_cell

NAME = "dose"


def section(result: dict[str, Any]) -> Section:
    """The four questions, over the tasks run."""
    tasks = result["tasks"]
    first = next(iter(tasks.values()))

    def mean(values: list[dict[str, Any]]) -> float:
        return float(np.mean([value["accuracy"] for value in values]))

    counts = [
        c
        for c in sorted(first["demonstrations"], key=int)
        if all(c in t["demonstrations"] for t in tasks.values())
    ]
    by_count = {
        c: mean([t["demonstrations"][c]["task_vector"] for t in tasks.values()]) for c in counts
    }
    words = []
    if by_count:
        words.append(
            f"Mean task-vector accuracy over {len(tasks)} tasks by demonstrations: "
            + ", ".join(f"{c}: {value:.2f}" for c, value in by_count.items())
            + "."
        )
    added = {
        a: mean([t["added"][a] for t in tasks.values()]) for a in sorted(first["added"], key=float)
    }

    def on_dev(scale: str) -> float:
        return float(np.mean([t["added"][scale]["dev_accuracy"] for t in tasks.values()]))

    best = max(added, key=on_dev)
    replaced = mean([t["replaced"] for t in tasks.values()])
    words.append(
        f"Replacing scores {replaced:.2f}; adding theta to the query's own state scores"
        f" {added['1.0']:.2f}, and at the scale that is best on dev ({best}) {added[best]:.2f};"
        " each at its own layer."
    )
    largest = max((int(c) for t in tasks.values() for c in t["averaged_over_prompts"]), default=1)
    over = mean([t["averaged_over_prompts"][str(largest)] for t in tasks.values()])
    words.append(
        f"Averaged over {largest} prompts, theta scores {over:.2f}, against {replaced:.2f} for each"
        " prompt's own."
    )
    return Section(
        "How much of what makes a task vector?",
        [*words, *left_out(result["notes"])],
        [
            *(_pivot(result, question) for question, _ in _questions(first)),
            _pivot(result, "demonstrations", "icl"),
        ],
        {
            NAME: "Accuracy by the number of demonstrations, of dummy queries, of prompts averaged"
            " over, and by the scale at which theta is added: mean over tasks above, every task"
            " below."
        },
    )


def _pivot(result: dict[str, Any], question: str, column: str = "task_vector") -> Table:
    """A row a task, a column a dose."""
    tasks, titles = result["tasks"], about.titles_of(result)
    found = {name: dict(_questions(task))[question] for name, task in tasks.items()}
    doses = sorted({dose for values in found.values() for dose in values}, key=float)
    rows = []
    for name, values in found.items():
        cells = []
        for dose in doses:
            value = values.get(dose)
            if column == "task_vector" and value is not None:
                value = value.get("task_vector", value)
                cell = score(value)
                note = f"{cell.note}; layer {value['layer']}"
                cells.append(dataclasses.replace(cell, note=note))
            else:
                cells.append(score(value and value[column]))
        if question == "scale when added":
            cells.append(score(tasks[name]["replaced"]))
        rows.append([task_cell(titles, name), *cells])
    what = "In-context accuracy" if column == "icl" else "Task-vector accuracy"
    more = ["replacing"] if question == "scale when added" else []
    return Table(
        f"{what} on test by {question}, each condition at its own layer, chosen on dev",
        ["task", *(f"{float(dose):g}" for dose in doses), *more],
        rows,
    )


def _questions(task: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    questions = {
        "demonstrations": task["demonstrations"],
        "dummy queries": task["dummy_queries"],
        "prompts averaged over": task["averaged_over_prompts"],
        "scale when added": task["added"],
    }
    return [
        (question, {dose: values[dose] for dose in sorted(values, key=float)})
        for question, values in questions.items()
    ]


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """The means as curves, and every task as a row of numbers below them."""
    from experiments.page import charts, figures

    tasks, titles = list(result["tasks"].values()), about.titles_of(result)
    asked = [question for question, _ in _questions(tasks[0])]
    doses = {question: shared_doses(tasks, question) for question in asked}
    height = 0.165 * len(tasks) + 0.5
    figure, panels = figures.canvas(
        figures.WIDTH, 2.4 + height, 2, len(asked), sharey="row", height_ratios=[2.4, height]
    )
    for i, question in enumerate(asked):
        above, below = panels[i], panels[len(asked) + i]
        grid = [[_score(task, question, dose) for dose in doses[question]] for task in tasks]
        places = np.arange(len(doses[question]))
        names = [f"{float(dose):g}" for dose in doses[question]]
        if not names:
            above.remove()
            below.remove()
            continue
        charts.curve(above, places, np.mean(grid, axis=0), "task_vector", marker="o", ms=4)
        if question == "demonstrations":
            icl = [
                np.mean([task["demonstrations"][dose]["icl"]["accuracy"] for task in tasks])
                for dose in doses[question]
            ]
            charts.curve(above, places, icl, "icl", marker="D", ms=4)
        if question == "scale when added":
            replaced = float(np.mean([task["replaced"]["accuracy"] for task in tasks]))
            above.axhline(replaced, color=figures.ink(), ls=":", lw=1.3, label="replacing")
        charts.shares(above)
        above.set_xticks(places, names)
        above.set_xlim(-0.5, len(names) - 0.5)
        above.set_title(question)
        rows = [titles[name] for name in result["tasks"]]
        charts.heat_map(below, grid, rows, names, write=".2f", upright=False)
    panels[0].set_ylabel(f"accuracy, {mean_of(len(tasks))}")
    counts = doses["demonstrations"]
    title = "How much of what makes a task vector"
    if counts:
        first, last = (
            np.mean([_score(task, "demonstrations", dose) for task in tasks])
            for dose in (counts[0], counts[-1])
        )
        title = (
            f"From {counts[0]} to {counts[-1]} demonstrations theta goes from {first:.2f} to"
            f" {last:.2f} ({mean_of(len(tasks))})"
        )
    key = [
        *figures.key_of(("task_vector", "icl")),
        figures.line_entry("theta replaces the state instead of being added", ls=":", lw=1.3),
    ]
    return {NAME: figures.finish(figure, result, title, key)}


def shared_doses(tasks: Sequence[dict[str, Any]], question: str) -> list[str]:
    """The doses that every task was measured at, in order."""
    values = [dict(_questions(task))[question] for task in tasks]
    return [dose for dose in values[0] if all(dose in other for other in values)]


def _score(task: dict[str, Any], question: str, dose: str) -> float:
    value = dict(_questions(task))[question][dose]
    return value.get("task_vector", value)["accuracy"]
