"""How `experiments.bijections` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, left_out, mean_of, number, score, text

NAME = "bijections"
CONTROL = "unrelated"  # two tasks that are no inverses of each other, mixed in the same way


def section(result: dict[str, Any]) -> Section:
    """What mixing the two directions costs the prompt, and what it costs the vector."""
    rows, fails, sentences = [], [], []
    for name, ways in result["pairs"].items():
        row = [text(pair_title(name))]
        for way in ("forward", "backward", "both"):
            value = ways.get(way)
            row += [score(value and value["icl"]), score(value and value["task_vector"])]
        if both := ways.get("both"):
            row += [
                score(both["by_direction"].get(way, {}).get("task_vector"))
                for way in ("forward", "backward")
            ]
            row.append(number(both["icl"]["accuracy"] - both["task_vector"]["accuracy"]))
            if name != CONTROL and both["icl"]["low"] > both["task_vector"]["high"]:
                fails.append(name)
            sentences.append(
                f"{name}: {both['icl']['accuracy']:.2f} to {both['task_vector']['accuracy']:.2f}"
            )
        else:
            row += [number(None)] * 3
        rows.append(row)
    mixed = [ways for name, ways in result["pairs"].items() if "both" in ways and name != CONTROL]
    words = []
    if mixed:
        alone, both = (
            {
                measure: float(
                    np.mean([ways[w][measure]["accuracy"] for ways in mixed for w in kinds])
                )
                for measure in ("icl", "task_vector")
            }
            for kinds in (("forward", "backward"), ("both",))
        )
        words.append(
            f"One direction alone, the prompt scores {alone['icl']:.2f} and its vector"
            f" {alone['task_vector']:.2f} ({mean_of(len(mixed), 'pair')}, both directions); with"
            f" both mixed in one prompt, {both['icl']:.2f} and {both['task_vector']:.2f}. The"
            " vector is clearly below the prompt (95 % intervals apart) in"
            f" {len(fails)} of {len(mixed)}" + (f": {', '.join(fails)}." if fails else ".")
        )
        if both["icl"] < alone["icl"] / 2:
            words.append(
                f"{result['model']} does not manage the mixed prompt itself, so there is little"
                " for a vector to lose here: the known failure of single vectors needs a model that"
                " does."
            )
    if "both" in (control := result["pairs"].get(CONTROL, {})):
        lost = [
            float(
                np.mean([ways[w]["task_vector"]["accuracy"] for w in ("forward", "backward")])
                - ways["both"]["task_vector"]["accuracy"]
            )
            for ways in (*mixed, control)
        ]
        words.append(
            f"Mixing costs the vector {np.mean(lost[:-1]):.2f} on average; mixing two unrelated"
            f" tasks (antonyms and singulars) costs it {lost[-1]:.2f}: only what is lost beyond"
            " that is due to the directions."
        )
    words += [
        f"ICL to task vector, both ways mixed: {'; '.join(sentences)}." if sentences else "",
        *left_out(result["notes"]),
    ]
    return Section(
        "Can one vector hold a task and its inverse?",
        [sentence for sentence in words if sentence],
        [
            Table(
                "Accuracy on test, each direction alone and both mixed",
                [
                    "pair",
                    "forward: ICL",
                    "vector",
                    "backward: ICL",
                    "vector",
                    "both: ICL",
                    "vector",
                    "vector, forward queries",
                    "vector, backward queries",
                    "lost when mixed",
                ],
                rows,
            )
        ],
        {
            NAME: "Accuracy in context and with the task vector: each direction alone, and both"
            " mixed in one prompt."
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """ICL and task vector as points, three rows a pair."""
    from experiments.page import charts, figures

    pairs = result["pairs"]
    if not pairs:
        return {}
    rows = [(name, way, ways[way]) for name, ways in pairs.items() for way in ways]
    figure, (axes,) = figures.canvas(9, 0.22 * len(rows) + 0.7)
    places = np.arange(len(rows))[::-1]
    for shift, measure in ((0.15, "icl"), (-0.15, "task_vector")):
        charts.pointed(axes, [scores[measure] for *_, scores in rows], places + shift, measure)
    axes.set_yticks(places, [f"{pair_title(name)}: {way}" for name, way, _ in rows])
    for i, (name, *_) in enumerate(rows[1:]):
        if name != rows[i][0]:
            charts.rule(axes, places[i] - 0.5, strong=True)
    charts.shares(axes, "x")
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlabel="accuracy on test, with 95 % intervals")
    mixed = [ways["both"] for name, ways in pairs.items() if "both" in ways and name != CONTROL]
    title = "One vector for two directions"
    if mixed:
        icl, vector = (
            np.mean([both[measure]["accuracy"] for both in mixed])
            for measure in ("icl", "task_vector")
        )
        title = (
            f"With both directions in one prompt: in context {icl:.2f}, one task vector"
            f" {vector:.2f} ({mean_of(len(mixed), 'pair')})"
        )
    key = figures.point_key(("icl", "task_vector"))
    return {NAME: figures.finish(figure, result, title, key)}


def pair_title(name: str) -> str:
    """`upper / lower` of `upper_lower`."""
    return name.replace("_", " / ", 1).replace("_", " ")
