"""What an experiment has to say: words and tables, the same in the terminal and on the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
      text: what is read.
      value: what it sorts by; the text itself when None.
      tone: "", "good", "bad" or "quiet".
      note: a longer explanation.
      interval: of the value; in the terminal, where notes are not shown, it stands behind the text.
    """

    text: str
    value: float | None = None
    tone: str = ""
    note: str = ""
    interval: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; every row has a cell for each column.

    Attributes:
      summary: rows about all others, such as means; they stay below when a reader sorts or filters.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    summary: Sequence[Sequence[Cell]] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment on the page.

    Attributes:
      title: what was asked.
      words: what was found, in sentences; the first is the headline.
      tables: the numbers; the first is shown open.
      captions: a sentence for each figure, by its file stem.
    """

    title: str
    words: Sequence[str]
    tables: Sequence[Table] = ()
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def text(value: str, tone: str = "", note: str = "") -> Cell:
    """A cell of words."""
    return Cell(value, None, tone, note)


def number(value: float | None, digits: int = 2, tone: str = "") -> Cell:
    """A cell of one number; a dash for None."""
    if value is None:
        return Cell("–", -1.0, "quiet")
    return Cell(f"{value:.{digits}f}", float(value), tone)


def score(value: Mapping[str, Any] | None, tone: str = "") -> Cell:
    """A share with its 95 % interval; a dash for None."""
    if value is None:
        return Cell("–", -1.0, "quiet")
    n = f", n = {value['n']}" if "n" in value else ""
    if value.get("queries") and value["queries"] != value["n"]:
        n += f" ({value['queries']} queries)"
    interval = "" if value["low"] is None else f"{value['low']:.2f}–{value['high']:.2f}"
    return Cell(
        f"{value['accuracy']:.2f}",
        float(value["accuracy"]),
        tone,
        f"{interval}{n}".removeprefix(", "),
        interval,
    )


def span(value: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A number with its interval, inside a sentence: `0.49 (0.38 to 0.60)`.

    Args:
      value: with `low`, `high`, and `accuracy` or `value`; None where there is none.
    """
    if value is None:
        return "not to be told"
    centre = value["accuracy"] if "accuracy" in value else value["value"]
    if value["low"] is None:
        return f"{centre:.{digits}f}"
    return f"{centre:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def mean_score(value: Mapping[str, Any] | None) -> Cell:
    """A mean over tasks with its interval for these tasks; a dash for None."""
    if value is None:
        return number(None)
    span = f"{value['low_these']:.2f}–{value['high_these']:.2f}, for these tasks"
    return Cell(f"{value['accuracy']:.2f}", float(value["accuracy"]), "", span)


def lines(table: Table) -> list[str]:
    """A table as lines of aligned text: the first column to the left, the others to the right."""
    grid = [
        list(table.columns),
        *(
            [f"{c.text} [{c.interval}]" if c.interval else c.text for c in r]
            for r in (*table.rows, *table.summary)
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(
            word.ljust(width) if i == 0 else word.rjust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in grid
    ]
