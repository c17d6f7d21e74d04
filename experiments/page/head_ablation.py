"""How `experiments.head_ablation` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, Table, left_out, mean_score, number, text

NAME = "head_ablation"
TITLES = {
    "function_vector": "largest indirect effect",
    "induction": "induction",
    "induction_only": "induction, not among those",
    "random": "random, same layers",
}


def section(result: dict[str, Any]) -> Section:
    """Accuracy against the number of heads, and the largest sets compared."""
    mean, sizes, tasks = result["mean"], result["sizes"], result["tasks"]
    most = sizes[-1]

    def value(name: str) -> str:
        found = mean[name]
        return f"{found['accuracy']:.2f} ({found['low_these']:.2f} to {found['high_these']:.2f})"

    compared = "; ".join(
        f"{TITLES[name]} {paired['difference']:+.2f} (p = {paired['p']:.2g})"
        for name, paired in result["against_function_vector"].items()
    )
    common = float(np.mean([task["common"][-1] for task in tasks.values()]))
    expected = most * most / result["num_heads"]
    words = [
        f"In context {value('icl')} over {len(tasks)} tasks; without {most} of"
        f" {result['num_heads']} heads: of largest indirect effect"
        f" {value(f'function_vector {most}')}, induction heads {value(f'induction {most}')},"
        f" induction heads not among the former {value(f'induction_only {most}')}, random heads of"
        f" the same layers {value(f'random {most}')}.",
        f"Against the heads of largest effect, by an exact paired test on the same prompts:"
        f" {compared}.",
        f"The first two sets of {most} have {common:.1f} heads in common on average"
        f" ({expected:.1f} by chance).",
    ]
    rows = [
        [
            text(f"{size} heads"),
            *(mean_score(mean[f"{name} {size}"]) for name in TITLES),
            number(float(np.mean([task["common"][at] for task in tasks.values()])), 1),
        ]
        for at, size in enumerate(sizes)
    ]
    return Section(
        "Which heads does in-context learning need?",
        [*words, *left_out(result["notes"])],
        [
            Table(
                "Accuracy of the whole prompt with heads ablated by their mean, mean over tasks",
                ["ablated", *TITLES.values(), "in both of the first two"],
                rows,
            )
        ],
        {
            NAME: "Accuracy in context without some heads, mean over tasks with 95 % intervals for"
            " these tasks (left); each head's prefix-matching score (right)."
        },
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Accuracy against the number of heads, and where the induction heads are."""
    from experiments.page import charts, figures

    figure, (left, right) = figures.canvas(figures.WIDTH, 3.4, 1, 2)
    sizes, mean, key = [0, *result["sizes"]], result["mean"], []
    styles = {
        "function_vector": (figures.LOOKS["function_vector"].colour, "-", "v"),
        "induction": (figures.ink(), "-", "o"),
        "induction_only": (figures.ink(), "--", "o"),
        "random": (figures.LOOKS["control"].colour, "-.", "^"),
    }
    for name, title in TITLES.items():
        colour, line, marker = styles[name]
        shown = [mean["icl"], *(mean[f"{name} {size}"] for size in result["sizes"])]
        heights = [value["accuracy"] for value in shown]
        low, high = ([value[end] for value in shown] for end in ("low_these", "high_these"))
        style = {"color": colour, "ls": line, "marker": marker, "ms": 4, "lw": 1.6}
        left.plot(sizes, heights, label=title, **style)
        left.fill_between(sizes, low, high, alpha=0.12, color=colour, linewidth=0)
        key.append(figures.line_entry(title, **style))
    left.set(xlabel="heads ablated (by their mean)", ylabel="accuracy in context")
    left.set_xticks(sizes)
    charts.shares(left)
    scores = np.array(result["induction_scores"]).T  # [H, L]
    heads, layers = ([str(i) for i in range(count)] for count in scores.shape)
    charts.heat_map(right, scores, heads, layers, label="prefix matching")
    right.set(xlabel="layer", ylabel="head")
    right.set_title("how much each head is an induction head")
    most = result["sizes"][-1]
    title = (
        f"Without the {most} heads of largest effect the prompt scores"
        f" {mean[f'function_vector {most}']['accuracy']:.2f}, without {most} induction heads"
        f" {mean[f'induction {most}']['accuracy']:.2f}, without random ones"
        f" {mean[f'random {most}']['accuracy']:.2f} (with all {mean['icl']['accuracy']:.2f})"
    )
    return {NAME: figures.finish(figure, result, title, key)}
