"""How `experiments.emergence` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

from experiments.page.section import Section, Table, number, text

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
    columns = ["step", "baseline", "ICL", "task vector", "best layer"]
    caption = f"Mean of {len(result['settings']['tasks'])} tasks by step"
    return Section(
        "When does the task vector appear?",
        words,
        [Table(caption, columns, rows)],
        {NAME: "Left: mean dev accuracy with theta injected, step x layer. Right: by step."},
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """A heat map step x layer, and scores by step."""
    from experiments.page import figures

    steps = result["steps"]
    grid = [step["dev_accuracy_by_layer"] for step in steps]
    figure, axes = figures.canvas(11, 4.2, 1, 2)
    names = [str(step["step"]) for step in steps]
    layers = [str(layer) for layer in range(len(grid[0]))]
    wide = len(layers) > 12
    figures.heat_map(
        axes[0], grid, names, layers, label="dev accuracy", write="" if wide else ".2f"
    )
    axes[0].set(xlabel="layer after which θ is read and written", ylabel="training step")
    axes[0].set_title("task vector by step and layer")
    shown = (("icl", "in context"), ("task_vector", "task vector"), ("baseline", "zero-shot"))
    for colour, (key, label) in zip(figures.COLOURS, shown, strict=False):
        axes[1].plot(range(len(steps)), [s[key] for s in steps], "o-", color=colour, label=label)
    axes[1].set_xticks(range(len(steps)), names, rotation=45)
    axes[1].set(xlabel="training step", ylim=(-0.02, 1.02))
    axes[1].set_title(f"mean of {len(result['settings']['tasks'])} tasks")
    axes[1].legend(loc="upper left")
    return {NAME: figure}
