"""How `experiments.main_results` is shown: its words, tables and figures."""

# Long because: one result has five tables and three figures.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.page import about, by_layer
from experiments.page.section import (
    Cell,
    Section,
    Table,
    headline,
    number,
    score,
    span,
    task_cell,
    text,
)
from taskvec_jax.evaluation.controls import CONTROLS

EXAMPLES = 3  # of wrong answers of a task
MEASURES = ("baseline", "task_vector", "icl")
TITLES = {"baseline": "zero-shot", "icl": "ICL", "task_vector": "task vector"}
PHRASES = {"baseline": "zero-shot"} | {name: c.phrase for name, c in CONTROLS.items()}
WHOLE = {"full": "whole answers", "paper": "first tokens, as the paper scores them"}


def section(result: dict[str, Any]) -> Section:
    """The table and what it says."""
    tasks, last = result["tasks"], result["num_layers"] - 1
    able = result["mean"]["icl_able"]
    group = "icl_able" if able else "all"
    mean = {name: value["accuracy"] for name, value in result["mean"][group].items()}
    count = len(result["groups"][group])
    which = f"{count} tasks that ICL does" if able else f"{count} tasks, none of which ICL does"
    words = [
        headline(result["model"], mean, result["settings"]["num_demonstrations"], which),
        *_statistics(result),
    ]
    one, own = (result["common_layer_paper"][name] for name in ("one_layer", "own_layer"))
    words.append(
        f"One layer for all tasks (layer {result['common_layer']} of 0–{last}) scores {one:.2f}"
        f" instead of {own:.2f} with each task's own (first tokens, all tasks)."
    )
    where = result["published_model"]
    key = "published" if where else "published_mean_of_7_models"
    if where:
        theirs = [task["published"]["task_vector"] for task in tasks.values() if task["published"]]
        words.append(
            f"The paper reports {np.mean(theirs):.2f} for the task vector on {where}"
            f" ({len(theirs)} of these tasks{_other_pairs(result)})."
        )
    published_title = where or "mean of its 7 models"
    return Section(
        "Does one vector carry the task?",
        words,
        [
            _scores_table(result, published_title, key),
            _controls_table(tasks),
            _graded_table(tasks),
            _data_table(tasks),
            _worst_table(tasks),
        ],
        {
            "main_results": "Zero-shot, task vector and in-context accuracy on test by"
            f" {WHOLE[next(iter(tasks.values()))['rule']]}, with 95 % intervals. The tick is the"
            " hardest control; hollow diamonds are the published"
            f" task-vector scores ({where or 'mean of the seven published models'}"
            f"{_other_pairs(result)}).",
            "accuracy_by_layer": "Zero-shot prompts with theta injected after each layer: one thin"
            f" line a task, their mean in blue. {by_layer.SCORING}",
            "accuracy_by_layer_tasks": f"The same, a panel a task. {by_layer.SCORING}",
        },
    )


def _statistics(result: dict[str, Any]) -> list[str]:
    """The comparison with the controls, the pairing and the conditional accuracies, in words."""
    tasks, primary = result["tasks"], result["primary"]
    words, titles = [], _titles(tasks)
    if primary:
        difference = primary["difference"]
        words.append(
            f"Over the {primary['num_tasks']} tasks that ICL does on dev, the vector's mean less"
            f" that of the strongest control ({PHRASES[primary['control']]}) is"
            f" {difference['accuracy']:+.2f}; 95 % interval for these tasks"
            f" {difference['low_these']:+.2f} to {difference['high_these']:+.2f}"
            + (
                f", for tasks like these {difference['low']:+.2f} to {difference['high']:+.2f}"
                if difference["low"] is not None
                else ""
            )
            + f"; p = {primary['p']:.2g}: {primary['verdict']}."
        )
    beating = [name for name, task in tasks.items() if task["beats"]]
    words.append(
        f"{len(beating)} of {len(tasks)} task vectors are above every control, zero-shot among"
        " them (exact paired tests, corrected for the number of tasks)."
        + (
            " Not shown for: "
            + ", ".join(titles[name] for name in tasks if name not in beating)
            + "."
            if len(beating) < len(tasks)
            else ""
        )
    )
    share = result["pairing_share"]
    wrong = np.mean([task["wrong_label_share"] for task in tasks.values()])
    words.append(
        f"Share of the vector's gain that needs the right pairing of inputs and labels:"
        f" {span(share)}; with wrong labels ({wrong:.0%} of them are) the rest is left."
        if share
        else "Which share of the vector's gain needs the right pairing cannot be told: the gain's"
        " own interval holds 0, or there is no task that ICL does."
    )
    gain = result["share_of_icl_gain"]["icl_able"]
    if gain:
        words.append(f"The vector has {span(gain)} of ICL's gain over zero-shot.")
    if result["given_icl"]:
        right, wrong = (result["given_icl"][name] for name in ("right", "wrong"))
        words.append(
            f"The vector is right on {span(right)} of the prompts that ICL answers rightly and on"
            f" {span(wrong)} of the others."
        )
    peak = result["peak"]
    if peak["share"] is not None:
        words.append(
            f"The mean dev curve peaks at layer {peak['layer']}, which is the peak in"
            f" {peak['share']:.0%} of bootstrap draws of the tasks."
        )
    return words


def _other_pairs(result: dict[str, Any]) -> str:
    """What to say of published numbers where they are of other pairs of words than ours."""
    settings = result["settings"]
    replication = settings.get("task_data") and settings.get("rule") == "paper"
    return "" if replication else "; other pairs"


def in_order(result: dict[str, Any]) -> dict[str, Any]:
    """The tasks, those that in-context learning does first."""
    tasks = result["tasks"]
    return dict(sorted(tasks.items(), key=lambda item: not item[1]["icl_able"]))


def _scores_table(result: dict[str, Any], published_title: str, key: str) -> Table:
    titles = _titles(result["tasks"])
    rule = next(iter(result["tasks"].values()))["rule"]
    other = "paper" if rule == "full" else "full"
    rows = []
    for name, task in in_order(result).items():
        theirs = task[key] or {}
        recorded = task["outcomes"]
        by_other = np.mean(recorded["task_vector"][f"correct_{other}"])
        hardest = task["hardest"]
        rows.append(
            [
                task_cell(titles, name),
                text("yes" if task["icl_able"] else "no"),
                score(task["baseline"]),
                score(task["task_vector"], "good" if task["beats"] else ""),
                score(task["icl"]),
                number(np.mean(recorded[hardest]["correct"])),
                text(PHRASES[hardest]),
                text(
                    "above all" if task["beats"] else "not shown",
                    "good" if task["beats"] else "quiet",
                    f"p = {task['p']:.2g} after correction",
                ),
                Cell(str(task["best_layer"]), task["best_layer"]),
                number(task["icl"]["queries"], 0),
                number(float(by_other)),
                *(number(theirs.get(measure)) for measure in MEASURES),
            ]
        )
    blank, summary = text(""), []
    for group, title in (("icl_able", "mean, tasks ICL does"), ("all", "mean, all tasks")):
        means, others = result["mean"][group], result[f"mean_{other}"][group]
        if not means:
            continue
        summary.append(
            [
                text(f"{title} ({len(result['groups'][group])})"),
                blank,
                *(_mean_cell(means[measure]) for measure in MEASURES),
                *[blank] * 5,
                number(others["task_vector"]["accuracy"]),
                *[blank] * 3,
            ]
        )
    return Table(
        f"Accuracy on test by {WHOLE[rule]} (layers chosen on dev) with 95 % intervals; those of"
        " means are for these tasks, notes give the ones for tasks like these (which were not drawn"
        f" at random); paper: {published_title}{_other_pairs(result)}",
        [
            "task",
            "ICL does it",
            "zero-shot",
            "task vector",
            "ICL",
            "hardest control",
            "which",
            "verdict",
            "layer",
            "queries",
            f"vector, {'first token' if other == 'paper' else 'whole answer'}",
            "paper: zero-shot",
            "paper: vector",
            "paper: ICL",
        ],
        rows,
        summary,
    )


def _mean_cell(mean: dict[str, Any]) -> Cell:
    these = f"{mean['low_these']:.2f}–{mean['high_these']:.2f}"
    wide = "" if mean["low"] is None else f"; tasks like these {mean['low']:.2f}–{mean['high']:.2f}"
    value = mean["accuracy"]
    return Cell(f"{value:.2f}", value, "", f"these tasks {these}{wide}", these)


def _controls_table(tasks: dict[str, Any]) -> Table:
    def cell(task: dict[str, Any], name: str) -> Cell:
        found = score(task["controls"][name])
        layer = (task["outcomes"][name] or {}).get("layer")
        if layer is None:
            return found
        return Cell(found.text, found.value, found.tone, f"{found.note}; layer {layer}")

    titles = _titles(tasks)
    rows = [
        [
            task_cell(titles, name),
            score(task["task_vector"], "good" if task["beats"] else ""),
            score(task["baseline"]),
            *(cell(task, control) for control in CONTROLS),
            *_nearest(task, titles),
            score(task["icl_wrong_labels"]),
            number(task["wrong_label_share"]),
        ]
        for name, task in tasks.items()
    ]
    return Table(
        "Controls, on the same test prompts by the same rule, each vector at its own layer chosen"
        " on dev. Not to be beaten: the nearest task, which may be related, and wrong labels, which"
        " are an estimate",
        [
            "task",
            "task vector",
            "zero-shot",
            *(control.title for control in CONTROLS.values()),
            "nearest task",
            "ICL, wrong labels",
            "labels wrong",
        ],
        rows,
    )


def _nearest(task: dict[str, Any], titles: Mapping[str, str]) -> list[Cell]:
    """The cell of the other task that does best on dev; a dash where there is none."""
    others = task["other_tasks"]
    found = max(others, key=lambda name: others[name]["dev_accuracy"], default=None)
    return [text("–") if found is None else task_cell(titles, found)]


def _titles(tasks: Mapping[str, Any]) -> dict[str, str]:
    """The names that tasks are shown by."""
    return about.titles_of({"categories": {name: t["category"] for name, t in tasks.items()}})


def _graded_table(tasks: dict[str, Any]) -> Table:
    rows, titles = [], _titles(tasks)
    for name, task in tasks.items():
        recorded = task["outcomes"]
        row = [task_cell(titles, name)]
        for column in ("baseline", "task_vector", "icl", "random"):
            row.append(number(float(np.mean(recorded[column]["logprob"]))))
            row.append(number(float(np.median(recorded[column]["rank"])), 0))
        for column in ("baseline", "task_vector", "icl"):
            row.append(number(float(np.mean(recorded[column]["logit_difference"]))))
        rows.append(row)
    return Table(
        "Graded scores of the first token of the best accepted answer: mean log-probability (nats),"
        " median rank (0 is the top), and mean logit difference to another pair's output",
        [
            "task",
            *(
                title
                for column in ("zero-shot", "vector", "ICL", "random")
                for title in (f"{column}: log p", "rank")
            ),
            *(f"{column}: difference" for column in ("zero-shot", "vector", "ICL")),
        ],
        rows,
    )


def _data_table(tasks: dict[str, Any]) -> Table:
    titles = _titles(tasks)
    rows = [
        [
            task_cell(titles, name),
            Cell(f"{task['num_pairs']} of {task['num_all_pairs']}", task["num_pairs"]),
            text("␣x-> ␣y" if task["leading_space"] else "x->y"),
            number(task["icl"]["n"], 0),
            number(task["icl"]["queries"], 0),
            text("shared" if task["shared_queries"] else "apart"),
            number(task["dev_icl"]),
            number(task["dev_baseline"]),
            text("; ".join(task["warnings"])),
        ]
        for name, task in tasks.items()
    ]
    return Table(
        "What the tokenizer kept, and what was asked",
        [
            "task",
            "pairs kept",
            "form",
            "test prompts",
            "distinct queries",
            "dev and test queries",
            "ICL on dev",
            "zero-shot on dev",
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
    rows, titles = [], _titles(tasks)
    for name in order:
        recorded = tasks[name]["outcomes"]
        icl, vector = recorded["icl"], recorded["task_vector"]
        wrong = [i for i, right in enumerate(vector["correct"]) if not right]
        wrong.sort(key=lambda i: not icl["correct"][i])  # those that ICL gets right say most
        shown = [
            text(
                f"{recorded['queries'][i].strip()} → {vector['predicted'][i] or '(nothing)'};"
                f" right: {', '.join(recorded['answers'][i])};"
                f" ICL: {icl['predicted'][i] or '(nothing)'}"
            )
            for i in wrong[:EXAMPLES]
        ]
        if shown:
            blank = [text("")] * (EXAMPLES - len(shown))
            rows.append([task_cell(titles, name), number(len(wrong), 0), *shown, *blank])
    return Table(
        f"Worst examples: up to {EXAMPLES} a task where the vector's answer is wrong, as far as it"
        " was needed to see that",
        ["task", "wrong of theta", *(f"example {i + 1}" for i in range(EXAMPLES))],
        rows,
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Every task's scores with intervals, and accuracy by layer."""
    return {
        "main_results": _draw_scores(result),
        "accuracy_by_layer": by_layer.draw_mean(result),
        "accuracy_by_layer_tasks": by_layer.draw_tasks(result),
    }


def _draw_scores(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks, titles = in_order(result), about.titles_of(result)
    figure, (axes,) = figures.canvas(9, 0.24 * len(tasks) + 0.7)
    places = np.arange(len(tasks))[::-1]
    for shift, measure in zip((0.22, 0, -0.22), MEASURES, strict=True):
        charts.pointed(axes, [task[measure] for task in tasks.values()], places + shift, measure)
    hardest = [np.mean(t["outcomes"][t["hardest"]]["correct"]) for t in tasks.values()]
    tick = {"color": figures.LOOKS["control"].colour, "marker": "|", "ls": "", "ms": 11, "mew": 2}
    axes.plot(hardest, places, label="hardest control", **tick)
    keys = [*figures.point_key(MEASURES), figures.line_entry("hardest control", **tick)]
    published = [
        (task["published"] or task["published_mean_of_7_models"] or {}).get("task_vector")
        for task in tasks.values()
    ]
    if any(published):
        shown = np.array([np.nan if value is None else value for value in published])
        style = {"marker": "D", "ls": "", "fillstyle": "none", "color": figures.ink(), "ms": 6}
        where = result["published_model"] or "mean of 7 models"
        axes.plot(shown, places, label="paper's task vector", **style)
        keys.append(figures.line_entry(f"paper's task vector ({where})", **style))
    axes.set_yticks(
        places, [titles[name] + ("" if task["beats"] else " °") for name, task in tasks.items()]
    )
    for y in places[:-1]:
        charts.rule(axes, y - 0.5)
    able = sum(task["icl_able"] for task in tasks.values())
    if 0 < able < len(tasks):
        charts.rule(axes, len(tasks) - able - 0.5, strong=True)
        said = "below: tasks that ICL does not do"
        keys.append(figures.line_entry(said, color=figures.quiet(), lw=1.2))
    charts.shares(axes, "x")
    axes.set(ylim=(-0.6, len(tasks) - 0.4), xlabel="accuracy on test, with 95 % intervals")
    mean = result["mean"]["icl_able"] or result["mean"]["all"]
    beating = sum(task["beats"] for task in tasks.values())
    title = (
        f"Zero-shot {mean['baseline']['accuracy']:.2f}, with theta"
        f" {mean['task_vector']['accuracy']:.2f}, in context {mean['icl']['accuracy']:.2f} (mean of"
        f" {able or len(tasks)} tasks{' that ICL does' if able else ''}); theta is above every"
        f" control in {beating} of {len(tasks)} tasks (° not shown)"
    )
    return figures.finish(figure, result, title, keys)
