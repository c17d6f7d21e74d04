"""How `experiments.bijections` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, number, score, text

NAME = "bijections"
CONTROL = "unrelated"  # two tasks that are no inverses of each other, mixed in the same way


def section(result: dict[str, Any]) -> Section:
    """What mixing the two directions costs the prompt, and what it costs the vector."""
    rows, fails, sentences = [], [], []
    for name, ways in result["pairs"].items():
        row = [text(name.replace("_", " / ", 1))]
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
            f" {alone['task_vector']:.2f} (mean of {len(mixed)} pairs, both directions); with both"
            f" mixed in one prompt, {both['icl']:.2f} and {both['task_vector']:.2f}. The vector is"
            f" clearly below the prompt (95 % intervals apart) in {len(fails)} of {len(mixed)}"
            + (f": {', '.join(fails)}." if fails else ".")
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
        *result["notes"],
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
        {NAME: "ICL (green) and task vector (blue): forward, backward, and both ways mixed."},
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Grouped bars."""
    from experiments.page import figures

    pairs = result["pairs"]
    if not pairs:
        return {}
    figure, panels = figures.canvas(max(7.0, 2.1 * len(pairs)), 3.6, 1, len(pairs), sharey=True)
    for axis, (name, ways) in zip(panels, pairs.items(), strict=True):
        for x, way in enumerate(ways):
            for offset, measure, colour in (
                (-0.2, "icl", "#3ca951"),
                (0.2, "task_vector", "#4269d0"),
            ):
                value = ways[way][measure]
                axis.bar(x + offset, value["accuracy"], 0.38, color=colour)
                axis.plot(
                    [x + offset] * 2,
                    [value["low"], value["high"]],
                    color=figures.ink(),
                    lw=0.8,
                    alpha=0.7,
                )
        axis.set_xticks(range(len(ways)), list(ways), rotation=30)
        axis.set(ylim=(0, 1.02))
        axis.set_title(name.replace("_", "/"), fontsize=9)
    panels[0].set_ylabel("accuracy on test")
    panels[0].bar(0, 0, color="#3ca951", label="ICL")
    panels[0].bar(0, 0, color="#4269d0", label="task vector")
    figure.legend(loc="outside lower center", ncols=2)
    return {NAME: figure}
