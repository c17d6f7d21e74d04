"""How `experiments.layer_sweep` is shown: its words and its figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page import about, by_layer
from experiments.page.section import (
    Cell,
    Section,
    Table,
    headline,
    mean_score,
    number,
    score,
    span,
    task_cell,
    text,
)

NAME = "layer_sweep"
COLUMNS = {
    "baseline": "zero-shot",
    "task_vector": "task vector",
    "icl": "ICL",
    "random": "random vector",
}


def section(result: dict[str, Any]) -> Section:
    """The means, and where the mean curve peaks; the rows were printed as they came."""
    curve = np.mean([task["dev_accuracy_by_layer"] for task in result["tasks"].values()], axis=0)
    peak = result["peak"]
    able = result["mean"]["icl_able"]
    mean = {name: value["accuracy"] for name, value in (able or result["mean"]["all"]).items()}
    count = len(result["groups"]["icl_able" if able else "all"])
    which = f"{count} tasks that ICL does" if able else f"{count} tasks, none of which ICL does"
    shots = result["settings"]["num_demonstrations"]
    words = [headline(result["model"], mean, shots, which)]
    for group, title in (("icl_able", "tasks that ICL does on dev"), ("all", "tasks, all of them")):
        if means := result["mean"][group]:
            words.append(
                f"Mean of {len(result['groups'][group])} {title}: "
                + ", ".join(f"{name} {_mean(means[key])}" for key, name in COLUMNS.items())
            )
            first, whole = (
                result[f"mean_{rule}"][group]["task_vector"]["accuracy"]
                for rule in ("paper", "full")
            )
            words[-1] += f"; task vector by first tokens {first:.3f}, by whole answers {whole:.3f}."
    if gain := result["share_of_icl_gain"]["icl_able"]:
        words.append(f"The vector has {span(gain)} of ICL's gain over zero-shot.")
    if result["given_icl"]:
        right, wrong = (result["given_icl"][name] for name in ("right", "wrong"))
        words.append(
            f"The vector is right on {span(right)} of the prompts that ICL gets right, and on"
            f" {span(wrong)} of those that it gets wrong."
        )
    steady = "" if peak["share"] is None else f" (in {peak['share']:.0%} of draws of the tasks)"
    words.append(
        f"The mean dev curve peaks after layer {peak['layer']} of 0-{len(curve) - 1}{steady} at"
        f" {curve.max():.3f}. The run took {result['provenance']['seconds']:.0f} s."
    )
    words.append(
        "Means have two 95 % intervals in brackets: for these tasks, and for tasks like these,"
        " which were not drawn at random. Controls, and the share of the gain that needs the right"
        " pairs, are in experiments.main_results."
    )
    return Section(
        "Where does the task vector work?",
        words,
        captions={
            NAME: "Zero-shot prompts with theta injected after each layer: one thin line a task,"
            f" their mean in blue. {by_layer.SCORING}",
            f"{NAME}_tasks": f"The same, a panel a task. {by_layer.SCORING}",
        },
        page_tables=[_table(result)],
    )


def _table(result: dict[str, Any]) -> Table:
    """A row a task."""
    titles = about.titles_of(result)
    rows = [
        [
            task_cell(titles, name),
            text("yes" if task["icl_able"] else "no"),
            *(score(task[column]) for column in COLUMNS),
            Cell(str(task["best_layer"]), task["best_layer"]),
            number(task["icl"]["queries"], 0),
        ]
        for name, task in result["tasks"].items()
    ]
    summary = [
        [text(f"mean, {title}"), text(""), *(mean_score(means[column]) for column in COLUMNS)]
        + [text("")] * 2
        for group, title in (("icl_able", "tasks ICL does"), ("all", "all tasks"))
        if (means := result["mean"][group])
    ]
    rule = next(iter(result["tasks"].values()))["rule"]
    return Table(
        f"Accuracy on test by {about.RULES[rule]}, layers chosen on dev, with 95 % intervals",
        ["task", "ICL does it", *COLUMNS.values(), "layer", "distinct queries"],
        rows,
        summary,
    )


def _mean(mean: dict[str, Any]) -> str:
    """`.442 (.418 to .468; .293 to .586)`."""
    these = f"{mean['low_these']:.3f} to {mean['high_these']:.3f}"
    wide = "" if mean["low"] is None else f"; {mean['low']:.3f} to {mean['high']:.3f}"
    return f"{mean['accuracy']:.3f} ({these}{wide})"


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by layer: the mean over tasks, and a small panel a task."""
    return {NAME: by_layer.draw_mean(result), f"{NAME}_tasks": by_layer.draw_tasks(result)}
