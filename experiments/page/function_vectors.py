"""How `experiments.function_vectors` is shown: its words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.page.section import Section, Table, mean_score, number, score, text

NAME = "function_vectors"
COLUMNS = {  # of the tables
    "baseline": "zero-shot",
    "icl": "ICL",
    "task_vector": "theta",
    "function_vector": "added",
    "function_vector_replaced": "replaced",
    "random_heads": "random heads",
    "random": "random",
    "other_tasks": "other tasks",
    "shuffled_icl": "shuffled ICL",
    "function_vector_shuffled": "added to it",
    "task_vector_shuffled": "theta in it",
}


def section(result: dict[str, Any]) -> Section:
    """The vector beside theta, its controls, its heads."""
    tasks, mean = result["tasks"], result["mean"]
    against, verdicts = result["against_theta"], result["verdicts"]
    beating = [name for name, verdict in verdicts.items() if verdict["beats"]]
    words = [
        "A function vector added to the residual stream scores"
        f" {_interval(mean, 'function_vector')} over {len(tasks)} tasks, theta"
        f" {_interval(mean, 'task_vector')}, zero-shot {_interval(mean, 'baseline')}, in context"
        f" {_interval(mean, 'icl')}; {_against(against)}.",
        "Above zero-shot, the same number of random heads of the same layers, a random vector and"
        f" the other tasks' mean function vector, by an exact paired test (Holm over tasks):"
        f" {len(beating)} of {len(tasks)}" + (f" ({', '.join(beating)})." if beating else "."),
        _labels(result),
        _shared(result),
    ]
    loop = sum(task["flops"]["loop"] for task in tasks.values())
    ours = sum(task["flops"]["one_pass"] for task in tasks.values())
    words.append(
        f"The effects of all {result['num_layers']} x {result['num_heads']} heads took"
        f" {ours / 1e12:.3g} teraflops in one pass a prompt; a loop of full forward passes needs"
        f" {loop / 1e12:.3g}, {loop / ours:.0f} times as many."
    )
    if any(task["shared_queries"] for task in tasks.values()):
        names = [name for name, task in tasks.items() if task["shared_queries"]]
        words.append(
            "Too few pairs to keep test queries out of the prompts that the heads are averaged over"
            f" and chosen on: {', '.join(names)}."
        )
    columns = [name for name in COLUMNS if any(name in t["scores"] for t in tasks.values())]
    rows = [
        [text(name), *(score(task["scores"].get(column)) for column in columns)]
        for name, task in tasks.items()
    ]
    rows.append([text("mean"), *(mean_score(mean.get(column)) for column in columns)])
    details = [
        [
            text(name),
            number(len(task["heads"]), 0),
            text(", ".join(f"{layer}.{head}" for layer, head in task["heads"][:5])),
            number(float(np.max(task["aie"])), 3),
            number(task["scores"]["function_vector"]["layer"], 0),
            number(task["scores"]["task_vector"]["layer"], 0),
            number(float(np.max(task["cosine_to_theta"]))),
            number(int(np.argmax(task["cosine_to_theta"])), 0),
        ]
        for name, task in tasks.items()
    ]
    captions = {
        f"{NAME}_layers": "Dev accuracy by layer, mean over tasks: the function vector added,"
        " replacing, and added to shuffled prompts (left); its cosine with mean theta (right)."
    }
    if _mattering(result):
        captions[NAME] = (
            "Average indirect effect of every head, mean over the tasks in which shuffled labels"
            " cost accuracy: the change of the answer's probability when the head's mean output in"
            " context is patched into a prompt with shuffled labels."
        )
    return Section(
        "Which heads carry the task, and is their sum as good as theta?",
        [*filter(None, words), *result["notes"]],
        [
            Table(
                "Accuracy on test; each vector at its own layer, chosen on dev",
                ["task", *(COLUMNS[column] for column in columns)],
                rows,
            ),
            Table(
                "Heads and layers",
                [
                    "task",
                    "heads",
                    "first of them (layer.head)",
                    "largest AIE",
                    "layer, added",
                    "theta's layer",
                    "best cosine to theta",
                    "at layer",
                ],
                details,
            ),
        ],
        captions,
    )


def _interval(mean: Mapping[str, Any], column: str) -> str:
    value = mean[column]
    return f"{value['accuracy']:.2f} ({value['low_these']:.2f} to {value['high_these']:.2f})"


def _against(against: Mapping[str, Any]) -> str:
    words = {
        "above": "the function vector is above theta",
        "below": "the function vector is below theta",
        "not shown": "that the two differ is not shown",
    }[against["decision"]]
    return (
        f"{words} (difference {against['difference']:+.2f}, exact paired p = {against['p']:.2g},"
        f" {against['num_queries']} distinct queries)"
    )


def _mattering(result: dict[str, Any]) -> list[str]:
    """The tasks whose effects are shown: none where shuffling is not shown to cost anything."""
    cost = result["cost_of_shuffling"]
    if cost["decision"] != "above":
        return []
    return [name for name, difference in cost["tasks"].items() if difference > 0]


def _labels(result: dict[str, Any]) -> str:
    cost, mean = result["cost_of_shuffling"], result["mean"]
    scores = f"{_interval(mean, 'icl')} in context, {_interval(mean, 'shuffled_icl')} with shuffled"
    if cost["decision"] != "above":
        return (
            f"Shuffled labels cost this model nothing that can be shown ({scores} labels): there is"
            " nothing for a head to restore, so indirect effects are noise and their map is not"
            " drawn."
        )
    mattering = _mattering(result)
    return (
        f"Shuffled labels cost {cost['difference']:.2f} ({scores} labels), in {len(mattering)} of"
        f" {len(cost['tasks'])} tasks; the map of effects is the mean over those. Added to prompts"
        f" with shuffled labels the function vector gives"
        f" {_interval(mean, 'function_vector_shuffled')}, theta"
        f" {_interval(mean, 'task_vector_shuffled')}."
    )


def _shared(result: dict[str, Any]) -> str:
    shared = result["shared_heads"]
    common = np.array(shared["common"])
    pairs = common[np.triu_indices(len(common), 1)]
    if not pairs.size:
        return ""
    counts: dict[tuple[int, int], int] = {}
    for heads in shared["tasks"].values():
        for layer, head in heads:
            counts[layer, head] = counts.get((layer, head), 0) + 1
    most = sorted(counts, key=lambda head: (-counts[head], head))[:3]
    named = ", ".join(f"{layer}.{head} in {counts[layer, head]}" for layer, head in most)
    return (
        f"Of their {shared['size']} heads of largest effect, two tasks share {pairs.mean():.1f} on"
        f" average ({shared['expected']:.1f} by chance); most often {named} of {len(common)} tasks."
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """The map of effects, and curves by layer."""
    from experiments.page import figures

    tasks, drawn = result["tasks"], {}
    layers = [str(layer) for layer in range(result["num_layers"])]
    if mattering := _mattering(result):
        grid = np.mean([tasks[name]["aie"] for name in mattering], axis=0).T  # [H, L]
        width = max(5.0, 0.28 * len(layers) + 2)
        height = max(2.6, 0.2 * len(grid) + 1.2)
        figure, (axis,) = figures.canvas(width, height)
        most = float(np.abs(grid).max()) or 1.0
        heads = [str(head) for head in range(len(grid))]
        figures.heat_map(
            axis, grid, heads, layers, low=-most, high=most, label="AIE", colours="RdBu_r"
        )
        axis.set(xlabel="layer", ylabel="head")
        drawn[NAME] = figure
    figure, (left, right) = figures.canvas(10, 3.4, 1, 2)
    labels = {"added": "added", "replaced": "replacing", "shuffled": "added, shuffled prompts"}
    for colour, (name, label) in zip(figures.COLOURS, labels.items(), strict=False):
        curve = np.mean([task["accuracy_by_layer"][name] for task in tasks.values()], axis=0)
        left.plot(curve, "o-", markersize=3, color=colour, label=label)
    left.set(xlabel="layer", ylabel="accuracy on dev", ylim=(-0.02, 1.02))
    left.legend()
    cosines = np.array([task["cosine_to_theta"] for task in tasks.values()])
    right.plot(cosines.mean(axis=0), "o-", markersize=3, color=figures.COLOURS[0])
    if len(cosines) > 1:
        right.fill_between(
            range(len(layers)),
            cosines.min(axis=0),
            cosines.max(axis=0),
            alpha=0.2,
            color=figures.COLOURS[0],
        )
    right.set(xlabel="layer", ylabel="cosine, function vector and theta")
    drawn[f"{NAME}_layers"] = figure
    return drawn
