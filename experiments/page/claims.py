"""How `experiments.claims` is shown: its words and its table."""

from __future__ import annotations

import collections
from typing import Any

from experiments.page.section import Cell, Section, Table, number, text

TONES = {"agrees": "good"}


def section(result: dict[str, Any]) -> Section:
    """Published, ours and the verdict, claim by claim."""
    counts = collections.Counter(claim["verdict"] for claim in result["claims"])
    order = ("agrees", "disagrees", "undecided", "not comparable")
    words = [
        f"{len(result['claims'])} published claims about {result['model']}: "
        + ", ".join(f"{counts[name]} {name}" for name in order if counts[name])
        + ". An interval of the difference that holds 0 and has a half-width of at most"
        f" {result['half_width']:.2f} counts as agreement."
    ]
    if counts["not comparable"]:
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
    )


def _interval(value: dict[str, float] | None) -> Cell:
    if value is None:
        return number(None)
    span = f"{value['low']:.2f} to {value['high']:.2f}"
    return Cell(f"{value['value']:.2f} ({span})", value["value"])


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """None."""
    del result
    return {}
