"""How `experiments.portability` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import (
    Section,
    Table,
    left_out,
    mean_of,
    number,
    score,
    task_cell,
    text,
)

NAME = "portability"


def _mean_grid(result: dict[str, Any]) -> np.ndarray:
    return np.mean(
        [
            [[cell["accuracy"] for cell in row] for row in task["task_vector"]]
            for task in result["tasks"].values()
        ],
        axis=0,
    )


def _relative(result: dict[str, Any]) -> list[str]:
    """For each source template its transfer relative to its home, over tasks ICL does there."""
    parts = []
    for i, name in enumerate(result["templates"]):
        homes, aways = [], []
        for task in result["tasks"].values():
            if task["icl_able"][i]:
                scores = [cell["accuracy"] for cell in task["task_vector"][i]]
                homes.append(scores[i])
                aways.append(np.mean(scores[:i] + scores[i + 1 :]))
        if homes and np.mean(homes) > 0:
            share = np.mean(aways) / np.mean(homes)
            parts.append(f"{name} {share:.0%} ({np.mean(homes):.2f} at home, {len(homes)} tasks)")
        else:
            parts.append(f"{name}: no task that ICL does, or nothing at home")
    return [f"What is left abroad, by the template read from: {'; '.join(parts)}."]


def section(result: dict[str, Any]) -> Section:
    """At home and abroad."""
    names = result["templates"]
    grid = _mean_grid(result)
    home, away = _home_and_away(grid)
    icl = np.mean([[v["accuracy"] for v in task["icl"]] for task in result["tasks"].values()])
    words = [
        f"Written into the template it was read from, theta scores {home:.2f}; written into another"
        f" one, {away:.2f} ({mean_of(len(result['tasks']))}; the whole prompts score"
        f" {icl:.2f}), each pair of templates at its own layer.",
        *_relative(result),
        *left_out(result["notes"]),
    ]
    means = [
        [text(name), *(number(value) for value in row)]
        for name, row in zip(names, grid, strict=True)
    ]
    return Section(
        "Does a vector travel between templates?",
        words,
        [
            Table(
                "Theta read under the template of the row, written under that of the column: mean"
                f" of {len(result['tasks'])} tasks",
                ["read under", *(f"written: {name}" for name in names)],
                means,
            ),
            *(_read_under(result, i) for i in range(len(names))),
        ],
        {
            NAME: "Task-vector accuracy, mean of the tasks: rows are the template theta was read"
            " under, columns the one it was written under.",
            f"{NAME}_tasks": "The same, task by task.",
        },
    )


def _read_under(result: dict[str, Any], i: int) -> Table:
    """A row a task, for theta read under one template."""
    names, titles = result["templates"], about.titles_of(result)
    return Table(
        f"Theta read under {names[i]}, task by task",
        [
            "task",
            *(f"written: {name}{' (home)' if i == j else ''}" for j, name in enumerate(names)),
            "ICL under it",
            "zero-shot under it",
            "pairs",
        ],
        [
            [
                task_cell(titles, name),
                *(score(cell) for cell in task["task_vector"][i]),
                score(task["icl"][i]),
                score(task["zero_shot"][i]),
                number(task["num_pairs"], 0),
            ]
            for name, task in result["tasks"].items()
        ],
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """A heat map of the mean, and one a task."""
    return {NAME: _draw_mean(result), f"{NAME}_tasks": _draw_tasks(result)}


def _draw_mean(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    names, grid = result["templates"], _mean_grid(result)
    figure, (axes,) = figures.canvas(7.5, 0.42 * len(names) + 0.9)
    charts.heat_map(axes, grid, names, names, write=".2f", label="accuracy")
    axes.set(xlabel="written under", ylabel="read under")
    home, away = _home_and_away(grid)
    title = (
        f"Theta scores {home:.2f} under the template it was read from and {away:.2f} under another"
        f" one ({mean_of(len(result['tasks']))})"
    )
    return figures.finish(figure, result, title)


def _draw_tasks(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    names, tasks, titles = result["templates"], result["tasks"], about.titles_of(result)
    figure, panels = figures.small_multiples(len(tasks), 5, 0.2 * len(names) + 0.6)
    numbers = [str(i + 1) for i in range(len(names))]
    better = 0
    for axis, (name, task) in zip(panels, tasks.items(), strict=True):
        grid = np.array([[cell["accuracy"] for cell in row] for row in task["task_vector"]])
        charts.heat_map(axis, grid, numbers, numbers, write=".2f")
        charts.panel_title(axis, titles[name])
        home, away = _home_and_away(grid)
        better += home > away
    charts.outer_labels(panels, "written under", "read under")
    said = "; ".join(f"{i + 1} {name}" for i, name in enumerate(names))
    title = f"Theta scores more at home than elsewhere in {better} of {len(tasks)} tasks ({said})"
    return figures.finish(figure, result, title)


def _home_and_away(grid: np.ndarray) -> tuple[float, float]:
    """Means over the diagonal, and over the rest."""
    return float(np.diag(grid).mean()), float(grid[~np.eye(len(grid), dtype=bool)].mean())
