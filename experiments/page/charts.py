"""What is drawn on the axes of a figure: curves, points with intervals, heat maps, and scales.

Names and colours are those of `experiments.page.style`; `experiments.page.figures` makes the canvas
and puts the title, the key and the run around it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.page.style import HEAT, LOOKS, TEXT, quiet

ROOM = 0.03  # what is left free above 1 and below 0


def curve(
    axes: Axes,
    x: Any,
    y: Any,
    name: str,
    *,
    label: str | None = None,
    spread: tuple[Any, Any] | None = None,
    **style: Any,
) -> None:
    """A line in the look of what is measured, with its band.

    Args:
      name: of `style.LOOKS`.
      label: what is said of it where a reader points at it; its title when None.
      spread: the lower and the upper end of the band; a share stays within 0 and 1.
    """
    look = LOOKS[name]
    chosen = {"color": look.colour, "linestyle": look.line, "linewidth": 1.6, **style}
    axes.plot(x, y, label=label or look.title, **chosen)
    if spread is not None:
        low, high = (np.clip(np.array(end, float), 0, 1) for end in spread)
        axes.fill_between(x, low, high, color=chosen["color"], alpha=0.15, linewidth=0)


def level(axes: Axes, y: float, name: str, label: str | None = None, **style: Any) -> None:
    """A horizontal line in the look of what is measured."""
    look = LOOKS[name]
    chosen = {"color": look.colour, "linestyle": look.line, "linewidth": 1.3, **style}
    axes.axhline(y, label=label or look.title, **chosen)


def _leads(axes: Axes, axis: str) -> bool:
    """Whether it is the first of the panels that share this axis; ticks of one are those of all."""
    shared = axes.get_shared_x_axes() if axis == "x" else axes.get_shared_y_axes()
    siblings = shared.get_siblings(axes)
    return len(siblings) == 1 or next(a for a in axes.figure.axes if a in siblings) is axes


def shares(axes: Axes, axis: str = "y") -> None:
    """An axis of shares: 0 to 1 with a little room, and ticks that can be read."""
    if not _leads(axes, axis):
        return
    limits, ticks = (-ROOM, 1 + ROOM), [0, 0.25, 0.5, 0.75, 1]
    names = ["0", "", ".5", "", "1"]
    if axis == "y":
        axes.set_ylim(*limits)
        axes.set_yticks(ticks, names)
    else:
        axes.set_xlim(*limits)
        axes.set_xticks(ticks, names)


def layers(axes: Axes, count: int) -> None:
    """An axis of layers, 0-based, with whole numbers that do not run into each other."""
    if not _leads(axes, "x"):
        return
    axes.set_xlim(-0.3, max(1, count - 1) + 0.3)
    width = 0.85 * _share_of_width(axes)
    axes.set_xticks(range(0, count, _step(count, width, 0.26)))


def _share_of_width(axes: Axes) -> float:
    """Inches of the figure's width that there are for a panel and its labels."""
    across = axes.get_gridspec().ncols  # pyright: ignore[reportOptionalMemberAccess]
    return axes.get_figure(root=True).get_figwidth() / across  # pyright: ignore


def _step(count: int, width: float, each: float) -> int:
    """Every how many of `count` labels there is room for, where one needs `each` inches."""
    least = max(1, math.ceil(count * each / max(width, each)))
    return next((step for step in (1, 2, 5, 10, 20, 50) if step >= least), least)


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
    upright: bool = False,
    beside: Sequence[Axes] = (),
) -> None:
    """A heat map with named rows and columns.

    Args:
      values: [rows, columns], None or NaN for no value.
      label: of the bar of colours; no bar when empty.
      write: format of the number written in each cell; none when empty.
      upright: names of columns are turned, and every one is written.
      beside: all panels that the bar of colours is for; this one alone when empty.
    """
    grid = np.array([[np.nan if v is None else v for v in row] for row in values], float)
    image = axes.imshow(grid, aspect="auto", vmin=low, vmax=high, cmap=colours)
    if _leads(axes, "y"):
        axes.set_yticks(range(len(rows)), rows)
    width = 0.85 * _share_of_width(axes)
    longest = max(map(len, columns), default=1)
    step = 1 if upright else _step(len(columns), width, 0.08 * longest + 0.06)
    shown = list(columns)[::step]
    if _leads(axes, "x"):
        axes.set_xticks(range(0, len(columns), step), shown, rotation=90 if upright else 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for i, j in np.argwhere(np.isfinite(grid)) if write else ():
        red, green, blue, _ = image.cmap(image.norm(grid[i, j]))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        axes.text(
            j,
            i,
            format(grid[i, j], write).replace("0.", ".")
            if write == ".2f"
            else format(grid[i, j], write),
            ha="center",
            va="center",
            fontsize=TEXT,
            color="black" if bright else "white",
        )
    if label:
        panels = list(beside) or [axes]
        rows_of_panels = math.ceil(len(panels) / axes.get_gridspec().ncols)  # pyright: ignore
        bar = axes.figure.colorbar(
            image,
            ax=panels,
            fraction=0.03,
            pad=0.02,
            aspect=15,
            shrink=1 / rows_of_panels,
            anchor=(0.0, 1.0),
        )
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.set_label(label, fontsize=TEXT)
        bar.ax.tick_params(labelsize=TEXT, length=0)


def pointed(
    axes: Axes, scores: Sequence[dict[str, Any]], places: Any, name: str, **style: Any
) -> None:
    """Scores as points of a measure's look, one at each place of the y axis, with intervals.

    Args:
      scores: with `accuracy`, `low` and `high`.
      name: of `style.LOOKS`.
    """
    look = LOOKS[name]
    for y, score in zip(places, scores, strict=True):
        ends = [score["low"], score["high"]]
        axes.plot(ends, [y, y], color=look.colour, lw=1.1, alpha=0.55, label="_interval")
    shares_right = [score["accuracy"] for score in scores]
    chosen = {"color": look.colour, "ms": 4.5, "label": look.title, **style}
    axes.plot(shares_right, places, look.marker, **chosen)


def rule(axes: Axes, y: float, strong: bool = False) -> None:
    """A line between rows."""
    width, alpha = (1.2, 1.0) if strong else (0.4, 0.35)
    axes.axhline(y, color=quiet(), lw=width, alpha=alpha, label="_rule")


def outer_labels(axes: Sequence[Axes], x: str, y: str) -> None:
    """Says once what the axes of small panels are: under and beside the first column."""
    across = axes[0].get_gridspec().ncols  # pyright: ignore[reportOptionalMemberAccess]
    below = axes[(len(axes) - 1) // across * across]
    below.set_xlabel(x, loc="left")
    axes[0].set_ylabel(y, loc="top")


def panel_title(axes: Axes, title: str) -> None:
    """The name of a small panel, in as many lines as fit over it."""
    lines = textwrap.wrap(title, max(8, int(13 * (_share_of_width(axes) - 0.25))))
    axes.set_title("\n".join(lines), fontsize=TEXT + 0.5, fontweight="normal")
