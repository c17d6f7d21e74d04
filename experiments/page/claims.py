"""How `experiments.claims` is shown: its words, its table and its figure."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from experiments.page.about import begun, model_name
from experiments.page.section import Cell, Section, Table, number, text

NAME = "claims"
VERDICTS = ("agrees", "disagrees", "undecided", "not comparable")
TONES = {"agrees": "good"}


def section(result: dict[str, Any]) -> Section:
    """Published, ours and the verdict, claim by claim."""
    words = [
        f"{_counted(result)}. An interval of the difference that holds 0 and has a half-width of at"
        f" most {result['half_width']:.2f} counts as agreement."
    ]
    if any(claim["verdict"] == "not comparable" for claim in result["claims"]):
        words.append(
            f"The tasks of this run have pairs of {result['pairs']}. Where a claim is not"
            " comparable, ours stands beside it as information, not as a replication."
        )
    rows = [
        [
            text(claim["claim"]["paper"]),
            text(claim["claim"]["quantity"]),
            number(claim["num_tasks"], 0),
            text(claim["claim"]["layer_rule"]),
            number(claim["claim"]["value"]),
            number(claim["claim"]["n"], 0),
            _interval(claim["ours"]),
            _interval(claim["difference"]),
            text(claim["verdict"], TONES.get(claim["verdict"], "quiet")),
            text("; ".join(claim["reasons"]), "quiet"),
        ]
        for claim in result["claims"]
    ]
    columns = ["paper", "quantity", "tasks here", "layer rule", "published", "their n", "ours"]
    return Section(
        "Published claims, run again",
        words,
        [Table("Claims", [*columns, "difference", "verdict", "why not comparable"], rows)],
        {NAME: "Each claim's published number and ours, with the verdict."},
    )


def _interval(value: dict[str, float] | None) -> Cell:
    if value is None:
        return number(None)
    span = f"{value['low']:.2f} to {value['high']:.2f}"
    return Cell(f"{value['value']:.2f} ({span})", value["value"])


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Published beside ours, claim by claim."""
    return {NAME: _draw(result)}


def _draw(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    claims = result["claims"]
    figure, (axes,) = figures.canvas(9, 0.27 * len(claims) + 0.7)
    places = np.arange(len(claims))[::-1]
    ours = {"marker": "o", "color": figures.ink(), "ms": 6}
    theirs = {"marker": "D", "color": figures.quiet(), "ms": 7, "mfc": "none", "mew": 1.5, "ls": ""}
    for y, claim in zip(places, claims, strict=True):
        if found := claim["ours"]:
            axes.plot([found["low"], found["high"]], [y, y], color=ours["color"], lw=1.2)
            axes.plot(found["value"], y, label="ours", **ours)
        axes.plot(claim["claim"]["value"], y, label="published", **theirs)
        charts.rule(axes, y - 0.5)
    axes.set_yticks(places, [_label(claim) for claim in claims])
    charts.shares(axes, "x")
    axes.set(ylim=(-0.6, len(claims) - 0.4), xlabel="published, and ours with its 95 % interval")
    key = [figures.line_entry("published", **theirs), figures.line_entry("ours", lw=1.2, **ours)]
    return figures.finish(figure, result, begun(_counted(result)), key)


def _label(claim: dict[str, Any]) -> str:
    """Paper, quantity and verdict of a claim, as the figure names it."""
    about = claim["claim"]
    return f"{about['paper']}, {about['quantity'].replace('_', ' ')}: {claim['verdict']}"


def _counted(result: dict[str, Any]) -> str:
    """How many claims there are, and how many of each verdict."""
    counts = collections.Counter(claim["verdict"] for claim in result["claims"])
    found = ", ".join(f"{name} {counts[name]}" for name in VERDICTS if counts[name])
    about = model_name(result["model"])
    return f"{len(result['claims'])} published claims about {about}: {found}"
