"""How `experiments.task_geometry` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import Section, Table, number, task_cell, text


def section(result: dict[str, Any]) -> Section:
    """How far apart, and how separable."""
    by_layer = np.array(result["separability_by_layer"])
    layer, best = result["layer"], int(by_layer.argmax())
    within, between, titles = result["within"], result["between"], about.titles_of(result)
    words = [
        f"At layer {layer} of 0–{result['num_layers'] - 1}, {by_layer[layer]:.0%} of thetas have a"
        f" theta of their own task as nearest neighbour (chance {result['chance']:.0%}); the most"
        f" separable layer is {best} ({by_layer[best]:.0%}).",
    ]
    if result.get("surface_separability") is not None:
        words.append(
            f"The words of the prompts alone, by character n-grams and without any model, give"
            f" {result['surface_separability']:.0%}, and thetas after layer 0 {by_layer[0]:.0%}:"
            " what is said of tasks is what lies above these."
        )
    for group in result.get("same_inputs", ()):
        surface = group["surface_separability"]
        told = "" if surface is None else f", by their words {surface:.0%}"
        words.append(
            "Among tasks of the same inputs"
            f" ({', '.join(titles[name] for name in group['tasks'])}):"
            f" {group['separability']:.0%}{told} (chance {group['chance']:.0%})."
        )
    if wrong := result.get("wrong_labels"):
        words.append(
            "Thetas of the same prompts with wrong labels, which show the words of a task and not"
            f" its mapping, lie nearest one of their own task in {wrong['separability']:.0%} of"
            f" cases, and nearest a theta of right labels of their task in"
            f" {wrong['nearest_right_theta']:.0%}."
        )
    if within and between:
        words.append(
            f"The median cosine distance is {within['median']:.3f} within a task and"
            f" {between['median']:.3f} between tasks, all thetas taken at the same layer."
        )
    rows = []
    for i, name in enumerate(result["tasks"]):
        others = [
            (value, other)
            for j, (value, other) in enumerate(
                zip(result["mean_distance"][i], result["tasks"], strict=True)
            )
            if j != i
        ]
        closest, neighbour = min(others) if others else (None, None)
        rows.append(
            [
                task_cell(titles, name),
                number(result["own_neighbour"][i]),
                number(result["mean_distance"][i][i], 3),
                text("–") if neighbour is None else task_cell(titles, neighbour),
                number(closest, 3),
            ]
        )
    return Section(
        "Do task vectors form clusters?",
        words,
        [
            Table(
                f"Thetas at layer {layer}: nearest neighbours and mean cosine distances",
                ["task", "nearest is own task", "distance within", "closest task", "its distance"],
                rows,
            )
        ],
        {
            "task_geometry_map": "Each point is the theta of one prompt, all at one layer: t-SNE"
            " and the first two principal components, coloured by category.",
            "task_geometry_tasks": "The t-SNE map once for each task, its own thetas in colour; the"
            " share of them whose nearest neighbour is of the task stands above.",
            "task_geometry_distances": "Cosine distances of pairs of thetas within one task and"
            " between tasks.",
            "task_geometry_matrix": "Mean cosine distance of the thetas of every two tasks.",
            "task_geometry_layers": "Share of thetas whose nearest neighbour is of the same task"
            " (or category), by layer.",
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Maps, histograms, distances, separability by layer."""
    return {
        "task_geometry_map": _draw_map(result),
        "task_geometry_tasks": _draw_tasks(result),
        "task_geometry_distances": _draw_distances(result),
        "task_geometry_matrix": _draw_matrix(result),
        "task_geometry_layers": _draw_layers(result),
    }


def _share(result: dict[str, Any]) -> str:
    share = result["separability_by_layer"][result["layer"]]
    return (
        f"{share:.0%} of thetas after layer {result['layer']} have one of their own task as nearest"
        f" neighbour (chance {result['chance']:.0%})"
    )


def _draw_map(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    labels, names = np.array(result["labels"]), result["tasks"]
    titles = about.titles_of(result)
    categories = [result["categories"][name] for name in names]
    figure, axes = figures.canvas(figures.WIDTH, 5.2, 1, 2)
    variance = result["pca_variance"]
    for axis, key, title in (
        (axes[0], "tsne", "t-SNE"),
        (
            axes[1],
            "pca",
            f"principal components: {variance[0]:.0%} and {variance[-1]:.0%} of variance",
        ),
    ):
        points = np.array(result[key])
        for task, (name, category) in enumerate(zip(names, categories, strict=True)):
            colour = figures.colour_of(category, categories)
            mine = points[labels == task].T
            axis.plot(*mine, "o", color=colour, ms=3.5, mew=0, alpha=0.8, label=titles[name])
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
    key = [
        figures.line_entry(name, color=figures.colour_of(name, categories), marker="o", ls="", ms=5)
        for name in dict.fromkeys(categories)
    ]
    return figures.finish(figure, result, _share(result), key)


def _draw_tasks(result: dict[str, Any]) -> Any:
    """The t-SNE map once for each task, its own points in colour."""
    from experiments.page import charts, figures

    labels, names = np.array(result["labels"]), result["tasks"]
    titles, points = about.titles_of(result), np.array(result["tsne"])
    categories = [result["categories"][name] for name in names]
    figure, panels = figures.small_multiples(len(names), 6, 1.25)
    for task, axis in enumerate(panels):
        mine = labels == task
        axis.plot(*points[~mine].T, "o", color=figures.quiet(), ms=1.8, mew=0, alpha=0.35)
        colour = figures.colour_of(categories[task], categories)
        axis.plot(*points[mine].T, "o", color=colour, ms=4, mew=0, label=titles[names[task]])
        own = result["own_neighbour"][task]
        charts.panel_title(axis, f"{titles[names[task]]}: {own:.0%}")
        axis.set_xticks([])
        axis.set_yticks([])
    apart = sum(own == 1 for own in result["own_neighbour"])
    title = (
        f"{apart} of {len(names)} tasks are a cluster of their own: all their thetas are next to"
        " one of the same task (t-SNE; the share stands over each panel)"
    )
    key = [
        figures.line_entry(name, color=figures.colour_of(name, categories), marker="o", ls="", ms=5)
        for name in dict.fromkeys(categories)
    ]
    key.append(
        figures.line_entry("all other tasks", color=figures.quiet(), marker="o", ls="", ms=3)
    )
    return figures.finish(figure, result, title, key)


def _draw_distances(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    figure, (axes,) = figures.canvas(9, 2.8)
    edges = np.array(result["bin_edges"])
    styles = {
        "within": {"color": figures.ink(), "hatch": "", "alpha": 0.75},
        "between": {"color": figures.quiet(), "hatch": "", "alpha": 0.35},
    }
    for key, style in styles.items():
        counts = np.array(result[f"{key}_histogram"], float)
        axes.stairs(counts / max(1.0, counts.sum()), edges, fill=True, **style)
    axes.set(xlabel="cosine distance of two thetas", ylabel="share of pairs")
    axes.set_xlim(edges[0], edges[-1])
    within, between = result["within"], result["between"]
    title = "How far thetas are apart"
    if within and between:
        title = (
            f"Thetas of one task are {within['median']:.2f} apart, those of two tasks"
            f" {between['median']:.2f} (median cosine distance, layer {result['layer']})"
        )
    key = [
        figures.swatch("within a task", figures.ink(), alpha=0.75),
        figures.swatch("between two tasks", figures.quiet(), alpha=0.35),
    ]
    return figures.finish(figure, result, title, key)


def _draw_matrix(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    titles = about.titles_of(result)
    names = [titles[name] for name in result["tasks"]]
    side = 0.155 * len(names) + 1.5
    figure, (axes,) = figures.canvas(min(figures.WIDTH, max(6.5, side + 2.2)), side)
    grid = result["mean_distance"]
    apart = [v for i, row in enumerate(grid) for j, v in enumerate(row) if i != j and v is not None]
    high = max((v for row in grid for v in row if v is not None), default=1.0)
    label = "mean cosine distance"
    charts.heat_map(
        axes, grid, names, names, high=high, label=label, colours=f"{figures.HEAT}_r", upright=True
    )
    title = "Mean cosine distance of thetas, task by task"
    if apart:
        title += f": {min(apart):.2f} to {max(apart):.2f} between tasks"
    return figures.finish(figure, result, title)


def _draw_layers(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    figure, (axes,) = figures.canvas(9, 2.8)
    count = result["num_layers"]
    curves = {
        "of the same task": (result["separability_by_layer"], "-"),
        "of the same category": (result["category_separability_by_layer"], "--"),
    }
    key = []
    for label, (curve, style) in curves.items():
        axes.plot(range(count), curve, ls=style, color=figures.ink(), lw=1.8, label=label)
        key.append(figures.line_entry(label, ls=style, lw=1.8))
    baseline = {"ls": ":", "color": figures.LOOKS["control"].colour, "lw": 1.6}
    axes.axhline(result["chance"], label="chance of the same task", **baseline)
    chosen = {"ls": "-", "color": figures.quiet(), "lw": 0.8}
    axes.axvline(result["layer"], label="_chosen", **chosen)
    charts.layers(axes, count)
    charts.shares(axes)
    axes.set(xlabel="layer", ylabel="nearest neighbour is")
    key += [
        figures.line_entry("chance of the same task", **baseline),
        figures.line_entry("layer of the maps", **chosen),
    ]
    by_layer = np.array(result["separability_by_layer"])
    best = int(by_layer.argmax())
    title = f"Tasks are told apart best after layer {best}: {by_layer[best]:.0%} of thetas"
    return figures.finish(figure, result, title, key)
