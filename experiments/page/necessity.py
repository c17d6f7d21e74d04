"""How `experiments.necessity` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import Section, Table, left_out, number, task_cell, text

NAME = "necessity"
TITLES = {
    "no_attention": "(a) no attention to demonstrations above the layer",
    "other_state": "(b) the arrow's state replaced by another task's",
    "both": "(c) both",
}


def section(result: dict[str, Any]) -> Section:
    """Where the two curves cross half of what in-context learning gains."""
    tasks, shown, titles = result["tasks"], _shown(result), about.titles_of(result)
    able = [name for name, task in tasks.items() if task["icl_able"]]
    which = (
        f"the {len(able)} of {len(tasks)} tasks that in-context learning does (chosen on dev)"
        if result["mean"]["icl_able"]
        else f"all {len(tasks)} tasks, none of which in-context learning does on dev"
    )
    crossed = shown["crossings"]
    words = [
        f"Over {which}: zero-shot {_interval(shown['baseline'])}, in context"
        f" {_interval(shown['icl'])}, with another task's demonstrations"
        f" {_interval(shown['other_icl'])}.",
        "The query needs the demonstrations"
        + (
            f" no more after layer {crossed['no_attention']}: from there on, cut off from them, it"
            " keeps at least half of what in-context learning gains."
            if crossed["no_attention"] is not None
            else " to the end: cut off from them after any layer before the last, it does not keep"
            " half of what in-context learning gains."
        ),
        "The arrow's state is necessary"
        + (
            f" from layer {crossed['other_state']} on: replaced by another task's there, less than"
            " half of the gain is left."
            if crossed["other_state"] is not None
            else " at no layer: replaced by another task's anywhere, half of the gain or more is"
            " left."
        ),
    ]
    rows = [
        [
            task_cell(titles, name),
            text("yes" if task["icl_able"] else "no", "" if task["icl_able"] else "quiet"),
            number(float(np.mean(task["correct"]["baseline"]))),
            number(float(np.mean(task["correct"]["icl"]))),
            number(float(np.mean(task["correct"]["other_icl"]))),
            number(task["crossings"]["no_attention"], 0),
            number(task["crossings"]["other_state"], 0),
        ]
        for name, task in tasks.items()
    ]
    return Section(
        "Is the arrow's state necessary in the whole prompt?",
        [*words, *left_out(result["notes"])],
        [
            Table(
                "Where the curves cross half of in-context learning's gain (– : nowhere, or no"
                " gain)",
                [
                    "task",
                    "ICL does it",
                    "zero-shot",
                    "ICL",
                    "other demonstrations",
                    "(a) crosses at layer",
                    "(b) crosses at layer",
                ],
                rows,
            )
        ],
        {
            NAME: f"Accuracy of the whole prompt by layer l, mean over {which}, with 95 % intervals"
            " for these tasks: the query may not attend to the demonstrations above l, the arrow's"
            " state after l is another task's, and both."
        },
    )


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    return result["mean"]["icl_able"] or result["mean"]["all"]


def _interval(value: dict[str, Any]) -> str:
    return f"{value['accuracy']:.2f} ({value['low_these']:.2f} to {value['high_these']:.2f})"


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """The three curves with their intervals."""
    from experiments.page import charts, figures

    shown, count = _shown(result), result["num_layers"]
    figure, (axis,) = figures.canvas(9, 3.4)
    key, styles = (
        [],
        {
            "no_attention": (figures.ink(), "-", "o"),
            "other_state": (figures.ink(), "--", "v"),
            "both": (figures.quiet(), "-.", "s"),
        },
    )
    for kind, title in TITLES.items():
        colour, line, marker = styles[kind]
        heights = [value["accuracy"] for value in shown[kind]]
        low, high = ([value[end] for value in shown[kind]] for end in ("low_these", "high_these"))
        style = {"color": colour, "ls": line, "marker": marker, "ms": 3, "lw": 1.6}
        axis.plot(range(count), heights, label=title, **style)
        axis.fill_between(range(count), low, high, alpha=0.12, color=colour, linewidth=0)
        key.append(figures.line_entry(title, **style))
    levels = {name: shown[name]["accuracy"] for name in ("icl", "baseline")}
    for name, height in levels.items():
        charts.level(axis, height, name)
    key += figures.key_of(
        levels, **{k: f"{figures.LOOKS[k].title} {height:.2f}" for k, height in levels.items()}
    )
    charts.layers(axis, count)
    charts.shares(axis)
    axis.set(xlabel="layer l (0-based)", ylabel="accuracy on test")
    crossed = shown["crossings"]
    needed = (
        f"The query needs the demonstrations up to layer {crossed['no_attention']}"
        if crossed["no_attention"] is not None
        else "The query needs the demonstrations to the end"
    )
    state = (
        f"the arrow's state is necessary from layer {crossed['other_state']} on"
        if crossed["other_state"] is not None
        else "the arrow's state is necessary at no layer"
    )
    return {NAME: figures.finish(figure, result, f"{needed}; {state}", key)}
