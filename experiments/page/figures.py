"""Figures, drawn from result files and never from live arrays.

Canvases and small multiples, the title, the key and the corner that says which run a figure is of.
Each experiment's page draws its own, with what `experiments.page.charts` draws on axes and in the
style of `experiments.page.style`.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.page import about
from experiments.page.style import (
    DIVERGING,
    HEAT,
    LOOKS,
    TEXT,
    WIDTH,
    colour_of,
    ink,
    quiet,
    theme,
)
from experiments.run.writing import write_whole

__all__ = ["DIVERGING", "HEAT", "canvas", "colour_of", "ink", "quiet", "theme"]  # of the style too
# In an SVG: where lines and letters go. Hundredths of a point are exact enough, and half the bytes.
PLACES = re.compile(rb' d="[^"]*"|translate\([^)]*\)| [xy]="[^"]*"')
DIGITS = re.compile(rb"(\.\d\d)\d+")
EDGE = 0.1  # inches between the edge of a figure and its title, key and corner


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **more: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; `finish` adds the height of title, key and corner."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **more
    )
    return figure, list(axes.flat)


def small_multiples(
    count: int, columns: int, height: float, width: float = WIDTH, **more: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` small panels that share their axes.

    Args:
      columns: at most; fewer panels are no wider.
      height: of a panel, in inches.
      width: of `columns` panels.
    """
    across = min(count, columns)
    rows = math.ceil(count / across)
    size = width if count >= columns else max(4.0, width * across / columns)
    options = {"sharex": True, "sharey": True} | more
    figure, axes = canvas(size, height * rows + 0.3, rows, across, **options)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[count - across : count]:  # the last one of each column
        axis.tick_params(labelbottom=True)
    return figure, axes[:count]


def point_key(names: Iterable[str], **titles: str) -> list[Artist]:
    """Entries of a key for points with intervals (`charts.pointed`), as of `key_of`."""
    return [
        line_entry(
            titles.get(name, LOOKS[name].title),
            color=LOOKS[name].colour,
            marker=LOOKS[name].marker,
            ms=4.5,
            lw=1.1,
        )
        for name in names
    ]


def finish(
    figure: Figure, result: dict[str, Any], title: str, key: Sequence[Artist] = ()
) -> Figure:
    """Adds what every figure has: a title, a key, and the run in the corner.

    Args:
      title: what the figure shows was found.
      key: see `key_of` and `swatch`; every colour and line style of the figure.
    """
    width, inner = figure.get_figwidth(), figure.get_figheight()
    lines = textwrap.wrap(title, int(9.6 * (width - 2 * EDGE)))
    corner = textwrap.wrap(about.stamp(result), int(14.5 * (width - 2 * EDGE)))
    top = EDGE + 0.2 * len(lines)
    legend = None
    for columns in range(len(key), 0, -1):
        if legend is not None:
            legend.remove()
        legend = figure.legend(
            handles=list(key),
            loc="upper left",
            ncols=columns,
            borderaxespad=0.0,
            borderpad=0.2,
            columnspacing=1.4,
            handlelength=2.6,
        )
        legend.set_in_layout(False)
        box = legend.get_window_extent(_renderer(figure))
        if box.width / figure.dpi <= width - EDGE:
            top += box.height / figure.dpi
            break
    bottom = 0.05 + 0.15 * len(corner)
    height = inner + top + bottom
    figure.set_size_inches(width, height)
    figure.text(
        EDGE / width,
        1 - EDGE / height,
        "\n".join(lines),
        fontsize=TEXT + 2.5,
        fontweight="bold",
        va="top",
        linespacing=1.15,
    ).set_in_layout(False)
    if legend is not None:
        legend.set_bbox_to_anchor((0.5 * EDGE / width, 1 - (EDGE + 0.2 * len(lines)) / height))
    figure.text(
        1 - EDGE / width,
        0.05 / height,
        "\n".join(corner),
        fontsize=TEXT,
        color=quiet(),
        ha="right",
        va="bottom",
        linespacing=1.1,
    ).set_in_layout(False)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)  # of `canvas`
    engine.set(rect=(0, bottom / height, 1, inner / height))  # pyright: ignore[reportCallIssue]
    return figure


def _renderer(figure: Figure) -> Any:
    return figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]


def key_of(names: Iterable[str], **titles: str) -> list[Artist]:
    """Entries of a key for what is measured, by names of `style.LOOKS`.

    Args:
      titles: what to call some of them instead.
    """
    return [
        line_entry(
            titles.get(name, LOOKS[name].title),
            color=LOOKS[name].colour,
            linestyle=LOOKS[name].line,
        )
        for name in names
    ]


def line_entry(label: str, **style: Any) -> Line2D:
    """An entry of a key: a line, or a marker."""
    return Line2D([], [], label=label, **{"color": ink(), "linewidth": 1.6, **style})


def swatch(label: str, colour: str, **style: Any) -> Patch:
    """An entry of a key: an area."""
    return Patch(facecolor=colour, label=label, linewidth=0, **style)


def category_key(categories: Iterable[str]) -> list[Artist]:
    """Entries of a key for the categories of tasks."""
    shown = list(dict.fromkeys(categories))
    return [line_entry(name, color=colour_of(name, shown)) for name in shown]


def render(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure as "png" or "svg", the same whenever the figure is; closes nothing."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    content = buffer.getvalue()
    return PLACES.sub(_rounded, content) if kind == "svg" else content


def _rounded(place: re.Match[bytes]) -> bytes:
    return DIGITS.sub(rb"\1", place[0])


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png and stem.svg, each whole or not at all, and closes the figure."""
    written = []
    for kind in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{kind}")
        write_whole(path, render(figure, kind))
        written.append(path)
    plt.close(figure)
    return written
