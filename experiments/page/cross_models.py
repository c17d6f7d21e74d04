"""How `experiments.cross_models` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import Cell, Section, Table, number

MEASURES = ("baseline", "task_vector", "icl")


def section(result: dict[str, Any]) -> Section:
    """Depth and averages, model by model."""
    models = _named(result)
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
            Cell(f"{name} (this run)" if model["ours"] else name),
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
            "cross_models_depth": "Mean dev accuracy by layer, layers as a share of depth, by first"
            " tokens; four of the paper's curves are read off its figure.",
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
    """Curves over depth, and averages."""
    return {
        "cross_models_depth": _draw_depth(result),
        "cross_models_averages": _draw_averages(result),
    }


def _draw_depth(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    models = _named(result)
    figure, panels = figures.small_multiples(len(models), 4, 1.5)
    ours = [model for model in models.values() if model["ours"]]
    for axes, (name, model) in zip(panels, models.items(), strict=True):
        for other in [] if model["ours"] else ours:
            curve = _curve(other)
            axes.plot(*curve, color=figures.quiet(), ls=":", lw=1.2, label="ours")
        depth, curve = _curve(model)
        charts.curve(axes, depth, curve, "task_vector", linewidth=2.4 if model["ours"] else 1.5)
        best = int(np.nanargmax(curve))
        axes.plot(depth[best], curve[best], "o", color=figures.LOOKS["task_vector"].colour, ms=6)
        charts.panel_title(axes, name)
        charts.shares(axes)
        axes.set_xlim(0, 1.02)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    charts.outer_labels(panels, "depth: layer / number of layers", "accuracy")
    peaks = [_depth(model) for model in ours]
    theirs = [_depth(model) for model in models.values() if not model["ours"]]
    title = (
        f"Task vectors work best at {' and '.join(f'{peak:.0%}' for peak in peaks)} of the depth"
        f" here, at {min(theirs):.0%} to {max(theirs):.0%} in the paper's models"
    )
    key = [
        *figures.key_of(("task_vector",), task_vector="mean dev curve of the model; dot: its peak"),
        figures.line_entry("ours, to compare", color=figures.quiet(), ls=":", lw=1.2),
    ]
    return figures.finish(figure, result, title, key)


def _curve(model: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Depth and mean accuracy of every layer."""
    curve = np.array([np.nan if v is None else v for v in model["curve"]], float)
    return np.arange(1, len(curve) + 1) / len(curve), curve


def _draw_averages(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    models = _named(result)
    figure, (axes,) = figures.canvas(9, 0.28 * len(models) + 0.7)
    places = np.arange(len(models))[::-1]
    for measure in MEASURES:
        look = figures.LOOKS[measure]
        heights = [model["averages"][measure] for model in models.values()]
        values = np.array([np.nan if height is None else height for height in heights])
        axes.plot(values, places, look.marker, color=look.colour, ms=7, label=look.title)
    for y in places[:-1]:
        charts.rule(axes, y - 0.5)
    names = [f"{name}, {model['averages_tasks']} tasks" for name, model in models.items()]
    axes.set_yticks(places, names)
    charts.shares(axes, "x")
    axes.set(ylim=(-0.6, len(models) - 0.4), xlabel="mean accuracy over tasks where ICL gains .20")
    shares = [
        f"{share:.0%}"
        for model in models.values()
        if model["ours"] and (share := _recovered(model)) is not None
    ]
    theirs = [share for m in models.values() if not m["ours"] and (share := _recovered(m))]
    had = " and ".join(shares) or "none"
    title = (
        f"Of what ICL gains, theta has {had} here, {min(theirs):.0%} to {max(theirs):.0%} in the"
        " paper's models"
    )
    key = [
        figures.line_entry(look.title, color=look.colour, marker=look.marker, ls="", ms=7)
        for look in (figures.LOOKS[measure] for measure in MEASURES)
    ]
    return figures.finish(figure, result, title, key)


def _named(result: dict[str, Any]) -> dict[str, Any]:
    """The models by the names they are shown by."""
    names = {name: about.without_directories(name) for name in result["models"]}
    shown = list(names.values())
    return {
        names[name] if shown.count(names[name]) == 1 else name: model
        for name, model in result["models"].items()
    }
