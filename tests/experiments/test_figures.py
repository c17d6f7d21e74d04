"""Every figure at the size the page shows it: its words can be read, and none lies on another."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import synthetic
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from slow import slow

from experiments.page import about, drawing, figures, style

AT_57 = ("conflicting_tasks", "function_vectors", "vocabulary_projection")  # the others are slow
PAGE_WIDTH = 1140  # pixels of the page's column
SMALLEST = 9  # pixels of text
# Of Machado, Oliveira and Fernandes 2009, in linear RGB: no red, green or blue cones.
BLIND = {
    "none": np.eye(3),
    "red": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "green": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "blue": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour: str) -> np.ndarray:
    """Linear RGB of `#rrggbb`."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, for a white of D65."""
    xyz = XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: list[str], kind: str) -> float:
    """The distance of the two colours that are most alike."""
    seen = [lab(BLIND[kind] @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


def contrast(one: str, other: str) -> float:
    """As of WCAG 2: 1 for equal colours, 21 for black and white."""
    light, dark = sorted((float(XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("kind", BLIND)
def test_colours_are_told_apart_with_any_cones(kind):
    """2.3 is a difference that is just seen; large patches of these differ four times as much."""
    assert nearest(list(style.COLOURS.values()), kind) > 18
    assert nearest(list(style.CATEGORY_COLOURS.values()), kind) > 20
    assert nearest([*style.CATEGORY_COLOURS.values(), *style.OWN_COLOURS], kind) > 9


def test_a_colour_means_one_thing():
    measured, categories = style.COLOURS.values(), style.CATEGORY_COLOURS.values()
    every = [*measured, *categories, *style.OWN_COLOURS]
    assert len(set(every)) == len(every)
    for one in measured:
        for other in (*categories, *style.OWN_COLOURS):
            assert np.linalg.norm(lab(linear(one)) - lab(linear(other))) > 15


def test_lines_and_words_stand_out_from_both_pages():
    for name in ("light", "dark"):
        page = style.PAGE[name]
        for text in (style.INK[name], style.QUIET[name]):
            assert contrast(text, page) >= 4.5
        for what, colour in style.COLOURS.items():
            if what != "neither":  # an area beside two others
                assert contrast(colour, page) >= 2.6
        for colour in (*style.CATEGORY_COLOURS.values(), *style.OWN_COLOURS):
            assert contrast(colour, page) >= 2.6


@functools.cache
def made(name: str, count: int) -> dict[str, Any]:
    return synthetic.make(name, count)


def laid_out(name: str, result: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The figures of an experiment, laid out in the pixels of the page."""
    page = importlib.import_module(f"experiments.page.{name}")
    with figures.theme("light"):
        for stem, figure in page.draw_figures(result).items():
            figure.set_dpi(min(style.INCH, PAGE_WIDTH / figure.get_figwidth()))
            figure.draw_without_rendering()
            yield stem, figure
            figures.plt.close(figure)


def words(figure: Figure) -> list[tuple[Text, Bbox]]:
    """What is written, and where."""
    beyond = set()  # labels of ticks that are made, and not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            used = axis.get_major_ticks()
            for tick in axis.majorTicks:
                if tick not in used or not low <= tick.get_loc() <= high:
                    beyond |= {tick.label1, tick.label2}
    return [
        (text, text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in beyond
    ]


def heights_of(band: FillBetweenPolyCollection) -> np.ndarray:
    """All heights of a band's edge."""
    return np.concatenate([np.asarray(path.vertices)[:, 1] for path in band.get_paths()])


def check(name: str, result: dict[str, Any]) -> None:
    """Holds every figure of an experiment against what its reader needs."""
    said = about.stamp(result)
    for part in ("smollm2", "Q4_1", "n = 50", "seed 0", "whole answers", "2026-11-26"):
        assert part in said
    for stem, figure in laid_out(name, result):
        shown = words(figure)
        page = figure.bbox.padded(1)
        for text, box in shown:
            size = float(text.get_fontsize()) * figure.dpi / 72
            assert size >= SMALLEST, (stem, text.get_text(), size)
            beyond = page.x0 - box.x0, box.x1 - page.x1, page.y0 - box.y0, box.y1 - page.y1
            assert max(beyond) <= 0, (stem, text.get_text(), beyond)
        for (one, a), (other, b) in itertools.combinations(shown, 2):
            over = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(over) <= 1, (stem, one.get_text(), other.get_text(), over)
        assert " ".join(figure.texts[-1].get_text().split()) == said, stem
        for axes in figure.axes:
            lines = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
            for text, box in shown:
                inner = box.padded(-1)
                over = any(path.intersects_bbox(inner, filled=False) for path in lines)
                assert not over, (stem, text.get_text(), "is written over a line")
            for band in axes.findobj(FillBetweenPolyCollection):
                heights = heights_of(band)
                assert -1 <= heights.min() <= heights.max() <= 1, stem


@pytest.mark.parametrize("name", synthetic.EXPERIMENTS)
def test_of_18_tasks_every_word_of_a_figure_can_be_read_at_the_size_of_the_page(name):
    check(name, made(name, 18))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in AT_57 else slow) for name in synthetic.EXPERIMENTS],
)
def test_of_57_tasks_every_word_of_a_figure_can_be_read_at_the_size_of_the_page(name):
    check(name, made(name, 57))


def test_of_two_seeds_beside_the_papers_models_every_word_can_be_read(tmp_path):
    directories = [
        synthetic.write(tmp_path / str(seed), 4, ("main_results",), seed=seed) for seed in (0, 1)
    ]
    result = synthetic.compared(directories)
    assert "seed 0 and 1" in about.stamp(result)
    check("cross_models", result)


def test_the_mean_curves_band_stays_within_0_and_1():
    result = made("layer_sweep", 18)
    for task in result["tasks"].values():
        task["dev_accuracy_by_layer"] = [0.0, 1.0] * 15
    first = next(iter(result["tasks"].values()))
    first["dev_accuracy_by_layer"] = [0.3, 0.7] * 15
    _, figure = next(laid_out("layer_sweep", result))
    (band,) = figure.axes[0].findobj(FillBetweenPolyCollection)
    heights = heights_of(band)
    assert heights.min() == 0
    assert heights.max() == 1


def test_points_say_their_task_their_place_and_their_value():
    result = made("layer_sweep", 18)
    drawn = drawing.images(importlib.import_module("experiments.page.layer_sweep"), result)
    lines = {line["name"]: line for line in drawn["layer_sweep"].lines}
    assert set(about.titles_of(result).values()) <= set(lines)
    name, task = next(iter(result["tasks"].items()))
    line = lines[about.titles_of(result)[name]]
    curve = task["dev_accuracy_by_layer"]
    assert line["values"] == [f"layer {i}: {value:.2f}" for i, value in enumerate(curve)]
    assert np.all(np.diff([x for x, _ in line["at"]]) > 0)
    heights = np.array([y for _, y in line["at"]])  # from the top
    np.testing.assert_array_equal(np.argsort(heights)[0], np.argmax(curve))
    json.dumps(lines)
