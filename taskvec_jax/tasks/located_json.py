# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""JSON that remembers its lines, so that a message about a task file can point at one.

Strings, objects and lists come back as subclasses of str, dict and list with a `line`, counted
from 1. An object that names a key twice is kept whole in `repeats`.
"""

from __future__ import annotations

import bisect
import json
import re
from json import decoder, scanner
from typing import Any


class LocatedStr(str):
    """A string and the line it ends on."""

    line: int = 0


class LocatedList(list[Any]):
    """A list and the line it starts on."""

    line: int = 0


class LocatedDict(dict[str, Any]):
    """An object, the line it starts on, and the keys that it names more than once."""

    line: int = 0
    repeats: tuple[tuple[str, int], ...] = ()


class _Decoder(json.JSONDecoder):
    """Python's own decoder in its pure form, whose parts can be replaced."""

    def __init__(self, text: str) -> None:
        super().__init__(object_pairs_hook=_gather)
        breaks = [found.start() for found in re.finditer("\n", text)]

        def line(at: int) -> int:
            return bisect.bisect_left(breaks, at) + 1

        text_of: Any = decoder

        def parse_string(text: str, end: int, strict: bool = True) -> tuple[str, int]:
            value, stop = text_of.scanstring(text, end, strict)
            located = LocatedStr(value)
            located.line = line(stop - 1)
            return located, stop

        def parse_object(where: tuple[str, int], *rest: Any) -> tuple[Any, int]:
            value, stop = text_of.JSONObject(where, *rest)
            value.line = line(where[1])
            return value, stop

        def parse_array(where: tuple[str, int], *rest: Any) -> tuple[Any, int]:
            value, stop = text_of.JSONArray(where, *rest)
            located = LocatedList(value)
            located.line = line(where[1])
            return located, stop

        self.parse_string = parse_string
        self.parse_object = parse_object
        self.parse_array = parse_array
        pure: Any = scanner
        self.scan_once = pure.py_make_scanner(self)


def _gather(pairs: list[tuple[str, Any]]) -> LocatedDict:
    gathered = LocatedDict()
    repeats: list[tuple[str, int]] = []
    for key, value in pairs:
        if key in gathered:
            repeats.append((key, line_of(value)))
        gathered[key] = value
    gathered.repeats = tuple(repeats)
    return gathered


def line_of(value: Any) -> int:
    """The line of a parsed value; 0 for numbers, true, false and null, which have none."""
    return getattr(value, "line", 0)


def parse(text: str) -> Any:
    """Parses JSON.

    Raises:
      json.JSONDecodeError: it has the line and column.
    """
    return _Decoder(text).decode(text)
