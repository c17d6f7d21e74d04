"""What an experiment has to say: words and tables, the same in the terminal and on the page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

_MISSING = re.compile(r"(.+) is left out: no task .+ in this run")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
      text: what is read.
      value: what it sorts by; the text itself when None.
      tone: "", "good", "bad" or "quiet".
      note: a longer explanation.
      interval: of the value; in the terminal, where notes are not shown, it stands behind the text.
      exact: the name that commands accept, where the text is another one; it stands in the terminal
        and in files.
    """

    text: str
    value: float | None = None
    tone: str = ""
    note: str = ""
    interval: str = ""
    exact: str = ""


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
      page_tables: what the page shows instead of `tables`, where a terminal has shown it row by row
        or cannot show it.
    """

    title: str
    words: Sequence[str]
    tables: Sequence[Table] = ()
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    page_tables: Sequence[Table] = ()


def section_of(page: Any, result: Mapping[str, Any]) -> Section:
    """What an experiment has to say, and by which rule, where it is not the run's.

    Args:
      page: the experiment's module of this room; its `section` is called.
    """
    section: Section = page.section(result)
    settings = result.get("settings") or {}
    if result.get("scored_by", settings.get("rule")) == settings.get("rule"):
        return section
    words = [*section.words, "Answers are scored by their first token here."]
    return dataclasses.replace(section, words=words)


def text(value: str, tone: str = "", note: str = "") -> Cell:
    """A cell of words."""
    return Cell(value, None, tone, note)


def mean_of(number: int, noun: str = "task") -> str:
    """What a number in a sentence is the mean of: "mean of 5 tasks"; of one, "one task"."""
    return f"one {noun}" if number == 1 else f"mean of {number} {noun}s"


def headline(model: str, mean: Mapping[str, float], shots: int, tasks: str) -> str:
    """What one vector does for a model, in a sentence that is true of any scores.

    Args:
      mean: over tasks, of baseline, task_vector and icl.
      tasks: which ones.
    """
    base, vector, icl = mean["baseline"], mean["task_vector"], mean["icl"]
    change = (
        f"lifts zero-shot accuracy from {base:.2f} to {vector:.2f}"
        if vector > base
        else f"does not lift zero-shot accuracy ({base:.2f} without, {vector:.2f} with it)"
    )
    share = (
        f": {(vector - base) / (icl - base):.0%} of what in-context learning adds"
        if icl > base and vector > base
        else ""
    )
    return (
        f"On {model} one vector {change}, where {shots}-shot prompting reaches {icl:.2f}"
        f" ({tasks}){share}."
    )


def task_cell(titles: Mapping[str, str], name: str, note: str = "") -> Cell:
    """A cell of one task."""
    return Cell(titles[name], None, "", note, exact=name)


def left_out(notes: Sequence[str]) -> list[str]:
    """Notes of an experiment, what was left out of it in one sentence."""
    missing = [found for note in notes if (found := _MISSING.fullmatch(note))]
    rest = [note for note in notes if not _MISSING.fullmatch(note)]
    words = []
    if missing:
        names = "; ".join(found[1].replace("_", " ") for found in missing)
        words.append(f"Not among the tasks of this run, so left out: {names}.")
    if rest:
        words.append(f"Left out: {'; '.join(rest)}.")
    return words


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
            [f"{c.text} [{c.interval}]" if c.interval else c.exact or c.text for c in r]
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
