# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""Tables of pairs: CSV, TSV and JSON lines, as entries with their lines (see pairs.py).

A row of a CSV or TSV file is input, output, and any number of other answers that are also right.
A first row that holds the words input and output names the columns, in any order; every column
called accepted holds another answer. Spaces around a cell do not count, and empty cells at the end
of a row are left out. A line that begins with "# ", or is "#" alone, is a comment; an input that
begins so stands in quotes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

from taskvec_jax.tasks.pairs import PAIR_KEYS, Problems

Entries = list[tuple[int, Any]]
_COMMENT = re.compile(
    r"^#(?:[ \r].*)?$", re.MULTILINE
)  # its line stays, so that lines keep their number
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(text: str, separator: str, problems: Problems) -> Entries:
    """The rows of a CSV or TSV file."""
    text = _COMMENT.sub("", text)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    rows: Entries = []
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            while row and not row[-1]:
                row.pop()
            if row:
                rows.append((reader.line_num, row))
    except csv.Error as error:
        problems.add(reader.line_num, f"cannot be read as a table: {error}")
        return []
    if not rows:
        return []
    line, names = rows[0][0], [name.lower() for name in rows[0][1]]
    if not {"input", "output"} <= set(names):
        return rows
    if unknown := sorted(set(names) - PAIR_KEYS):
        problems.add(line, f"unknown columns {unknown}; allowed: input, output, accepted")
        return []
    return [(at, _entry(row, names, at, problems)) for at, row in rows[1:]]


def _entry(row: list[str], names: list[str], line: int, problems: Problems) -> dict[str, Any]:
    if len(row) > len(names):
        problems.add(line, f"{len(row)} cells; the first row names {len(names)} columns")
    cells = [*row, *[""] * (len(names) - len(row))]
    found: dict[str, Any] = {name: cells[names.index(name)] for name in ("input", "output")}
    others = [cell for name, cell in zip(names, cells, strict=False) if name == "accepted" and cell]
    return found | ({"accepted": others} if others else {})


def read_json_lines(text: str, problems: Problems) -> Entries:
    """The values of a JSONL file, one a line; empty lines are passed over."""
    entries: Entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entries.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                problems.add(number, f"cannot be read as JSON: {error.msg} (column {error.colno})")
    return entries


def kind_of(text: str) -> str:
    """The ending that a text without a name would have: .json, .jsonl, .tsv or .csv."""
    first = text.lstrip()[:1]
    lines = [line for line in _COMMENT.sub("", text).split("\n") if line.strip()]
    if first in ("{", "["):
        try:
            json.loads(text)
        except json.JSONDecodeError:
            return ".jsonl" if len(lines) > 1 and _is_json(lines[0]) else ".json"
        return ".json"
    return ".tsv" if lines and "\t" in lines[0] else ".csv"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True
