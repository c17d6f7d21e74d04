"""How `experiments.task_geometry` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, text


def section(result: dict[str, Any]) -> Section:
    """How far apart, and how separable."""
    by_layer = np.array(result["separability_by_layer"])
    layer, best = result["layer"], int(by_layer.argmax())
    within, between = result["within"], result["between"]
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
            f"Among tasks of the same inputs ({', '.join(group['tasks'])}):"
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
        closest, neighbour = min(others) if others else (None, "–")
        rows.append(
            [
                text(name),
                number(result["own_neighbour"][i]),
                number(result["mean_distance"][i][i], 3),
                text(neighbour),
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
            " (above) and the first two principal components (below), coloured by category and"
            " by task.",
            "task_geometry_distances": "Cosine distances of pairs of thetas within one task and"
            " between tasks, as a histogram and as means for every two tasks.",
            "task_geometry_layers": "Share of thetas whose nearest neighbour is of the same task"
            " (or category), by layer.",
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Maps, histograms, separability by layer."""
    return {
        "task_geometry_map": _draw_map(result),
        "task_geometry_distances": _draw_distances(result),
        "task_geometry_layers": _draw_layers(result),
    }


def _draw_map(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    labels, names = np.array(result["labels"]), result["tasks"]
    categories = [result["categories"][name] for name in names]
    shown = sorted(set(categories))
    figure, axes = figures.canvas(12, 10.5, 2, 2)
    variance = result["pca_variance"]
    markers = "osD^vP*X<>"
    for row, (key, title) in enumerate((("tsne", "t-SNE"), ("pca", "PCA"))):
        points = np.array(result[key])
        by_category, by_task = axes[2 * row], axes[2 * row + 1]
        for task, name in enumerate(names):
            mine = points[labels == task]
            style = {"s": 12, "linewidths": 0, "alpha": 0.8}
            kind = categories[task]
            first = task == categories.index(kind)
            by_category.scatter(
                *mine.T,
                color=figures.colour_of(kind, shown),
                label=kind if first else None,
                **style,
            )
            by_task.scatter(
                *mine.T,
                color=figures.COLOURS[task % len(figures.COLOURS)],
                marker=markers[task // len(figures.COLOURS) % len(markers)],
                label=figures.short(name, kind) if row == 0 else None,
                **style,
            )
            by_category.annotate(
                figures.short(name, kind),
                np.median(mine, axis=0).tolist(),
                fontsize=6.5,
                ha="center",
                alpha=0.9,
            )
        for axis, what in ((by_category, "category"), (by_task, "task")):
            axis.set_title(f"{title}, by {what}")
            axis.set_xticks([])
            axis.set_yticks([])
            if key == "pca":
                axis.set_xlabel(f"first component, {variance[0]:.0%} of variance")
                axis.set_ylabel(f"second, {variance[-1]:.0%}")
    axes[0].legend(loc="best", markerscale=1.6)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", markerscale=1.6)
    figure.suptitle(f"{result['model']}: thetas at layer {result['layer']}", fontsize=12)
    return figure


def _draw_distances(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    names = [figures.short(name, result["categories"][name]) for name in result["tasks"]]
    figure, axes = figures.canvas(13, 0.24 * len(names) + 3.0, 1, 2)
    edges = np.array(result["bin_edges"])
    for key, colour in (("within", "#4269d0"), ("between", "#ff725c")):
        counts = np.array(result[f"{key}_histogram"], float)
        axes[0].bar(
            edges[:-1],
            counts / max(1.0, counts.sum()),
            np.diff(edges),
            align="edge",
            color=colour,
            alpha=0.6,
            label=f"{key} task" + ("s" if key == "between" else ""),
        )
    axes[0].set(xlabel="cosine distance", ylabel="share of pairs")
    axes[0].set_title(f"layer {result['layer']}")
    axes[0].legend()
    grid = result["mean_distance"]
    high = max((v for row in grid for v in row if v is not None), default=1.0)
    figures.heat_map(
        axes[1], grid, names, names, high=high, label="mean cosine distance", colours="viridis_r"
    )
    axes[1].set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes[1].set_title("mean distance of every two tasks")
    return figure


def _draw_layers(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    figure, (axes,) = figures.canvas(8, 3.6)
    layers = np.arange(result["num_layers"])
    axes.plot(layers, result["separability_by_layer"], color="#4269d0", label="own task")
    axes.plot(
        layers, result["category_separability_by_layer"], color="#efb118", label="own category"
    )
    axes.axhline(result["chance"], linestyle=":", color=figures.ink(), label="chance (task)")
    axes.axvline(result["layer"], linestyle="--", color=figures.ink(), lw=0.8)
    axes.set(
        xlabel="layer",
        ylabel="nearest neighbour agrees",
        ylim=(0, 1.03),
        xlim=(0, max(1, len(layers) - 1)),
    )
    axes.set_title(f"{result['model']}: how separable thetas are")
    axes.legend(loc="lower right")
    return figure
