"""The figures of a result as files and as images of the page, each drawn once.

A figure is drawn for a light page; on a dark one the page's script changes its inks, so that each
lies on the page once, and is what lies in the files. Beside the images are the places of their
lines: the page shows a line's values where a reader points at it, and lets them pick one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from experiments.run.writing import write_whole

_DRAWN: dict[str, dict[str, Drawn]] = {}  # of this process, by what they were drawn from


class Drawn(NamedTuple):
    """A figure.

    Attributes:
      svg: for a light page.
      width: in pixels, as the page shows it.
      lines: what `marks` says of it.
    """

    svg: bytes
    width: int
    lines: list[dict[str, Any]]


def write_all(page: ModuleType, result: dict[str, Any], out: Path) -> list[Path]:
    """Draws a result's figures and writes stem.png and stem.svg, each whole or not at all."""
    from experiments.page import figures  # matplotlib is slow to import

    written: list[Path] = []
    kept: dict[str, Drawn] = {}
    with figures.theme("light"):
        for stem, figure in page.draw_figures(result).items():
            kept[stem] = _drawn(figure)
            for kind, content in (("png", figures.render(figure, "png")), ("svg", kept[stem].svg)):
                path = out / f"{stem}.{kind}"
                write_whole(path, content)
                written.append(path)
            figures.plt.close(figure)
    _DRAWN[_key(page, result)] = kept
    return written


def images(page: ModuleType, result: dict[str, Any]) -> dict[str, Drawn]:
    """A result's figures by stem, as `write_all` has just drawn them, or drawn now."""
    from experiments.page import figures

    key = _key(page, result)
    if key not in _DRAWN:
        kept = {}
        with figures.theme("light"):
            for stem, figure in page.draw_figures(result).items():
                kept[stem] = _drawn(figure)
                figures.plt.close(figure)
        _DRAWN[key] = kept
    return _DRAWN[key]


def _key(page: ModuleType, result: dict[str, Any]) -> str:
    content = json.dumps(result, sort_keys=True)
    return f"{page.__name__} {hashlib.sha256(content.encode()).hexdigest()}"


def _drawn(figure: Any) -> Drawn:
    from experiments.page import figures
    from experiments.page.style import INCH

    svg = figures.render(figure, "svg")  # also lays the figure out
    return Drawn(svg, round(INCH * figure.get_figwidth()), marks(figure))


def inks() -> dict[str, str]:
    """The inks of a figure for a light page, and what stands for them on a dark one.

    White text on heat maps stays; the ground of the figure, its first patch, is left out.
    """
    from experiments.page.style import INK, QUIET

    return {INK["light"]: INK["dark"], QUIET["light"]: QUIET["dark"]}


def marks(figure: Any) -> list[dict[str, Any]]:
    """The lines and points of a figure that was laid out: for each its name and its places.

    Returns:
      `name`, `at`, a pair of shares of the figure's width and height for every point, the height
      counted from the top, `values`, what the point says in words, and whether they are `joined`
      by a line. Levels, which are the same
      everywhere, and artists whose label begins with an underscore are left out.
    """
    import numpy as np

    found = []
    width, height = figure.get_size_inches() * figure.dpi
    shared = next(filter(None, (axes.get_xlabel() for axes in figure.axes)), "at")
    for axes in figure.axes:
        titles = [axes.get_title("left"), axes.get_title("center")]
        title = " ".join(next(filter(None, titles), "").split())
        axis_title = (axes.get_xlabel() or shared).split(" ")[0].rstrip(",:")
        for line in axes.get_lines():
            name = str(line.get_label())
            x, y = (np.asarray(values, float) for values in line.get_data())
            level = line.get_transform() != axes.transData
            if name.startswith("_") or level or not np.isfinite(y).any():
                continue
            at = axes.transData.transform(np.column_stack([x, y])) / (width, height)
            at[:, 1] = 1 - at[:, 1]
            ticks = {
                axis: {
                    float(at): " ".join(text.get_text().split())
                    for at, text in zip(a.get_majorticklocs(), a.get_ticklabels(), strict=False)
                }
                for axis, a in (("x", axes.xaxis), ("y", axes.yaxis))
            }
            shown = [i for i in range(len(x)) if np.isfinite(at[i]).all()]
            found.append(
                {
                    "joined": line.get_linestyle() not in ("None", "", " "),
                    "name": name if not title or name in title else f"{title}: {name}",
                    "at": [[round(float(v), 4) for v in at[i]] for i in shown],
                    "values": [_value(x[i], y[i], ticks, axis_title) for i in shown],
                }
            )
    return found


def _value(x: float, y: float, ticks: dict[str, dict[float, str]], axis: str) -> str:
    """What a point says: `layer 20: 0.41`, or `antonyms: 0.78` where rows have names; nothing on a
    map, whose axes have no numbers."""
    rows = ticks["y"]
    if not rows:
        return ""
    named = any(any(c.isalpha() for c in text) for text in rows.values())
    if named:  # a row of points: its name is that of the nearest row
        nearest = min(rows, key=lambda at: abs(at - y))
        return f"{rows[nearest]}: {x:.2f}"
    where = ticks["x"].get(float(x)) or f"{x:g}"
    return f"{axis} {where}: {y:.2f}"
