"""Figures, drawn from result files and never from live arrays.

What every figure shares is here: colours, the light and the dark theme, saving. Each experiment
draws its own with them (`draw` in its module).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.run.writing import write_whole

CATEGORY_COLOURS = {
    "algorithmic": "#4269d0",
    "knowledge": "#efb118",
    "linguistic": "#3ca951",
    "translation": "#ff725c",
}
OTHER_COLOUR = "#97bbf5"
OWN_COLOURS = ("#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e")
COLOURS = (*CATEGORY_COLOURS.values(), *OWN_COLOURS)
HEAT = "viridis"
INK = {"light": "#1c1f24", "dark": "#e6e8eb"}
QUIET = {"light": "#8a9099", "dark": "#8a9099"}


@contextlib.contextmanager
def theme(name: str) -> Iterator[None]:
    """Draws figures for a light or a dark page; the background is left to the page."""
    ink = INK[name]
    with plt.rc_context(
        {
            "figure.facecolor": "white" if name == "light" else "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "white" if name == "light" else "none",
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": QUIET[name],
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "figure.constrained_layout.use": True,
            "figure.max_open_warning": 0,
            "svg.hashsalt": "taskvec_jax",  # otherwise identifiers differ from run to run
        }
    ):
        yield


def ink() -> str:
    """The colour of text in the current theme."""
    return str(plt.rcParams["text.color"])


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **more: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **more)
    return figure, list(axes.flat)


def short(task: str, category: str) -> str:
    """A task's name without its category, spaces for underscores."""
    return task.removeprefix(f"{category}_").replace("_", " ")


def colour_of(category: str, shown: Iterable[str] = ()) -> str:
    """The colour of a category; of a user's own, by its place among the own ones of a figure.

    Args:
      shown: the categories of the figure.
    """
    if category in CATEGORY_COLOURS:
        return CATEGORY_COLOURS[category]
    own = sorted({name for name in shown if name not in CATEGORY_COLOURS})
    return OWN_COLOURS[own.index(category) % len(OWN_COLOURS)] if category in own else OTHER_COLOUR


def heat_map(
    axes: Axes,
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float = 0.0,
    high: float = 1.0,
    label: str = "",
    write: str = "",
    colours: str = HEAT,
) -> None:
    """A heat map with named rows and columns.

    Args:
      values: [rows, columns], None or NaN for no value.
      write: format of the number written in each cell; none when empty.
    """
    grid = np.array([[np.nan if v is None else v for v in row] for row in values], float)
    image = axes.imshow(grid, aspect="auto", vmin=low, vmax=high, cmap=colours)
    axes.set_yticks(range(len(rows)), rows)
    step = max(1, len(columns) // 16)
    axes.set_xticks(range(0, len(columns), step), list(columns)[::step])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for i, j in np.argwhere(np.isfinite(grid)) if write else ():
        bright = (grid[i, j] - low) / (high - low or 1.0) > 0.6
        colour = "black" if bright != colours.endswith("_r") else "white"
        axes.text(
            j, i, format(grid[i, j], write), ha="center", va="center", fontsize=8, color=colour
        )
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7, length=0)


def render(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure as "png" or "svg", the same whenever the figure is; closes nothing."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png and stem.svg, each whole or not at all, and closes the figure."""
    written = []
    for kind in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{kind}")
        write_whole(path, render(figure, kind))
        written.append(path)
    plt.close(figure)
    return written
