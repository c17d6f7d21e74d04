# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""Entries of a file become `Pair`s; everything that is wrong with them is collected, with its line.

An entry is {"input", "output", "accepted"}, or a list: input, output and any number of further
answers that are also right.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from taskvec_jax.narrowing import is_list, is_mapping
from taskvec_jax.tasks.located_json import LocatedDict, line_of
from taskvec_jax.tasks.task import Pair

PAIR_KEYS = {"input", "output", "accepted"}


class Problems(list[str]):
    """What is wrong with a file, each with its line."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.path = path

    def add(self, line: int, message: str) -> None:
        """Notes a problem; line 0 is left out."""
        self.append(f"{self.path}:{line}: {message}" if line else f"{self.path}: {message}")


def pairs_of_json(raw: Any, problems: Problems) -> list[Pair]:
    """Pairs of a parsed JSON value: {input: output or [output, accepted ...]}, or a list of
    entries."""
    if not (is_mapping(raw) or is_list(raw)) or not raw:
        problems.add(
            line_of(raw),
            'pairs must be {input: output}, or a list of {"input", "output"} or [input, output],'
            " not empty",
        )
        return []
    if is_mapping(raw):
        for key, line in raw.repeats if isinstance(raw, LocatedDict) else ():
            problems.add(line, f"input {key!r} is there already")
        return pairs_of(((line_of(v), _of_item(k, v)) for k, v in raw.items()), problems)
    return pairs_of(((line_of(entry), entry) for entry in raw), problems)


def _of_item(key: str, value: Any) -> dict[str, Any]:
    if is_list(value) and value:
        return {"input": key, "output": value[0], "accepted": value[1:]}
    return {"input": key, "output": value}


def pairs_of(entries: Iterable[tuple[int, Any]], problems: Problems) -> list[Pair]:
    """Pairs of entries, each with its line (0: not known); inputs are unique."""
    pairs: list[Pair] = []
    seen: dict[str, int] = {}
    for i, (line, entry) in enumerate(entries, start=1):
        pair = _pair(entry, f"pair {i}", line, problems)
        if pair is None:
            continue
        if pair.input in seen:
            where = f" (line {seen[pair.input]})" if seen[pair.input] else ""
            problems.add(line, f"pair {i}: input {pair.input!r} is there already{where}")
        seen.setdefault(pair.input, line)
        pairs.append(pair)
    return pairs


def _pair(entry: Any, which: str, line: int, problems: Problems) -> Pair | None:
    if is_list(entry) and len(entry) > 1:
        entry = {"input": entry[0], "output": entry[1], "accepted": entry[2:]}
    if not is_mapping(entry):
        problems.add(
            line,
            f"{which} is {entry!r}; it must be an object with input and output, or a list of input,"
            " output and other answers",
        )
        return None
    if unknown := sorted(set(entry) - PAIR_KEYS):
        problems.add(line, f"{which}: unknown keys {unknown}; allowed: input, output, accepted")
        return None
    accepted = entry.get("accepted", [])
    if not is_list(accepted):
        problems.add(line, f"{which}: accepted is {accepted!r}; it must be a list of strings")
        return None
    for text in (entry.get("input"), entry.get("output"), *accepted):
        if not isinstance(text, str) or not text.strip() or "\n" in text:
            where = line_of(text) or line
            problems.add(where, f"{which}: {text!r} must be a string of one line, not empty")
            return None
    return Pair(str(entry["input"]), str(entry["output"]), tuple(str(a) for a in accepted))
