# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""The registry of tasks: the paper's 18, with our own data, or the user's own files.

`TASKS` maps each name (`category_short_name`) to its Task, in the order of the paper's table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvec_jax.errors import TaskVecError
from taskvec_jax.tasks.algorithmic import algorithmic_tasks
from taskvec_jax.tasks.task import Pair, Task
from taskvec_jax.tasks.task_file import read_own_tasks, read_task_file

__all__ = [
    "TASKS",
    "Pair",
    "Task",
    "full_name",
    "read_own_tasks",
    "read_task_directory",
    "read_task_file",
    "registry",
    "select",
]

_DATA = Path(__file__).parent / "data"


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


def registry(
    directory: Path | None = None, own: Path | None = None, added: Sequence[Task] = ()
) -> dict[str, Task]:
    """All tasks of a run, by name.

    Args:
      directory: task files that replace the built-in word lists; the rules over letters stay.
      own: a file of tasks that join the others (see `task_file`); a name that is there already is
        theirs now.
      added: tasks that join those of directory; the tasks of `own` override them.

    Raises:
      TaskVecError: a bad file.
    """
    tasks: dict[str, Task] = dict(TASKS)
    if directory is not None:
        tasks = {task.name: task for task in algorithmic_tasks()} | read_task_directory(directory)
    tasks |= {task.name: task for task in added}
    if own is not None:
        tasks |= {task.name: task for task in read_own_tasks(own)}
    return tasks


def full_name(name: str, tasks: Mapping[str, Task]) -> str:
    """The name of a task that is called by it, or as tables and figures show it.

    `linguistic_antonyms`, `antonyms` and `Antonyms` are one, and so are `algorithmic_to_upper`,
    `to_upper` and `to upper`.

    Raises:
      TaskVecError: no such task, or several of different categories.
    """
    if name in tasks:
        return name
    plain = _plain(name)
    found = [
        full for full, task in tasks.items() if plain in (_plain(full), _plain(task.short_name))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise TaskVecError(f"task {name!r} may be {' or '.join(found)}; write one of these")
    known = {_plain(task.short_name): full for full, task in tasks.items()}
    known |= {_plain(full): full for full in tasks}
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    hint = f" (did you mean {known[close[0]]}?)" if close else ""
    raise TaskVecError(f"unknown task {name!r}{hint}; allowed: {', '.join(tasks)}")


def _plain(name: str) -> str:
    return "_".join(name.lower().replace("_", " ").split())


def select(
    names: list[str] | None,
    directory: Path | None,
    own: Path | None = None,
    added: Sequence[Task] = (),
) -> list[Task]:
    """The tasks a run asks for.

    Args:
      names: task names, or None for all; see `full_name`.
      directory: as in `registry`.
      own: as in `registry`.
      added: as in `registry`.

    Raises:
      TaskVecError: an unknown name, or one named twice; a bad file.
    """
    tasks = registry(directory, own, added)
    if names is None:
        return list(tasks.values())
    if not names:
        raise TaskVecError("no task is named; name at least one, or leave the flag out for all")
    names = [full_name(name, tasks) for name in names]
    if len(set(names)) != len(names):
        raise TaskVecError(f"a task is named twice in {', '.join(names)}")
    return [tasks[name] for name in names]
