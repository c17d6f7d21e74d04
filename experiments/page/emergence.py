"""How `experiments.emergence` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

from experiments.page.section import Section, Table, mean_of, number, text

NAME = "emergence"


def section(result: dict[str, Any]) -> Section:
    """The table of steps, and when things appeared."""

    def at(key: str) -> str:
        step = result["appears"][key]
        return "does not appear" if step is None else f"appears by step {step}"

    words = [
        f"In-context learning {at('icl')}, the task vector {at('task_vector')} (the first step"
        " from which on the score stays above half of its highest mean)."
    ]
    rows = [
        [
            text(f"step {step['step']}"),
            *(number(step[key]) for key in ("baseline", "icl", "task_vector")),
            number(step["best_layer"], 0),
        ]
        for step in result["steps"]
    ]
    columns = ["step", "zero-shot", "ICL", "task vector", "best layer"]
    caption = f"Mean of {len(result['settings']['tasks'])} tasks by step"
    return Section(
        "When does the task vector appear?",
        words,
        [Table(caption, columns, rows)],
        {NAME: "Left: mean dev accuracy with theta injected, step x layer. Right: by step."},
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Scores by step, and a heat map step x layer."""
    from experiments.page import charts, figures

    steps = result["steps"]
    grid = [step["dev_accuracy_by_layer"] for step in steps]
    figure, (left, right) = figures.canvas(figures.WIDTH, max(3.0, 0.17 * len(steps) + 1), 1, 2)
    names = [f"{step['step']:,}" for step in steps]
    for key in ("baseline", "task_vector", "icl"):
        look = figures.LOOKS[key]
        charts.curve(
            left, range(len(steps)), [s[key] for s in steps], key, marker=look.marker, ms=4
        )
    left.set_xticks(range(len(steps)), names, rotation=90)
    left.set(xlabel="training step")
    left.set_title(f"accuracy on test, {mean_of(len(result['settings']['tasks']))}")
    charts.shares(left)
    layers = [str(layer) for layer in range(len(grid[0]))]
    charts.heat_map(right, grid, names, layers, label="accuracy")
    right.set(xlabel="layer after which theta is read and written", ylabel="training step")
    right.set_title("task vector on dev, by first tokens")
    when = result["appears"]
    title = "; ".join(
        f"{what} {'does not appear' if when[key] is None else f'appears by step {when[key]:,}'}"
        for key, what in (("icl", "In-context learning"), ("task_vector", "the task vector"))
    )
    key = figures.key_of(("baseline", "task_vector", "icl"))
    return {NAME: figures.finish(figure, result, title, key)}
