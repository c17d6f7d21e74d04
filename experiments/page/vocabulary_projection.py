"""How `experiments.vocabulary_projection` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import Section, Table, number, task_cell, text

NAME = "vocabulary_projection"


def section(result: dict[str, Any]) -> Section:
    """The words, task by task."""
    tasks = result["tasks"]
    last = np.array([task["dummy_answer_rank"][-1] for task in tasks.values()])
    best = np.array([t["dummy_answer_rank"][t["best_layer"]] for t in tasks.values()])
    words = [
        f"Read as a prediction at its best layer, theta puts the answer of its own dummy query at"
        f" rank {np.median(best):.0f} of {result['vocab_size']} (median over {len(tasks)} tasks);"
        f" by the last layer at rank {np.median(last):.0f}.",
        "A dummy answer that is high already at the best layer means that theta carries answers"
        " beside the task: compare the last-layer replay among the controls.",
    ]
    offsets = sorted({at - t["best_layer"] for t in tasks.values() for at in t["layers"]})
    titles, rows = about.titles_of(result), []
    for name, task in tasks.items():
        found = dict(zip(task["layers"], task["words"], strict=True))
        at = [found.get(task["best_layer"] + offset, []) for offset in offsets]
        rows.append(
            [
                task_cell(titles, name),
                number(task["best_layer"], 0),
                *(text(", ".join(some)) for some in at),
            ]
        )
    theirs = [
        [text(model), text(task.replace("_", " ")), text(", ".join(found))]
        for model, table in result["published"].items()
        for task, found in table.items()
    ]
    return Section(
        "What does theta say in words?",
        words,
        [
            Table(
                "Top words of the mean theta at the best layer + 0..4 (the paper shows + 2)",
                ["task", "best layer", *(f"best + {offset}" for offset in offsets)],
                rows,
            ),
            Table("The paper's Table 5", ["model", "task", "top words"], theirs),
        ],
        {
            NAME: "Median rank of a gold word when each prompt's theta is read as a prediction, on"
            " a logarithmic scale: the answer of a dummy query (left) and of the test query"
            " (right). White rings mark the best layer."
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Two heat maps of the right word's rank: task x layer."""
    from experiments.page import charts, figures

    tasks, titles = result["tasks"], about.titles_of(result)
    names = [titles[name] for name in tasks]
    layers = [str(layer) for layer in range(result["num_layers"])]
    figure, axes = figures.canvas(figures.WIDTH, 0.17 * len(tasks) + 0.8, 1, 2, sharey=True)
    high = float(np.log10(result["vocab_size"]))
    for axis, key, title in (
        (axes[0], "dummy_answer_rank", "answer of a dummy query"),
        (axes[1], "query_answer_rank", "answer of the test query"),
    ):
        grid = [np.log10(np.array(task[key]) + 1).tolist() for task in tasks.values()]
        last = key == "query_answer_rank"
        charts.heat_map(
            axis,
            grid,
            names,
            layers,
            high=high,
            label="log10 (rank + 1)" if last else "",
            colours=f"{figures.HEAT}_r",
        )
        best = [task["best_layer"] for task in tasks.values()]
        axis.plot(best, range(len(best)), "o", mfc="none", mec="white", ms=5, label="best layer")
        axis.set(xlabel="layer")
        axis.set_title(title)
    ranks = [
        float(np.median([task[key][task["best_layer"]] for task in tasks.values()]))
        for key in ("dummy_answer_rank", "query_answer_rank")
    ]
    title = (
        f"Read as a prediction at its best layer, theta puts a dummy query's answer at rank"
        f" {ranks[0]:,.0f}, the test query's at {ranks[1]:,.0f} of {result['vocab_size']:,}"
        " (median)"
    )
    ring = {"marker": "o", "ls": "", "mfc": "none", "mec": figures.quiet(), "ms": 5}
    key = [figures.line_entry("ring: the layer that is best on dev", **ring)]
    return {NAME: figures.finish(figure, result, title, key)}
