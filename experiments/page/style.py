"""The style of every figure: what each colour means, sizes of text, the light and the dark theme.

A colour stands for one thing in all figures: what is measured (`COLOURS`: zero-shot, theta,
in-context learning, controls and so on) or the category of a task (`CATEGORY_COLOURS`). Within each
of the two groups any two colours can be told apart without red, green or blue cones, no colour is
in both groups, and all stand out from a white and from a dark page; a test simulates it. Line
styles and markers repeat what colours say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


class Look(NamedTuple):
    """How what is measured is drawn.

    Attributes:
      title: what legends call it.
      colour: of lines, points and bars.
      line: Matplotlib's line style.
      marker: of points.
    """

    title: str
    colour: str
    line: Any = "-"
    marker: str = "o"


LOOKS = {
    "baseline": Look("zero-shot", "#8f929c", ":", "s"),
    "task_vector": Look("task vector", "#2f7de1", "-", "o"),
    "icl": Look("ICL", "#d97c07", "--", "D"),
    "control": Look("control", "#91339b", "-.", "^"),
    "function_vector": Look("function vector", "#166865", "-", "v"),
    "learned": Look("learned vector", "#be241d", "-", "P"),
    "neither": Look("neither", "#cfd3da"),
}
COLOURS = {name: look.colour for name, look in LOOKS.items()}
CATEGORY_COLOURS = {
    "algorithmic": "#8338cc",
    "knowledge": "#a88d12",
    "linguistic": "#188b42",
    "translation": "#b93382",
}
OWN_COLOURS = ("#4f8fb0", "#d97f5b", "#5c60a8", "#59691f")  # of a user's own categories
OTHER_COLOUR = "#7f8792"
HEAT = "viridis"  # a high value is bright, and good
DIVERGING = "RdBu_r"

INCH = 100  # pixels of the page that an inch of a figure is shown as
WIDTH = 11.2  # inches: the widest figure that the page shows at that size
TEXT = 8.0  # points, the smallest: 11 pixels on the page
INK = {"light": "#1c1f24", "dark": "#e6e8eb"}
QUIET = {"light": "#5d6570", "dark": "#9aa3ae"}
PAGE = {"light": "#ffffff", "dark": "#14171b"}


@contextlib.contextmanager
def theme(name: str) -> Iterator[None]:
    """Draws figures for a light or a dark page; the background is left to the page."""
    ink = INK[name]
    with plt.rc_context(
        {
            "figure.facecolor": PAGE[name] if name == "light" else "none",
            "axes.facecolor": "none",
            "savefig.facecolor": PAGE[name] if name == "light" else "none",
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": QUIET[name],
            "xtick.color": QUIET[name],
            "ytick.color": QUIET[name],
            "xtick.labelcolor": ink,
            "ytick.labelcolor": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": TEXT + 1,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": TEXT + 0.5,
            "xtick.labelsize": TEXT,
            "ytick.labelsize": TEXT,
            "font.size": TEXT + 0.5,
            "legend.frameon": False,
            "legend.fontsize": TEXT + 0.5,
            "figure.max_open_warning": 0,
            "svg.hashsalt": "taskvec_jax",  # otherwise identifiers differ from run to run
        }
    ):
        yield


def ink() -> str:
    """The colour of text in the current theme."""
    return str(plt.rcParams["text.color"])


def quiet() -> str:
    """The colour of what is said aside in the current theme."""
    return str(plt.rcParams["axes.edgecolor"])


def colour_of(category: str, shown: Iterable[str] = ()) -> str:
    """The colour of a category; of a user's own, by its place among the own ones of a figure.

    Args:
      shown: the categories of the figure.
    """
    if category in CATEGORY_COLOURS:
        return CATEGORY_COLOURS[category]
    own = sorted({name for name in shown if name not in CATEGORY_COLOURS})
    return OWN_COLOURS[own.index(category) % len(OWN_COLOURS)] if category in own else OTHER_COLOUR
