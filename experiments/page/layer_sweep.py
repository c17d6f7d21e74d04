"""How `experiments.layer_sweep` is shown: its words and its figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.page.section import Section

NAME = "layer_sweep"


def section(result: dict[str, Any]) -> Section:
    """The means, and where the mean curve peaks; the rows were printed as they came."""
    mean = result["mean"]
    curve = np.mean([task["dev_accuracy_by_layer"] for task in result["tasks"].values()], axis=0)
    return Section(
        "Where does the task vector work?",
        [
            f"mean of {len(result['tasks'])} tasks: baseline {mean['baseline']:.3f}, task vector"
            f" {mean['task_vector']:.3f}, ICL {mean['icl']:.3f}, random vector"
            f" {mean['random_vector']:.3f}; mean dev curve peaks after layer {curve.argmax()} of"
            f" 0-{len(curve) - 1} at {curve.max():.3f}; {result['provenance']['seconds']:.0f} s"
        ],
        captions={
            NAME: "Accuracy of zero-shot dev prompts with theta injected after each layer: one"
            " line a task, their mean in black."
        },
    )


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
        level = result["mean"][key]
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
