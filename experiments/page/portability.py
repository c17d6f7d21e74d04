"""How `experiments.portability` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, score, text

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
    home = float(np.diag(grid).mean())
    away = float(grid[~np.eye(len(grid), dtype=bool)].mean())
    icl = np.mean([[v["accuracy"] for v in task["icl"]] for task in result["tasks"].values()])
    words = [
        f"Written into the template it was read from, theta scores {home:.2f}; written into another"
        f" one, {away:.2f} (mean of {len(result['tasks'])} tasks; the whole prompts score"
        f" {icl:.2f}), each pair of templates at its own layer.",
        *_relative(result),
        *result["notes"],
    ]
    rows = [
        [
            text(task_name),
            text(names[i]),
            *(
                score(cell, "good" if i == j else "")
                for j, cell in enumerate(task["task_vector"][i])
            ),
            score(task["icl"][i]),
            score(task["zero_shot"][i]),
            number(task["num_pairs"], 0),
        ]
        for task_name, task in result["tasks"].items()
        for i in range(len(names))
    ]
    return Section(
        "Does a vector travel between templates?",
        words,
        [
            Table(
                "Theta read under the template of the row, written under that of the column",
                [
                    "task",
                    "read under",
                    *(f"written: {name}" for name in names),
                    "ICL (row)",
                    "zero-shot (row)",
                    "pairs",
                ],
                rows,
            )
        ],
        {NAME: "Task-vector accuracy, mean of the tasks and each alone: rows read, columns write."},
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """One heat map for the mean and one a task."""
    from experiments.page import figures

    grids = {"mean": _mean_grid(result)} | {
        figures.short(name, result["categories"][name]): [
            [c["accuracy"] for c in row] for row in task["task_vector"]
        ]
        for name, task in result["tasks"].items()
    }
    figure, panels = figures.canvas(3.1 * len(grids) + 1, 3.9, 1, len(grids), sharey=True)
    for axis, (name, grid) in zip(panels, grids.items(), strict=True):
        figures.heat_map(axis, grid, result["templates"], result["templates"], write=".2f")
        axis.set_xticks(
            range(len(result["templates"])), result["templates"], rotation=40, ha="right"
        )
        axis.set_title(name)
    panels[0].set_ylabel("read under")
    return {NAME: figure}
