"""Figures, drawn from result files and never from live arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

CATEGORY_COLOURS = {
    "algorithmic": "#4269d0",
    "knowledge": "#efb118",
    "linguistic": "#3ca951",
    "translation": "#ff725c",
}
OTHER_COLOUR = "#97bbf5"


def draw_layer_sweep(result: dict[str, Any], path: Path) -> None:
    """Accuracy by layer: one thin line a task, their mean with its spread, and the two ends.

    Args:
      result: the content of layer_sweep.json.
      path: .png to write.
    """
    tasks = result["tasks"]
    curves = np.array([task["dev_accuracy_by_layer"] for task in tasks.values()])  # [tasks, L]
    layers = np.arange(curves.shape[1])
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    shown = set()
    for name, curve in zip(tasks, curves, strict=True):
        category = name.split("_")[0]
        colour = CATEGORY_COLOURS.get(category, OTHER_COLOUR)
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
    scratch = path.with_name(f".{path.name}")
    figure.savefig(scratch, format="png", dpi=150)
    plt.close(figure)
    scratch.replace(path)
