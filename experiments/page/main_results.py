"""How `experiments.main_results` is shown: its words, tables and figures."""

# Long because: one result has four tables and two figures.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.page.section import Cell, Section, Table, number, score, text
from taskvec_jax.evaluation.controls import CONTROLS
from taskvec_jax.evaluation.judging import is_correct
from taskvec_jax.tasks import Pair
from taskvec_jax.tasks.task import CONVENTIONS  # for results written before they held `match`

GOOD_TASK = 0.75  # the same number as in `experiments.main_results`, which pages do not import
MEASURES = ("baseline", "task_vector", "icl")


def section_headline(model: str, mean: Mapping[str, float], shots: int, tasks: int) -> str:
    """What one vector does for a model, in a sentence that is true of any scores.

    Args:
      mean: over tasks, of baseline, task_vector and icl.
    """
    base, vector, icl = mean["baseline"], mean["task_vector"], mean["icl"]
    change = (
        f"lifts zero-shot accuracy from {base:.2f} to {vector:.2f}"
        if vector > base
        else f"does not lift zero-shot accuracy ({base:.2f} without, {vector:.2f} with it)"
    )
    share = (
        f": {(vector - base) / (icl - base):.0%} of what in-context learning adds"
        if icl > base and vector > base
        else ""
    )
    return (
        f"On {model} one vector {change}, where {shots}-shot prompting reaches {icl:.2f}"
        f" ({tasks} tasks){share}."
    )


def section(result: dict[str, Any]) -> Section:
    """The table and what it says."""
    tasks, mean = result["tasks"], result["mean"]
    beating, count = result["beating"], len(tasks)
    last = result["num_layers"] - 1
    words = [
        section_headline(result["model"], mean, result["settings"]["num_demonstrations"], count),
        f"{len(beating)} of {count} task vectors beat every control: {_all_controls()}"
        " (the 95 % interval of each difference is above zero)."
        + (
            " Not shown for: " + ", ".join(name for name in tasks if name not in beating) + "."
            if len(beating) < count
            else ""
        ),
        f"Theta from shuffled labels scores {mean['shuffled_labels']:.2f} (ICL with the same"
        f" shuffled demonstrations: {mean['icl_shuffled_labels']:.2f}). They keep the inputs and"
        " the kind of answer, and break only the pairing. Without this control"
        f" {len(result['beating_all_but_shuffled_labels'])} of {count} beat their controls.",
        f"One layer for all tasks (layer {result['common_layer']} of 0–{last}) scores"
        f" {mean['common_layer']:.2f} instead of {mean['task_vector']:.2f} with each task's own.",
    ]
    where = result["published_model"]
    published_title = where or "mean of its 7 models"
    if where:
        theirs = [task["published"]["task_vector"] for task in tasks.values() if task["published"]]
        words.append(
            f"The paper reports {np.mean(theirs):.2f} for the task vector on {where}"
            f" ({len(theirs)} of these tasks)."
        )
    return Section(
        "Does one vector carry the task?",
        words,
        [
            _scores_table(
                tasks, published_title, "published" if where else "published_mean_of_7_models"
            ),
            _controls_table(tasks),
            _strict_table(tasks),
            _worst_table(tasks),
        ],
        {
            "main_results": "Zero-shot, task vector and in-context accuracy on test with 95 %"
            " intervals. The tick is the best control; hollow diamonds are the published"
            f" task-vector scores ({where or 'mean of the seven published models'}).",
            "accuracy_by_layer": "Dev accuracy with theta injected after each layer. Thin lines"
            " are tasks; the band is one standard deviation over the tasks whose best exceeds"
            f" {GOOD_TASK} (the paper's rule).",
        },
    )


def _all_controls() -> str:
    """The controls in words, zero-shot among them."""
    *first, last = ("zero-shot", *(control.phrase for control in CONTROLS.values()))
    return f"{', '.join(first)} and {last}"


def _name(name: str) -> Cell:
    return text(name)


def _scores_table(tasks: dict[str, Any], published_title: str, key: str) -> Table:
    rows = []
    for name, task in tasks.items():
        theirs = task[key] or {}
        best = task["best_control"]
        height = task["baseline"] if best == "baseline" else task["controls"][best]
        rows.append(
            [
                _name(name),
                score(task["baseline"]),
                score(task["task_vector"], "good" if task["beats_controls"] else "bad"),
                score(task["icl"]),
                score(height),
                text(
                    "beats controls" if task["beats_controls"] else "not shown",
                    "good" if task["beats_controls"] else "bad",
                    task["verdict"],
                ),
                Cell(str(task["best_layer"]), task["best_layer"]),
                score(task["common_layer"]),
                *(number(theirs.get(measure)) for measure in MEASURES),
            ]
        )
    return Table(
        f"Accuracy on test (own layer chosen on dev) with 95 % intervals; paper: {published_title}",
        [
            "task",
            "zero-shot",
            "task vector",
            "ICL",
            "best control",
            "verdict",
            "layer",
            "one layer for all",
            "paper: zero-shot",
            "paper: vector",
            "paper: ICL",
        ],
        rows,
    )


def _controls_table(tasks: dict[str, Any]) -> Table:
    rows = [
        [
            _name(name),
            score(task["task_vector"], "good" if task["beats_controls"] else "bad"),
            score(task["baseline"]),
            *(score(task["controls"][control]) for control in CONTROLS),
            score(task["icl_shuffled_labels"]),
            text(task["verdict"], "good" if task["beats_controls"] else "bad"),
        ]
        for name, task in tasks.items()
    ]
    return Table(
        "Controls, on the same test prompts by the same rule",
        [
            "task",
            "task vector",
            "zero-shot",
            *(control.title for control in CONTROLS.values()),
            "ICL, shuffled labels",
            "in words",
        ],
        rows,
    )


def _strict_table(tasks: dict[str, Any]) -> Table:
    rows = [
        [
            _name(name),
            score(task["task_vector"]),
            score(task["task_vector_strict"]),
            score(task["icl"]),
            score(task["icl_strict"]),
            Cell(f"{task['num_pairs']} of {task['num_all_pairs']}", task["num_pairs"]),
            text("␣x-> ␣y" if task["leading_space"] else "x->y"),
            text("; ".join(task["warnings"]), "bad" if task["warnings"] else ""),
        ]
        for name, task in tasks.items()
    ]
    return Table(
        "The strict rule (the first token of an accepted answer), and what the tokenizer kept",
        [
            "task",
            "task vector",
            "strict",
            "ICL",
            "ICL strict",
            "pairs kept",
            "form",
            "warnings",
        ],
        rows,
    )


def _worst_table(tasks: dict[str, Any]) -> Table:
    """The tasks in order of how far the vector falls behind ICL, and examples of how it fails."""
    order = sorted(
        tasks,
        key=lambda name: tasks[name]["task_vector"]["accuracy"] - tasks[name]["icl"]["accuracy"],
    )
    rows = []
    for name in order:
        wrong = [e for e in tasks[name]["examples"] if not _right(tasks[name], e, "task_vector")]
        # Those that ICL gets right say most about the vector.
        wrong.sort(key=lambda e: not _right(tasks[name], e, "icl"))
        rows += [
            [
                _name(name),
                text(e["query"].strip()),
                text(e["answer"].strip()),
                text(e["icl"] or "(nothing)"),
                text(e["task_vector"] or "(nothing)"),
            ]
            for e in wrong[:4]
        ]
    return Table(
        "Worst examples: up to four a task where the vector's answer is not the first accepted one",
        ["task", "query", "answer", "ICL says", "with the task vector"],
        rows,
    )


def _right(task: dict[str, Any], example: dict[str, str], measure: str) -> bool:
    """By the paper's rule, other accepted answers left aside: examples do not hold them."""
    pair = Pair(example["query"], example["answer"])
    match = task.get("match") or CONVENTIONS.get(task["category"], {}).get("match", "exact")
    return is_correct(match, pair, example[measure])


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Bars with intervals, and accuracy by layer."""
    return {"main_results": _draw_bars(result), "accuracy_by_layer": _draw_layers(result)}


def _draw_bars(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    tasks = result["tasks"]
    figure, (axes,) = figures.canvas(9, 0.42 * len(tasks) + 1.6)
    place = np.arange(len(tasks))[::-1]
    colours = {"baseline": "#b9bec6", "task_vector": "#4269d0", "icl": "#3ca951"}
    titles = {"baseline": "zero-shot", "task_vector": "task vector", "icl": "ICL"}
    for k, measure in enumerate(("baseline", "task_vector", "icl")):
        values = [task[measure] for task in tasks.values()]
        share = np.array([value["accuracy"] for value in values])
        spread = np.abs(np.array([[v["low"], v["high"]] for v in values]).T - share)
        axes.barh(
            place + 0.27 * (1 - k), share, 0.25, color=colours[measure], label=titles[measure]
        )
        axes.errorbar(
            share,
            place + 0.27 * (1 - k),
            xerr=spread,
            fmt="none",
            ecolor=figures.ink(),
            elinewidth=0.7,
            alpha=0.6,
        )
    for y, task in zip(place, tasks.values(), strict=True):
        best = task["best_control"]
        height = (task["baseline"] if best == "baseline" else task["controls"][best])["accuracy"]
        axes.plot([height, height], [y - 0.42, y + 0.42], color="#ff725c", linewidth=2)
        theirs = task["published"] or task["published_mean_of_7_models"]
        if theirs:
            axes.plot(
                theirs["task_vector"], y, "D", markersize=5, fillstyle="none", color=figures.ink()
            )
    axes.plot([], [], color="#ff725c", linewidth=2, label="best control")
    where = result["published_model"] or "mean of 7 models"
    axes.plot(
        [], [], "D", fillstyle="none", color=figures.ink(), label=f"paper's task vector ({where})"
    )
    axes.set_yticks(
        place,
        [
            figures.short(name, task["category"]) + ("" if task["beats_controls"] else " ✗")
            for name, task in tasks.items()
        ],
    )
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(tasks) - 0.4), xlabel="accuracy on test")
    axes.set_title(
        f"{result['model']}: one vector against the whole prompt\n✗ not shown to beat its controls"
    )
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def _draw_layers(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    tasks, good = result["tasks"], result["curve_of_good_tasks"]
    figure, (axes,) = figures.canvas(8.5, 4.8)
    layers = np.arange(result["num_layers"])
    shown = set()
    categories = [task["category"] for task in tasks.values()]
    for category, task in zip(categories, tasks.values(), strict=True):
        axes.plot(
            layers,
            task["dev_accuracy_by_layer"],
            color=figures.colour_of(category, categories),
            linewidth=0.9,
            alpha=0.55,
            label=None if category in shown else category,
        )
        shown.add(category)
    everything = np.mean([task["dev_accuracy_by_layer"] for task in tasks.values()], axis=0)
    axes.plot(layers, everything, "--", color=figures.ink(), label=f"mean of {len(tasks)}")
    if good["mean"]:
        mean, std = np.array(good["mean"]), np.array(good["std"])
        axes.fill_between(layers, mean - std, mean + std, color=figures.ink(), alpha=0.1, lw=0)
        axes.plot(
            layers,
            mean,
            color=figures.ink(),
            linewidth=2.4,
            label=f"mean of {len(good['tasks'])} tasks above {GOOD_TASK}, ± 1 sd",
        )
        peak = good["peak_layer"]
        axes.annotate(
            f"layer {peak}: {mean[peak]:.2f}",
            (peak, mean[peak]),
            xytext=(8, 8),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold",
        )
        axes.plot(peak, mean[peak], "o", color=figures.ink())
    axes.set(
        xlabel="layer after which θ is read and written (0-based)",
        ylabel="dev accuracy with θ injected",
        xlim=(0, max(1, len(layers) - 1)),
        ylim=(-0.02, 1.02),
    )
    axes.set_title(f"{result['model']}: where the task vector works")
    axes.legend(loc="upper left", ncols=2)
    return figure
