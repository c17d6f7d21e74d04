"""How `experiments.layer_sweep` is shown: its words and its figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section, span

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
    words = []
    for group, title in (("icl_able", "tasks that ICL does on dev"), ("all", "tasks, all of them")):
        if means := result["mean"][group]:
            words.append(
                f"mean of {len(result['groups'][group])} {title}: "
                + ", ".join(f"{name} {_mean(means[key])}" for key, name in COLUMNS.items())
            )
            first, whole = (
                result[f"mean_{rule}"][group]["task_vector"]["accuracy"]
                for rule in ("paper", "full")
            )
            words[-1] += f"; task vector by first tokens {first:.3f}, by whole answers {whole:.3f}"
    if gain := result["share_of_icl_gain"]["icl_able"]:
        words.append(f"the vector has {span(gain)} of ICL's gain over zero-shot")
    if result["given_icl"]:
        right, wrong = (result["given_icl"][name] for name in ("right", "wrong"))
        words.append(
            f"P(vector right | ICL right) {span(right)}; P(vector right | ICL wrong) {span(wrong)}"
        )
    steady = "" if peak["share"] is None else f" (in {peak['share']:.0%} of draws of the tasks)"
    words.append(
        f"mean dev curve peaks after layer {peak['layer']} of 0-{len(curve) - 1}{steady} at"
        f" {curve.max():.3f}; {result['provenance']['seconds']:.0f} s"
    )
    words.append(
        "intervals: these tasks; tasks like these (not drawn at random). Controls and the share"
        " that needs the right pairing: python -m experiments.main_results"
    )
    return Section(
        "Where does the task vector work?",
        words,
        captions={
            NAME: "Accuracy of zero-shot dev prompts with theta injected after each layer, by first"
            " tokens: one line a task, their mean in black."
        },
    )


def _mean(mean: dict[str, Any]) -> str:
    """`.442 (.418 to .468; .293 to .586)`."""
    these = f"{mean['low_these']:.3f} to {mean['high_these']:.3f}"
    wide = "" if mean["low"] is None else f"; {mean['low']:.3f} to {mean['high']:.3f}"
    return f"{mean['accuracy']:.3f} ({these}{wide})"


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by layer: one thin line a task, their mean with its spread, and the two ends."""
    from experiments.page import figures

    tasks = result["tasks"]
    curves = np.array([task["dev_accuracy_by_layer"] for task in tasks.values()])  # [tasks, L]
    layers = np.arange(curves.shape[1])
    figure, axes = figures.plt.subplots(figsize=(8, 4.8), layout="constrained")
    shown = set()
    categories = [task["category"] for task in tasks.values()]
    for category, curve in zip(categories, curves, strict=True):
        colour = figures.colour_of(category, categories)
        label = None if category in shown else category
        shown.add(category)
        axes.plot(layers, curve, color=colour, linewidth=0.8, alpha=0.55, label=label)
    mean, spread = curves.mean(axis=0), curves.std(axis=0)
    axes.fill_between(layers, mean - spread, mean + spread, color="black", alpha=0.08, linewidth=0)
    axes.plot(layers, mean, color="black", linewidth=2.4, label=f"mean of {len(tasks)}, ± 1 sd")
    for key, style, text in (("icl", "--", "in-context"), ("baseline", ":", "zero-shot")):
        level = result["mean"]["all"][key]["accuracy"]
        axes.axhline(level, color="black", linestyle=style, linewidth=1)
        axes.annotate(
            f"{text} {level:.2f}",
            (layers[-1], level),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    peak = int(mean.argmax())
    axes.plot([peak], [mean[peak]], "o", color="black")
    axes.annotate(
        f"layer {peak}: {mean[peak]:.2f}",
        (peak, mean[peak]),
        xytext=(6, 6),
        textcoords="offset points",
        fontsize=9,
        fontweight="bold",
    )
    axes.set(
        xlabel="layer after which θ is read and written (0-based)",
        ylabel="zero-shot accuracy with θ injected (dev)",
        title=f"{result['model']}: where the task vector works",
        xlim=(0, max(1, len(layers) - 1)),
        ylim=(-0.02, 1.02),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    return {NAME: figure}
