"""The registry of tasks: the paper's 18, with our own data, or a directory of the user's.

`TASKS` maps each name (`category_short_name`) to its Task, in the order of the paper's table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError
from taskvec_jax.tasks.algorithmic import algorithmic_tasks
from taskvec_jax.tasks.task import Pair, Task

__all__ = ["TASKS", "Pair", "Task", "read_task_directory", "select"]

_DATA = Path(__file__).parent / "data"


def read_task_file(path: Path) -> Task:
    """Reads `category/name.json`.

    The file holds `{input: output}`, the layout of the paper's released data, or a list of
    `{"input": ..., "output": ..., "accepted": [...]}` where `accepted` is optional.

    Raises:
      TaskVecError: not such a file; inputs that repeat; empty strings.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskVecError(f"{path}: cannot be read as JSON: {error}") from None
    if isinstance(raw, dict):
        raw = [{"input": k, "output": v} for k, v in raw.items()]
    if not isinstance(raw, list) or not raw:
        raise TaskVecError(
            f'{path}: must hold {{input: output}} or a list of {{"input", "output"}}, not empty'
        )
    pairs = tuple(_pair(entry, f"{path}: pair {i}") for i, entry in enumerate(raw, start=1))
    seen: set[str] = set()
    for i, pair in enumerate(pairs, start=1):
        if pair.input in seen:
            raise TaskVecError(f"{path}: pair {i}: input {pair.input!r} is there already")
        seen.add(pair.input)
    return Task(path.parent.name, path.stem, pairs)


def _pair(entry: Any, where: str) -> Pair:
    if not isinstance(entry, dict):
        raise TaskVecError(f"{where} is {entry!r}; it must be an object with input and output")
    accepted = entry.get("accepted", [])
    if unknown := sorted(set(entry) - {"input", "output", "accepted"}):
        raise TaskVecError(f"{where}: unknown keys {unknown}; allowed: input, output, accepted")
    if not isinstance(accepted, list):
        raise TaskVecError(f"{where}: accepted is {accepted!r}; it must be a list of strings")
    for text in (entry.get("input"), entry.get("output"), *accepted):
        if not isinstance(text, str) or not text.strip() or "\n" in text:
            raise TaskVecError(f"{where}: {text!r} must be a string of one line, not empty")
    return Pair(entry["input"], entry["output"], tuple(accepted))


def read_task_directory(directory: Path) -> dict[str, Task]:
    """All tasks of a directory laid out as `category/name.json`, in order of name.

    Raises:
      TaskVecError: no such directory, no task files in it, or a bad one.
    """
    files = sorted(directory.glob("*/*.json"))
    if not files:
        raise TaskVecError(
            f"{directory}: no task files; expected category/name.json, such as"
            " knowledge/country_capital.json"
        )
    tasks = [read_task_file(path) for path in files]
    return {task.name: task for task in tasks}


def _builtin() -> dict[str, Task]:
    tasks = [*algorithmic_tasks(), *read_task_directory(_DATA).values()]
    return {task.name: task for task in tasks}


TASKS: Mapping[str, Task] = _builtin()


def select(names: list[str] | None, directory: Path | None) -> list[Task]:
    """The tasks a run asks for.

    Args:
      names: task names, or None for all.
      directory: task files that replace the built-in word lists; the rules over letters stay.

    Raises:
      TaskVecError: an unknown name, or one named twice.
    """
    tasks: dict[str, Task] = dict(TASKS)
    if directory is not None:
        tasks = {task.name: task for task in algorithmic_tasks()} | read_task_directory(directory)
    if names is None:
        return list(tasks.values())
    if not names:
        raise TaskVecError("no task is named; name at least one, or leave the flag out for all")
    if unknown := [name for name in names if name not in tasks]:
        raise TaskVecError(f"unknown task {unknown[0]!r}; allowed: {', '.join(tasks)}")
    if len(set(names)) != len(names):
        raise TaskVecError(f"a task is named twice in {', '.join(names)}")
    return [tasks[name] for name in names]
