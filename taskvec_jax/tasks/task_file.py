# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""Task files: pairs as the paper's code keeps them, and a researcher's own tasks in one file.

A directory holds `category/name.json`, each `{input: output}` or a list of
`{"input", "output", "accepted"}` (accepted is optional). A file of one's own tasks is

* a table of pairs, CSV, TSV or JSONL: one task, called own_ and the file's name (see tables.py);
  in CSV and TSV a line that begins with "# " is a comment;
* JSON: pairs as above, one task again; or one object `{"category": ..., "name": ..., "pairs": ...}`
  or a list of them, and optionally `"match"`, `"leading_space"` and `"ignore_case"` (see
  `task.Task`); or
* Python: a module with `TASKS`, a list of `Task`. It is run as code.

The path `-` is standard input, which may hold all but Python.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError
from taskvec_jax.narrowing import is_list, is_mapping, is_series
from taskvec_jax.tasks.located_json import LocatedDict, line_of, parse
from taskvec_jax.tasks.pairs import Problems, pairs_of, pairs_of_json
from taskvec_jax.tasks.tables import SEPARATORS, kind_of, read_json_lines, read_table
from taskvec_jax.tasks.task import ALLOWED, OWN, Pair, Task, is_allowed, must_be

_log = logging.getLogger(__name__)
_told: set[tuple[Path, int]] = set()  # files whose repeats were told of
TASK_KEYS = {"category", "name", "pairs"}  # and optionally those of task.ALLOWED
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".py")
STANDARD_INPUT = Path("-")


def read_task_file(path: Path) -> Task:
    """Reads `category/name.json`.

    An object that names an input several times has the last of its outputs, as Python's own JSON
    reader and so the paper's code have it; the data of the paper do (`antonyms.json` 18 times).
    That is logged once for a file.

    Raises:
      TaskVecError: not such a file; a list in which inputs repeat; empty strings.
    """
    problems = Problems(path)
    raw = _parse(_text(path, problems), problems)
    if isinstance(raw, LocatedDict) and raw.repeats:
        _tell_repeats(path, [key for key, _ in raw.repeats])
        raw.repeats = ()
    pairs = [] if problems else pairs_of_json(raw, problems)
    _raise_first(problems)
    return Task(path.parent.name, path.stem, tuple(pairs))


def _tell_repeats(path: Path, keys: list[str]) -> None:
    if (path.resolve(), len(keys)) not in _told:
        _told.add((path.resolve(), len(keys)))
        times = "once" if len(keys) == 1 else f"{len(keys)} times"
        _log.warning(
            "%s: an input is there again %s (%s%s); the last one counts, as in the paper's code",
            path,
            times,
            ", ".join(keys[:3]),
            ", ..." if len(keys) > 3 else "",
        )


def read_own_tasks(path: Path) -> list[Task]:
    """Reads a file of own tasks, of the kind that its name ends in.

    Raises:
      TaskVecError: the first of `check_own_tasks`.
    """
    tasks, problems = check_own_tasks(path)
    _raise_first(problems)
    return tasks


def check_own_tasks(path: Path) -> tuple[list[Task], list[str]]:
    """Reads a file of own tasks and collects everything that is wrong with it.

    Returns:
      The tasks that are right, and one line for each problem.
    """
    problems = Problems("standard input" if path == STANDARD_INPUT else path)
    if path.is_dir():
        problems.add(
            0,
            "is a directory; --task_file takes a file of tasks, --task_data a directory of"
            " category/name.json",
        )
        found = []
    elif path.suffix == ".py":
        found = _run(path, problems)
    elif path == STANDARD_INPUT or path.suffix.lower() in ENDINGS:
        found = _own(path, problems)
    else:
        problems.add(0, f"ends in {path.suffix or 'nothing'!r}; allowed: {', '.join(ENDINGS)}")
        found = []
    if not found and not problems:
        problems.add(0, "holds no task; python -m experiments.tasks --new=FILE writes a template")
    seen: set[str] = set()
    for task in found:
        if task.name in seen:
            problems.add(0, f"task {task.name} is there twice")
        seen.add(task.name)
    return found, problems


def _raise_first(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TaskVecError(problems[0] + more)


def _text(path: Path, problems: Problems) -> str:
    try:
        if path == STANDARD_INPUT:
            return _standard_input()
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problems.add(0, f"cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.add(line, f"is not UTF-8 ({error.reason})")
    return ""


@functools.cache
def _standard_input() -> str:
    """All of it, once: a run reads its tasks several times."""
    return sys.stdin.read().removeprefix("\ufeff")


def _parse(text: str, problems: Problems) -> Any:
    if problems:
        return None
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        problems.add(error.lineno, f"cannot be read as JSON: {error.msg} (column {error.colno})")
    return None


def _own(path: Path, problems: Problems) -> list[Task]:
    """The tasks of a file that is not Python."""
    text = _text(path, problems)
    kind = kind_of(text) if path == STANDARD_INPUT else path.suffix.lower()
    if problems:
        return []
    if kind == ".json":
        raw = _parse(text, problems)
        if problems or raw == []:
            return []
        if _are_tasks(raw):
            return _tasks(raw, problems)
        pairs = pairs_of_json(raw, problems)
    elif kind == ".jsonl":
        entries = read_json_lines(text, problems)
        if entries and all(_are_tasks(entry) for _, entry in entries):
            return [task for _, entry in entries for task in _tasks(entry, problems)]
        pairs = pairs_of(entries, problems)
    else:
        pairs = pairs_of(read_table(text, SEPARATORS[kind], problems), problems)
    return [Task(OWN, name_of(path), tuple(pairs))] if pairs and not problems else []


def name_of(path: Path) -> str:
    """The name, inside its category, of a task whose file holds pairs alone."""
    name = "stdin" if path == STANDARD_INPUT else re.sub(r"\W+", "_", path.stem).strip("_")
    return name or "pairs"


def _are_tasks(raw: Any) -> bool:
    """Whether a JSON value is meant as a task or several, and not as pairs."""
    some = raw if is_list(raw) and raw else [raw]
    return all(
        is_mapping(one) and ("pairs" in one or {"category", "name"} <= set(one)) for one in some
    )


def _tasks(raw: Any, problems: Problems) -> list[Task]:
    """The tasks of a JSON object, or of a list of them."""
    tasks: list[Task] = []
    for entry in raw if is_list(raw) else [raw]:
        line = line_of(entry)
        if not is_mapping(entry) or set(entry) - set(ALLOWED) != TASK_KEYS:
            got: Any = sorted(entry) if is_mapping(entry) else entry
            problems.add(
                line,
                'a task is an object {"category", "name", "pairs"} and optionally'
                f" {', '.join(ALLOWED)}; this is {got!r}",
            )
            continue
        before = len(problems)
        for key in ("category", "name"):
            if not isinstance(entry[key], str) or not entry[key].strip():
                problems.add(line_of(entry[key]) or line, f"{key} must be a string, not empty")
        stated = {key: _plain(entry[key]) for key in ALLOWED if key in entry}
        for key, value in stated.items():
            if not is_allowed(key, value):
                problems.add(line_of(entry[key]) or line, must_be(key, value))
        pairs = pairs_of_json(entry["pairs"], problems)
        if len(problems) == before:
            tasks.append(Task(str(entry["category"]), str(entry["name"]), tuple(pairs), **stated))
    return tasks


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _run(path: Path, problems: Problems) -> list[Task]:
    try:
        found = runpy.run_path(str(path)).get("TASKS")
    except SyntaxError as error:
        problems.add(error.lineno or 0, f"not Python: {error.msg}")
        return []
    except OSError as error:
        problems.add(0, f"cannot be read ({error.strerror})")
        return []
    except Exception as error:  # whatever the user's own code raises
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        line = (lines[-1] if lines else 0) or 0
        problems.add(line, f"raised {type(error).__name__}: {error}".replace("\n", " "))
        return []
    if not is_series(found) or not all(isinstance(t, Task) for t in found):
        problems.add(0, "must define TASKS, a list of taskvec_jax.tasks.Task")
        return []
    source = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for task in found:
        _check_task(task, source, problems)
    return list(found)


def _quoted_line(text: Any, source: list[str]) -> int:
    """The first line of source that has a text in quotes; 0 when it is computed, not written."""
    quoted = (f'"{text}"', f"'{text}'")
    return next((i for i, line in enumerate(source, 1) if any(q in line for q in quoted)), 0)


def _check_task(task: Task, source: list[str], problems: Problems) -> None:
    seen: set[str] = set()
    if not task.pairs:
        problems.add(0, f"task {task.name} has no pairs")
    for i, pair in enumerate(task.pairs, start=1):
        which = f"task {task.name}, pair {i}"
        if not isinstance(pair, Pair):
            problems.add(0, f"{which} is {pair!r}; it must be a Pair")
            continue
        for text in (pair.input, pair.output, *pair.accepted):
            if not isinstance(text, str) or not text.strip() or "\n" in text:
                line = _quoted_line(text, source)
                problems.add(line, f"{which}: {text!r} must be a string of one line, not empty")
        if pair.input in seen:
            line = _quoted_line(pair.input, source)
            problems.add(line, f"{which}: input {pair.input!r} is there already")
        seen.add(pair.input)
