"""How a result is shown that has no page of its own: its numbers, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.page.section import Section, Table, number, text

NOT_SHOWN = (
    "data",
    "settings",
    "provenance",
    "run",
    "categories",
)  # what every result says of its run


def section(result: dict[str, Any]) -> Section:
    """A table of all single numbers in a result, each under the names that lead to it."""
    shown = {name: value for name, value in result.items() if name not in NOT_SHOWN}
    rows = [[text(name), number(value)] for name, value in _numbers(shown, "")]
    return Section(str(result["experiment"]), [], [Table("Numbers", ["name", "value"], rows)])


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}" if name else str(key))


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """None."""
    return {}
