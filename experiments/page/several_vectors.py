"""How `experiments.several_vectors` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

from experiments.page import about
from experiments.page.section import Section, Table, left_out, mean_score, score, task_cell, text

NAME = "several_vectors"
WAYS = {"base": "prompt as it is", "one": "theta at the last arrow", "many": "theta at every arrow"}


def section(result: dict[str, Any]) -> Section:
    """Base, one and many by number of demonstrations."""
    columns = [
        f"{way} {count}"
        for count in result["counts"]
        for way in WAYS
        if count or way != "many"  # without demonstrations there is one arrow
    ]
    groups = {"tasks": result["mean"], "two-way mixes": result["mean_of_mixes"]}
    groups = {name: group for name, group in groups.items() if group}
    words = []
    for name, group in groups.items():
        most = result["counts"][-1]
        parts = [
            f"{count} demonstrations {paired['difference']:+.2f} (p = {paired['p']:.2g})"
            for count, paired in group["many_against_one"].items()
        ]
        values = ", ".join(
            f"{WAYS[way]} {group['columns'][f'{way} {most}']['accuracy']:.2f}"
            f" ({group['columns'][f'{way} {most}']['low_these']:.2f} to"
            f" {group['columns'][f'{way} {most}']['high_these']:.2f})"
            for way in WAYS
            if f"{way} {most}" in group["columns"]
        )
        words.append(
            f"Mean over {name}, prompts of {most} demonstrations: {values}."
            + (
                " Every arrow against the last one, exact paired test: " + "; ".join(parts) + "."
                if parts
                else ""
            )
        )
    titles = about.titles_of(result)
    rows = [
        [task_cell(titles, name), *(score(task["scores"].get(column)) for column in columns)]
        for name, task in result["tasks"].items()
    ]
    summary = [
        [
            text(f"mean of {name}"),
            *(mean_score(group["columns"].get(column)) for column in columns),
        ]
        for name, group in groups.items()
    ]
    return Section(
        "One vector, or one at every arrow?",
        [*words, *left_out(result["notes"])],
        [
            Table(
                "Accuracy on test by the prompt's demonstrations; each way at its own layer",
                ["task", *columns],
                rows,
                summary,
            )
        ],
        {NAME: "Mean accuracy by the prompt's demonstrations, with 95 % intervals."},
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """A panel for tasks, and one for mixes."""
    from experiments.page import charts, figures

    groups = {"tasks": result["mean"], "two-way mixes": result["mean_of_mixes"]}
    groups = {name: group for name, group in groups.items() if group}
    size = (figures.WIDTH if len(groups) > 1 else 7.0, 2.9)
    figure, panels = figures.canvas(*size, 1, len(groups), sharey=True)
    vector = figures.LOOKS["task_vector"].colour
    styles: dict[str, dict[str, Any]] = {
        "base": {"color": figures.LOOKS["icl"].colour, "ls": "--", "marker": "D"},
        "one": {"color": vector, "ls": "-", "marker": "o"},
        "many": {"color": vector, "ls": ":", "marker": "s"},
    }
    most = result["counts"][-1]
    for axis, (name, group) in zip(panels, groups.items(), strict=True):
        for way, label in WAYS.items():
            counts = [c for c in result["counts"] if f"{way} {c}" in group["columns"]]
            shown = [group["columns"][f"{way} {count}"] for count in counts]
            heights = [value["accuracy"] for value in shown]
            low, high = ([value[end] for value in shown] for end in ("low_these", "high_these"))
            axis.plot(counts, heights, ms=5, lw=1.6, label=label, **styles[way])
            axis.fill_between(
                counts, low, high, alpha=0.12, color=styles[way]["color"], linewidth=0
            )
        axis.set_xlabel("demonstrations")
        axis.set_xticks(result["counts"])
        axis.set_title(f"mean of {name}")
        charts.shares(axis)
    panels[0].set_ylabel("accuracy on test")
    columns = next(iter(groups.values()))["columns"]
    said = "; ".join(
        f"{label} {columns[f'{way} {most}']['accuracy']:.2f}"
        for way, label in WAYS.items()
        if f"{way} {most}" in columns
    )
    key = [figures.line_entry(label, ms=5, **styles[way]) for way, label in WAYS.items()]
    title = f"A prompt of {most} demonstrations: {said}"
    return {NAME: figures.finish(figure, result, title, key)}
