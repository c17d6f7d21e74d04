"""How `experiments.dose` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, score, text

NAME = "dose"


def section(result: dict[str, Any]) -> Section:
    """The four questions, over the tasks run."""
    tasks = result["tasks"]
    first = next(iter(tasks.values()))

    def mean(values: list[dict[str, Any]]) -> float:
        return float(np.mean([value["accuracy"] for value in values]))

    counts = [
        c
        for c in sorted(first["demonstrations"], key=int)
        if all(c in t["demonstrations"] for t in tasks.values())
    ]
    by_count = {
        c: mean([t["demonstrations"][c]["task_vector"] for t in tasks.values()]) for c in counts
    }
    words = []
    if by_count:
        words.append(
            f"Mean task-vector accuracy over {len(tasks)} tasks by demonstrations: "
            + ", ".join(f"{c}: {value:.2f}" for c, value in by_count.items())
            + "."
        )
    added = {
        a: mean([t["added"][a] for t in tasks.values()]) for a in sorted(first["added"], key=float)
    }

    def on_dev(scale: str) -> float:
        return float(np.mean([t["added"][scale]["dev_accuracy"] for t in tasks.values()]))

    best = max(added, key=on_dev)
    replaced = mean([t["replaced"] for t in tasks.values()])
    words.append(
        f"Replacing scores {replaced:.2f}; adding theta to the query's own state scores"
        f" {added['1.0']:.2f}, and at the scale that is best on dev ({best}) {added[best]:.2f};"
        " each at its own layer."
    )
    largest = max((int(c) for t in tasks.values() for c in t["averaged_over_prompts"]), default=1)
    over = mean([t["averaged_over_prompts"][str(largest)] for t in tasks.values()])
    words.append(
        f"Averaged over {largest} prompts, theta scores {over:.2f}, against {replaced:.2f} for each"
        " prompt's own."
    )
    rows = []
    for name, task in tasks.items():
        for question, values in _questions(task):
            rows += [
                [
                    text(name),
                    text(question),
                    number(float(dose), 0 if float(dose).is_integer() else 2),
                    score(value.get("task_vector", value)),
                    number(value.get("task_vector", value)["layer"], 0),
                    score(value.get("icl")),
                ]
                for dose, value in values.items()
            ]
    return Section(
        "How much of what makes a task vector?",
        [*words, *result["notes"]],
        [
            Table(
                "Accuracy on test, each condition at its own layer, chosen on dev",
                ["task", "what is varied", "dose", "task vector", "layer", "ICL"],
                rows,
            )
        ],
        {
            NAME: "Demonstrations (ICL dashed), dummy queries, prompts averaged over, and the scale"
            " at which theta is added instead of replacing (dotted line: replacing)."
        },
    )


def _questions(task: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    questions = {
        "demonstrations": task["demonstrations"],
        "dummy queries": task["dummy_queries"],
        "prompts averaged over": task["averaged_over_prompts"],
        "scale when added": task["added"],
    }
    return [
        (question, {dose: values[dose] for dose in sorted(values, key=float)})
        for question, values in questions.items()
    ]


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Four panels, a line a task."""
    from experiments.page import figures

    figure, panels = figures.canvas(13, 3.8, 1, 4, sharey=True)
    names = list(result["tasks"])
    for name, task in result["tasks"].items():
        colour = figures.COLOURS[names.index(name) % len(figures.COLOURS)]
        for axis, (question, values) in zip(panels, _questions(task), strict=True):
            doses = list(values)
            heights = [values[d].get("task_vector", values[d])["accuracy"] for d in doses]
            axis.plot(
                [float(d) for d in doses],
                heights,
                "o-",
                markersize=4,
                color=colour,
                label=figures.short(name, result["categories"][name])
                if axis is panels[0]
                else None,
            )
            if question == "demonstrations":
                icl = [values[d]["icl"]["accuracy"] for d in doses]
                axis.plot([float(d) for d in doses], icl, "--", lw=0.9, color=colour)
            if question == "scale when added":
                axis.axhline(task["replaced"]["accuracy"], color=colour, ls=":", lw=0.9)
            axis.set_xscale("log", base=2)
            ticks = sorted(float(d) for d in values)
            if ticks:
                axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set(xlabel=question, ylim=(-0.02, 1.02))
    panels[0].set_ylabel("accuracy on test")
    figure.legend(loc="outside lower center", ncols=max(1, len(names)))
    return {NAME: figure}
