"""How `experiments.patch_map` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, text


def section(result: dict[str, Any]) -> Section:
    """The best place, and the best pair of layers."""
    rows, sentences = [], []
    for name, task in result["tasks"].items():
        for patch, value in task["positions"].items():
            best = int(np.argmax(value["accuracy"]))
            nearest = int(np.argmin(value["kl"]))
            read, write = patch.split(":")
            rows.append(
                [
                    text(name),
                    text(read),
                    text(write),
                    number(value["accuracy"][best]),
                    number(best, 0),
                    number(value["kl"][nearest]),
                    number(nearest, 0),
                ]
            )
        grid = np.array(task["layers"]["accuracy"])
        row, column = np.unravel_index(grid.argmax(), grid.shape)
        sentences.append(
            f"{name}: read after {task['layers']['read_layers'][row]}, written after {column}:"
            f" {grid.max():.2f}"
        )
    means = {
        patch: float(
            np.mean([max(t["positions"][patch]["accuracy"]) for t in result["tasks"].values()])
        )
        for patch in next(iter(result["tasks"].values()))["positions"]
    }
    best = max(means, key=lambda patch: means[patch])
    words = [
        f"The task travels best read at “{best.split(':')[0]}” and written at"
        f" “{best.split(':')[1]}” ({means[best]:.2f} at each task's best layer, mean of"
        f" {len(result['tasks'])} tasks on {result['settings']['num_prompts']} prompts); next: "
        + ", ".join(
            f"{patch} {value:.2f}"
            for patch, value in sorted(means.items(), key=lambda item: -item[1])[1:4]
        )
        + ". The layer is chosen on the prompts it is scored on, so these are upper ends.",
        f"Read and written after different layers: {'; '.join(sentences)}.",
    ]
    return Section(
        "Where can the task be read, and where written?",
        words,
        [
            Table(
                "Best layer of each read and write place",
                [
                    "task",
                    "read at",
                    "written at",
                    "best accuracy",
                    "layer",
                    "lowest KL (nats)",
                    "layer of it",
                ],
                rows,
            )
        ],
        {
            "patch_map_positions": "Accuracy (above) and KL from the full prompt's prediction"
            " (below), by layer and place: read:write.",
            "patch_map_layers": "Accuracy when theta is read after the layer of the row and written"
            " after that of the column, both at the arrow.",
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """A column of maps for each task."""
    from experiments.page import figures

    tasks = result["tasks"]
    titles = {name: figures.short(name, result["categories"][name]) for name in tasks}
    layers = [str(layer) for layer in range(result["num_layers"])]
    width = 4.4 * len(tasks) + 1
    figure, panels = figures.canvas(width, 5.6, 2, len(tasks), sharey=True)
    worst = max(max(v["kl"]) for task in tasks.values() for v in task["positions"].values())
    for column, (name, task) in enumerate(tasks.items()):
        for row, key in enumerate(("accuracy", "kl")):
            axis = panels[row * len(tasks) + column]
            figures.heat_map(
                axis,
                [value[key] for value in task["positions"].values()],
                list(task["positions"]),
                layers,
                high=1.0 if key == "accuracy" else worst,
                label="accuracy" if key == "accuracy" else "KL, nats",
                colours="viridis" if key == "accuracy" else "viridis_r",
            )
            axis.set_title(titles[name] if row == 0 else "")
            axis.set_xlabel("layer" if row else "")
    grids, axes = figures.canvas(width, 3.2, 1, len(tasks))
    for axis, (name, task) in zip(axes, tasks.items(), strict=True):
        rows = [str(layer) for layer in task["layers"]["read_layers"]]
        figures.heat_map(axis, task["layers"]["accuracy"], rows, layers, label="accuracy")
        axis.set(xlabel="written after layer", ylabel="read after layer")
        axis.set_title(titles[name])
    return {"patch_map_positions": figure, "patch_map_layers": grids}
