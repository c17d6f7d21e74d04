"""How `experiments.patch_map` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, score, text


def section(result: dict[str, Any]) -> Section:
    """The best place, and the best pair of layers."""
    rows, sentences = [], []
    for name, task in result["tasks"].items():
        for patch, value in task["positions"].items():
            nearest = int(np.argmin(value["kl"]))
            read, write = patch.split(":")
            rows.append(
                [
                    text(name),
                    text(read),
                    text(write),
                    score(value["test"]),
                    number(value["layer"], 0),
                    number(value["kl"][nearest]),
                    number(nearest, 0),
                ]
            )
        (row, column), test = task["layers"]["best"], task["layers"]["test"]
        sentences.append(
            f"{name}: read after {row}, written after {column}: {test['accuracy']:.2f}"
            f" ({test['low']:.2f} to {test['high']:.2f})"
        )
    means = {
        patch: float(
            np.mean([t["positions"][patch]["test"]["accuracy"] for t in result["tasks"].values()])
        )
        for patch in next(iter(result["tasks"].values()))["positions"]
    }
    best = max(means, key=lambda patch: means[patch])
    words = [
        f"The task travels best read at “{best.split(':')[0]}” and written at"
        f" “{best.split(':')[1]}” ({means[best]:.2f}, mean of {len(result['tasks'])} tasks on"
        f" {result['settings']['num_prompts']} test prompts, at the layer of each that is best on"
        " dev prompts); next: "
        + ", ".join(
            f"{patch} {value:.2f}"
            for patch, value in sorted(means.items(), key=lambda item: -item[1])[1:4]
        )
        + ". Answers are scored by their first token.",
        f"Read and written after different layers: {'; '.join(sentences)}.",
    ]
    return Section(
        "Where can the task be read, and where written?",
        words,
        [
            Table(
                "Test accuracy of each read and write place, at the layer that is best on dev",
                [
                    "task",
                    "read at",
                    "written at",
                    "accuracy",
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
