"""How `experiments.positions` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import (
    Section,
    Table,
    left_out,
    mean_of,
    mean_score,
    number,
    score,
    task_cell,
    text,
)

NAME = "positions"
PLACES = {
    "arrow": "the last arrow",
    "query": "the whole query",
    "arrows": "all arrows",
    "outputs": "all outputs",
}


def section(result: dict[str, Any]) -> Section:
    """Every condition at its best layer, and one position against all outputs."""
    tasks, mean, titles = result["tasks"], result["mean"], about.titles_of(result)
    conditions = list(next(iter(tasks.values()))["dev_accuracy_by_layer"])
    columns = ["baseline", "shuffled_icl", "icl", *conditions]
    paired = result["one_against_outputs"]

    def value(name: str) -> str:
        found = mean[name]
        return f"{found['accuracy']:.2f} ({found['low_these']:.2f} to {found['high_these']:.2f})"

    words = [
        f"Into the query alone ({value('baseline')}): the arrow {value('arrow, zero-shot')}. Into"
        f" shuffled demonstrations ({value('shuffled_icl')}; in context {value('icl')}): the arrow"
        f" {value('arrow, shuffled')}, all arrows {value('arrows, shuffled')}, all outputs"
        f" {value('outputs, shuffled')}, all outputs over {result['window']} layers"
        f" {value('outputs, window, shuffled')} ({len(tasks)} tasks, each condition at the layer"
        " that dev gave it).",
        f"The arrow against all outputs, into shuffled demonstrations: {paired['difference']:+.2f}"
        f" (exact paired p = {paired['p']:.2g}, {paired['num_queries']} distinct queries).",
    ]
    rows = [
        [task_cell(titles, name), *(score(task["scores"][column]) for column in columns)]
        for name, task in tasks.items()
    ]
    summary = [[text("mean"), *(mean_score(mean[column]) for column in columns)]]
    layers = [
        [
            task_cell(titles, name),
            *(number(task["scores"][column]["layer"], 0) for column in conditions),
        ]
        for name, task in tasks.items()
    ]
    return Section(
        "One position or many?",
        [*words, *left_out(result["notes"])],
        [
            Table(
                "Accuracy on test: what is written, into which prompt",
                ["task", *columns],
                rows,
                summary,
            ),
            Table("The layer of each, the first one of a window", ["task", *conditions], layers),
        ],
        {NAME: "Dev accuracy by layer (the first one of a window), mean over tasks."},
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Curves by layer, a panel for each prompt that is written into."""
    from experiments.page import charts, figures

    tasks, mean = list(result["tasks"].values()), result["mean"]
    conditions = list(tasks[0]["dev_accuracy_by_layer"])
    figure, panels = figures.canvas(figures.WIDTH, 3.3, 1, 2, sharey=True)
    vector = figures.LOOKS["task_vector"].colour
    looks = {  # place -> colour, marker, line
        "arrow": (vector, "o", "-"),
        "query": (figures.quiet(), "v", "-"),
        "arrows": (figures.quiet(), "s", "-."),
        "outputs": (figures.ink(), "D", "-"),
    }
    key = {}
    for axis, target in zip(panels, ("zero-shot", "shuffled"), strict=True):
        for name in (name for name in conditions if name.endswith(target)):
            place, *more = name.removesuffix(f", {target}").split(", ")
            colour, marker, line = looks[place]
            curve = np.mean([task["dev_accuracy_by_layer"][name] for task in tasks], axis=0)
            label = PLACES[place] + (f", over {result['window']} layers" if more else "")
            style = {"color": colour, "marker": marker, "ms": 3, "ls": "--" if more else line}
            axis.plot(range(len(curve)), curve, lw=1.5, label=label, **style)
            key[label] = figures.line_entry(label, lw=1.5, **style)
        charts.layers(axis, result["num_layers"])
        charts.shares(axis)
        axis.set_xlabel("layer, the first one of a window")
        axis.set_title(f"into {target} prompts")
    panels[0].set_ylabel("accuracy on dev")
    title = (
        f"Into shuffled demonstrations the arrow alone scores"
        f" {mean['arrow, shuffled']['accuracy']:.2f}, all outputs"
        f" {mean['outputs, shuffled']['accuracy']:.2f} ({mean_of(len(tasks))})"
    )
    return {NAME: figures.finish(figure, result, title, list(key.values()))}
