"""How `experiments.function_vectors` is shown: its words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.page import about
from experiments.page.section import (
    Section,
    Table,
    left_out,
    mean_of,
    mean_score,
    number,
    score,
    task_cell,
    text,
)

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
    tasks, mean, titles = result["tasks"], result["mean"], about.titles_of(result)
    against, verdicts = result["against_theta"], result["verdicts"]
    beating = [titles[name] for name, verdict in verdicts.items() if verdict["beats"]]
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
        names = [titles[name] for name, task in tasks.items() if task["shared_queries"]]
        words.append(
            "Too few pairs to keep test queries out of the prompts that the heads are averaged over"
            f" and chosen on: {', '.join(names)}."
        )
    columns = [name for name in COLUMNS if any(name in t["scores"] for t in tasks.values())]
    rows = [
        [task_cell(titles, name), *(score(task["scores"].get(column)) for column in columns)]
        for name, task in tasks.items()
    ]
    summary = [[text("mean"), *(mean_score(mean.get(column)) for column in columns)]]
    details = [
        [
            task_cell(titles, name),
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
        f"{NAME}_scores": "Accuracy on test: zero-shot, the function vector added, theta written,"
        " in context; the tick is the hardest of the controls.",
        f"{NAME}_layers": "Dev accuracy by layer, mean over tasks: the function vector added,"
        " replacing, and added to shuffled prompts (left); its cosine with mean theta (right).",
    }
    if _mattering(result):
        captions[NAME] = (
            "Average indirect effect of every head, mean over the tasks in which shuffled labels"
            " cost accuracy: the change of the answer's probability when the head's mean output in"
            " context is patched into a prompt with shuffled labels."
        )
    return Section(
        "Which heads carry the task, and is their sum as good as theta?",
        [*filter(None, words), *left_out(result["notes"])],
        [
            Table(
                "Accuracy on test; each vector at its own layer, chosen on dev",
                ["task", *(COLUMNS[column] for column in columns)],
                rows,
                summary,
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
    """Scores, the map of effects, and curves by layer."""
    drawn = {f"{NAME}_scores": _draw_scores(result)}
    if mattering := _mattering(result):
        drawn[NAME] = _draw_effects(result, mattering)
    return drawn | {f"{NAME}_layers": _draw_layers(result)}


def _draw_scores(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks, titles, mean = result["tasks"], about.titles_of(result), result["mean"]
    figure, (axes,) = figures.canvas(9, 0.22 * len(tasks) + 0.7)
    places = np.arange(len(tasks))[::-1]
    shown = ("baseline", "function_vector", "task_vector", "icl")
    for shift, name in zip((0.27, 0.09, -0.09, -0.27), shown, strict=True):
        scores = [task["scores"][name] for task in tasks.values()]
        charts.pointed(axes, scores, places + shift, name)
    controls = [
        max(
            task["scores"][name]["accuracy"]
            for name in ("random_heads", "random", "other_tasks")
            if name in task["scores"]
        )
        for task in tasks.values()
    ]
    tick = {"color": figures.LOOKS["control"].colour, "marker": "|", "ls": "", "ms": 11, "mew": 2}
    axes.plot(controls, places, label="hardest control", **tick)
    axes.set_yticks(places, [titles[name] for name in tasks])
    for y in places[:-1]:
        charts.rule(axes, y - 0.5)
    charts.shares(axes, "x")
    axes.set(ylim=(-0.6, len(tasks) - 0.4), xlabel="accuracy on test, with 95 % intervals")
    title = (
        f"A sum of a few heads, added, scores {mean['function_vector']['accuracy']:.2f}; theta,"
        f" written over the state, {mean['task_vector']['accuracy']:.2f} ({mean_of(len(tasks))})"
    )
    key = [*figures.point_key(shown), figures.line_entry("hardest control", **tick)]
    return figures.finish(figure, result, title, key)


def _draw_effects(result: dict[str, Any], mattering: list[str]) -> Any:
    from experiments.page import charts, figures

    layers = [str(layer) for layer in range(result["num_layers"])]
    grid = np.mean([result["tasks"][name]["aie"] for name in mattering], axis=0).T  # [H, L]
    width = min(figures.WIDTH, max(7.0, 0.28 * len(layers) + 2))
    figure, (axis,) = figures.canvas(width, max(2.4, 0.17 * len(grid) + 1.0))
    most = float(np.abs(grid).max()) or 1.0
    heads = [str(head) for head in range(len(grid))]
    colours = figures.DIVERGING
    charts.heat_map(axis, grid, heads, layers, low=-most, high=most, label="AIE", colours=colours)
    axis.set(xlabel="layer", ylabel="head")
    head, layer = np.unravel_index(grid.argmax(), grid.shape)
    title = (
        f"Head {head} of layer {layer} restores most: {grid.max():+.3f} of the answer's probability"
        f" ({mean_of(len(mattering))})"
    )
    return figures.finish(figure, result, title)


def _draw_layers(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    tasks, count = result["tasks"], result["num_layers"]
    figure, (left, right) = figures.canvas(figures.WIDTH, 2.9, 1, 2)
    ways = {
        "added": ("added", "-"),
        "replaced": ("replacing the state", "--"),
        "shuffled": ("added to prompts with shuffled labels", ":"),
    }
    colour = figures.LOOKS["function_vector"].colour
    means, key = {}, []
    for name, (label, style) in ways.items():
        means[name] = np.mean([t["accuracy_by_layer"][name] for t in tasks.values()], axis=0)
        left.plot(range(count), means[name], ls=style, color=colour, lw=1.8, label=label)
        key.append(figures.line_entry(label, color=colour, ls=style, lw=1.8))
    charts.shares(left)
    left.set(xlabel="layer", ylabel="accuracy on dev")
    cosines = np.array([task["cosine_to_theta"] for task in tasks.values()])
    right.plot(range(count), cosines.mean(axis=0), color=figures.ink(), lw=1.8, label="mean")
    key.append(figures.line_entry("cosine with theta", lw=1.8))
    if len(cosines) > 1:
        ends = cosines.min(axis=0), cosines.max(axis=0)
        right.fill_between(range(count), *ends, alpha=0.2, color=figures.ink(), linewidth=0)
        key.append(figures.swatch("lowest to highest of the tasks", figures.ink(), alpha=0.2))
    right.set(xlabel="layer", ylabel="cosine, function vector and theta")
    for axis in (left, right):
        charts.layers(axis, count)
    best = int(means["added"].argmax())
    title = (
        f"The function vector works best after layer {best}: {means['added'][best]:.2f}; it is"
        f" never closer to theta than a cosine of {cosines.mean(axis=0).max():.2f} (means of"
        f" {len(tasks)} tasks)"
    )
    return figures.finish(figure, result, title, key)
