"""How `experiments.necessity` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, text

NAME = "necessity"
TITLES = {
    "no_attention": "(a) no attention to demonstrations above the layer",
    "other_state": "(b) the arrow's state replaced by another task's",
    "both": "(c) both",
}


def section(result: dict[str, Any]) -> Section:
    """Where the two curves cross half of what in-context learning gains."""
    tasks, shown = result["tasks"], _shown(result)
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
            text(name),
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
        [*words, *result["notes"]],
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
            " state after l is another task's, and both. Dashed: in context and zero-shot."
        },
    )


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    return result["mean"]["icl_able"] or result["mean"]["all"]


def _interval(value: dict[str, Any]) -> str:
    return f"{value['accuracy']:.2f} ({value['low_these']:.2f} to {value['high_these']:.2f})"


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """The three curves with their intervals."""
    from experiments.page import figures

    shown = _shown(result)
    figure, (axis,) = figures.canvas(7, 3.8)
    layers = range(result["num_layers"])
    for colour, (kind, title) in zip(figures.COLOURS, TITLES.items(), strict=False):
        heights = [value["accuracy"] for value in shown[kind]]
        low, high = ([value[end] for value in shown[kind]] for end in ("low_these", "high_these"))
        axis.plot(layers, heights, "o-", markersize=3, color=colour, label=title)
        axis.fill_between(layers, low, high, alpha=0.15, color=colour, linewidth=0)
    for name, label in (("icl", "ICL"), ("baseline", "zero-shot")):
        axis.axhline(shown[name]["accuracy"], ls="--", lw=0.9, color=figures.ink())
        axis.annotate(label, (0, shown[name]["accuracy"]), fontsize=7, va="bottom")
    axis.set(xlabel="layer l", ylabel="accuracy on test", ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower center", ncols=1)
    return {NAME: figure}
