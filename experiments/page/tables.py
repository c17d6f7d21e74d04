"""Tables of a section as HTML, and as files of comma-separated values."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from urllib.parse import quote

from markupsafe import Markup

from experiments.page.section import Cell, Table

LONG_TEXT = 40
MANY_ROWS = 40  # a longer table scrolls in its own frame


def to_csv(table: Table) -> str:
    """All cells, values in full; intervals and other notes in columns of their own."""
    rows = [*table.rows, *table.summary]
    noted = [
        any(row[i].note and row[i].value is not None for row in rows)
        for i in range(len(table.columns))
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")

    def spread(values: Sequence[str], notes: Sequence[str]) -> list[str]:
        return [
            part
            for value, note, has in zip(values, notes, noted, strict=True)
            for part in ((value, note) if has else (value,))
        ]

    writer.writerow(spread(table.columns, [f"{name}: note" for name in table.columns]))
    for row in rows:
        numbers = [cell.value is not None for cell in row]
        writer.writerow(
            spread(
                [_exact(cell) for cell in row],
                [c.note if is_number else "" for c, is_number in zip(row, numbers, strict=True)],
            )
        )
    return file.getvalue()


def _exact(cell: Cell) -> str:
    if cell.value is None:
        return cell.exact or cell.text
    return "" if cell.text == "–" else f"{cell.value:.10g}"


def show_table(table: Table, named: bool, file: str) -> Markup:
    """A table as HTML, with its filter.

    Args:
      named: show the caption; a folded table shows it already.
      file: the name under which its values are saved.
    """
    words = [any(row[i].value is None for row in table.rows) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" aria-sort="none"{_class(["words"] if is_words else [])}>'
        f'<button type="button">{html.escape(column)}</button></th>'
        for column, is_words in zip(table.columns, words, strict=True)
    )
    body, foot = (
        "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
        for rows in (table.rows, table.summary)
    )
    foot = f"<tfoot>\n{foot}\n</tfoot>" if table.summary else ""
    title = f"<b>{html.escape(table.caption)}</b>" if named else ""
    tall = " tall" if len(table.rows) > MANY_ROWS else ""
    caption = html.escape(table.caption, quote=True)
    values = f"data:text/csv;charset=utf-8,{quote(to_csv(table))}"
    return Markup(
        f'<div class="sheet"><div class="filter">{title}'
        f'<input type="search" placeholder="filter rows" aria-label="filter: {caption}">'
        f'<output></output><a class="save" download="{html.escape(file, quote=True)}"'
        f' href="{values}">CSV</a><span class="more" hidden>the table scrolls sideways →</span>'
        f'</div><div class="scroll{tall}" tabindex="0" role="group" aria-label="{caption}">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody>{foot}</table>"
        "</div></div>"
    )


def _cell(cell: Cell) -> str:
    classes = [cell.tone] if cell.tone else []
    if cell.value is None:
        classes.append("words")
        if len(cell.text) > LONG_TEXT:
            classes.append("long")
    value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
    tip, small = "", ""
    if cell.value is None and (note := cell.note or cell.exact):
        tip = f' title="{html.escape(note, quote=True)}"'
    elif cell.note:
        small = f"<small>{html.escape(cell.note)}</small>"
    words = html.escape(cell.text).replace("_", "_<wbr>")
    return f"<td{_class(classes)}{value}{tip}>{words}{small}</td>"


def _class(names: list[str]) -> str:
    return f' class="{" ".join(names)}"' if names else ""
