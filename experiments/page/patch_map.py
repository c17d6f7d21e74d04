"""How `experiments.patch_map` is shown: its words, tables and figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import Cell, Section, Table, mean_of, number, score, task_cell

ROWS = 10  # of a map of layers that have a label: the others would be printed over each other


def section(result: dict[str, Any]) -> Section:
    """The best place, and the best pair of layers."""
    any_two = float(
        np.mean([task["layers"]["test"]["accuracy"] for task in result["tasks"].values()])
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
        f" “{best.split(':')[1]}” ({means[best]:.2f}, {mean_of(len(result['tasks']))} on"
        f" {result['settings']['num_prompts']} test prompts, at the layer of each that is best on"
        " dev prompts); next: "
        + ", ".join(
            f"{patch} {value:.2f}"
            for patch, value in sorted(means.items(), key=lambda item: -item[1])[1:4]
        )
        + ".",
        f"Read and written at the arrow after any two layers, chosen on dev: {any_two:.2f}.",
    ]
    return Section(
        "Where can the task be read, and where written?",
        words,
        [
            _accuracies(result),
            _two_layers(result),
            _divergences(result),
        ],
        {
            "patch_map_positions": "Accuracy and KL from the full prompt's prediction by layer and"
            " place (read → written), mean over tasks; accuracy on dev prompts, by first tokens.",
            "patch_map_tasks": "Accuracy on dev by layer and place, task by task.",
            "patch_map_layers": "Accuracy on dev when theta is read after the layer of the row and"
            " written after that of the column, both at the arrow.",
        },
    )


def _accuracies(result: dict[str, Any]) -> Table:
    """A row a task, a column a way."""
    titles, rows = about.titles_of(result), []
    for name, task in result["tasks"].items():
        cells = [score(value["test"]) for value in task["positions"].values()]
        layers = [value["layer"] for value in task["positions"].values()]
        noted = [
            dataclasses.replace(cell, note=f"{cell.note}; layer {layer}")
            for cell, layer in zip(cells, layers, strict=True)
        ]
        rows.append([task_cell(titles, name), *noted])
    return Table(
        "Test accuracy of each way, read → written, at the layer that is best on dev",
        ["task", *_places(result)],
        rows,
    )


def _two_layers(result: dict[str, Any]) -> Table:
    """A row a task: the layers after which theta is best read and written."""
    titles = about.titles_of(result)
    rows = [
        [
            task_cell(titles, name),
            *(number(layer, 0) for layer in task["layers"]["best"]),
            score(task["layers"]["test"]),
        ]
        for name, task in result["tasks"].items()
    ]
    return Table(
        "Read and written at the arrow after two layers that are best on dev",
        ["task", "read after layer", "written after layer", "accuracy on test"],
        rows,
    )


def _divergences(result: dict[str, Any]) -> Table:
    """A row a task, a column a way."""
    titles, rows = about.titles_of(result), []
    for name, task in result["tasks"].items():
        cells = []
        for value in task["positions"].values():
            best = int(np.argmin(value["kl"]))
            cells.append(Cell(f"{value['kl'][best]:.2f}", value["kl"][best], "", f"layer {best}"))
        rows.append([task_cell(titles, name), *cells])
    caption = "Lowest KL from the full prompt's prediction of each way (nats), and its layer"
    return Table(caption, ["task", *_places(result)], rows)


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Maps of the mean over tasks, and one of each task."""
    return {
        "patch_map_positions": _draw_mean(result),
        "patch_map_tasks": _draw_tasks(result),
        "patch_map_layers": _draw_layers(result),
    }


def _places(result: dict[str, Any]) -> list[str]:
    """`read:write` of every place, in words."""
    found = next(iter(result["tasks"].values()))["positions"]
    return [place.replace(":", " → ") for place in found]


def _draw_mean(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks = list(result["tasks"].values())
    places, layers = _places(result), [str(layer) for layer in range(result["num_layers"])]
    means = {
        key: np.mean([[v[key] for v in task["positions"].values()] for task in tasks], axis=0)
        for key in ("accuracy", "kl")
    }
    size = 0.24 * len(places) + 0.8
    figure, axes = figures.canvas(figures.WIDTH, size, 1, 2, sharey=True)
    for axis, key, label in ((axes[0], "accuracy", "accuracy"), (axes[1], "kl", "KL, nats")):
        charts.heat_map(
            axis,
            means[key],
            places,
            layers,
            high=1.0 if key == "accuracy" else float(means[key].max()) or 1.0,
            label=label,
            colours=figures.HEAT if key == "accuracy" else f"{figures.HEAT}_r",
        )
        axis.set_xlabel("layer")
    axes[0].set_title("accuracy")
    axes[1].set_title("KL from the full prompt's prediction")
    row, layer = np.unravel_index(means["accuracy"].argmax(), means["accuracy"].shape)
    title = (
        f"The task travels best along {places[row]}, after layer {layer}:"
        f" {means['accuracy'].max():.2f} on dev ({mean_of(len(tasks))}; read → written at;"
        " bright is better in both)"
    )
    return figures.finish(figure, result, title)


def _draw_tasks(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks, titles = result["tasks"], about.titles_of(result)
    places, layers = _places(result), [str(layer) for layer in range(result["num_layers"])]
    columns = 4
    size = 0.17 * len(places) + 0.55
    figure, panels = figures.small_multiples(len(tasks), columns, size)
    best = []
    for i, (axis, (name, task)) in enumerate(zip(panels, tasks.items(), strict=True)):
        grid = np.array([value["accuracy"] for value in task["positions"].values()])
        charts.heat_map(axis, grid, places, layers, label="" if i else "accuracy", beside=panels)
        charts.panel_title(axis, titles[name])
        best.append(places[int(grid.max(axis=1).argmax())])
    charts.outer_labels(panels, "layer", "read → written")
    most = max(set(best), key=best.count)
    title = f"{most} is the best way for {best.count(most)} of {len(tasks)} tasks (on dev)"
    return figures.finish(figure, result, title)


def _draw_layers(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks, titles = result["tasks"], about.titles_of(result)
    layers = [str(layer) for layer in range(result["num_layers"])]
    figure, panels = figures.small_multiples(len(tasks), 4, 1.6)
    own, other = [], []
    for i, (axis, (name, task)) in enumerate(zip(panels, tasks.items(), strict=True)):
        grid = np.array(task["layers"]["accuracy"])
        read = task["layers"]["read_layers"]
        step = -(-len(read) // ROWS)
        rows = ["" if place % step else str(layer) for place, layer in enumerate(read)]
        charts.heat_map(axis, grid, rows, layers, label="" if i else "accuracy", beside=panels)
        charts.panel_title(axis, titles[name])
        diagonal = [grid[row, layer] for row, layer in enumerate(read)]
        own.append(max(diagonal))
        other.append(grid.max())
    charts.outer_labels(panels, "written after layer", "read after layer")
    title = (
        f"Read and written after the same layer, theta scores {np.mean(own):.2f} at best; after any"
        f" two, {np.mean(other):.2f} (on dev, {mean_of(len(tasks))})"
    )
    return figures.finish(figure, result, title)
