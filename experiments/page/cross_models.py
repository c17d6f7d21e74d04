"""How `experiments.cross_models` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, text

MEASURES = ("baseline", "task_vector", "icl")


def section(result: dict[str, Any]) -> Section:
    """Depth and averages, model by model."""
    models = result["models"]
    ours = {name: model for name, model in models.items() if model["ours"]}
    theirs = [_depth(model) for model in models.values() if not model["ours"]]
    words = [
        "; ".join(
            f"{name} peaks at {_depth(model):.0%} of its depth"
            f" (layer {model['peak_layer']} of 0–{model['num_layers'] - 1})"
            for name, model in ours.items()
        )
        + f"; the paper's seven models at {min(theirs):.0%} to {max(theirs):.0%}."
    ]
    rows = [
        [
            text(name, "good" if model["ours"] else ""),
            number(model["num_layers"], 0),
            number(model["peak_layer"], 0),
            number(_depth(model)),
            *(number(model["averages"][measure]) for measure in MEASURES),
            number(model["averages_tasks"], 0),
            number(_recovered(model)),
        ]
        for name, model in models.items()
    ]
    return Section(
        "How do models compare?",
        words,
        [
            Table(
                "Peak of the mean curve, and averages over tasks where ICL gains 0.20 or more",
                [
                    "model",
                    "layers",
                    "peak layer",
                    "peak / depth",
                    "zero-shot",
                    "task vector",
                    "ICL",
                    "tasks",
                    "share of ICL's gain",
                ],
                rows,
            )
        ],
        {
            "cross_models_depth": "Mean dev accuracy by layer, layers as a share of depth; thick"
            " lines are ours, thin ones the paper's (four of them read off its figure).",
            "cross_models_averages": "Averages per model over tasks where ICL beats the baseline"
            " by 0.20 or more.",
        },
    )


def _depth(model: dict[str, Any]) -> float:
    return (model["peak_layer"] + 1) / model["num_layers"]


def _recovered(model: dict[str, Any]) -> float | None:
    zero, vector, icl = (model["averages"][measure] for measure in MEASURES)
    return None if icl is None or icl == zero else (vector - zero) / (icl - zero)


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Curves over depth, and bars of averages."""
    from experiments.page import figures

    models = result["models"]
    depth, (axes,) = figures.canvas(8.5, 4.6)
    for i, (name, model) in enumerate(models.items()):
        curve = np.array([np.nan if v is None else v for v in model["curve"]], float)
        axes.plot(
            np.arange(1, len(curve) + 1) / len(curve),
            curve,
            color=figures.COLOURS[i % len(figures.COLOURS)],
            linewidth=2.6 if model["ours"] else 1.0,
            marker="o" if model["ours"] else None,
            markersize=3,
            alpha=1.0 if model["ours"] else 0.8,
            label=name,
        )
    axes.set(
        xlabel="depth (layer / number of layers)",
        ylabel="mean dev accuracy",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.set_title("Where in its depth each model takes a task vector")
    axes.legend()
    bars, (axes,) = figures.canvas(max(7.0, 1.15 * len(models)), 4.2)
    colours = {"baseline": "#b9bec6", "task_vector": "#4269d0", "icl": "#3ca951"}
    titles = {"baseline": "zero-shot", "task_vector": "task vector", "icl": "ICL"}
    for k, (measure, colour) in enumerate(colours.items()):
        heights = [model["averages"][measure] or 0.0 for model in models.values()]
        places = np.arange(len(models)) + 0.27 * (k - 1)
        axes.bar(places, heights, 0.25, color=colour, label=titles[measure])
        for x, height in zip(places, heights, strict=True):
            axes.text(x, height + 0.01, f"{height:.2f}", ha="center", fontsize=6)
    labels = [
        (name.replace(", ", "\n") if model["ours"] else name.replace(" (paper)", ""))
        + f"\n{'' if model['ours'] else 'paper, '}{model['averages_tasks']} tasks"
        for name, model in models.items()
    ]
    axes.set_xticks(range(len(models)), labels, fontsize=7)
    axes.set(ylim=(0, 1.05), ylabel="mean accuracy")
    axes.set_title("Averages over tasks where ICL gains 0.20 or more")
    bars.legend(loc="outside lower center", ncols=3)
    return {"cross_models_depth": depth, "cross_models_averages": bars}
