"""A file of one's own tasks to begin with: a copy of an example, with its comments."""

from __future__ import annotations

from pathlib import Path

from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.tasks.task_file import name_of

EXAMPLES = {path.suffix: path for path in Path(__file__).parent.glob("own_task.*")}


def write_template(path: Path) -> None:
    """Writes the example of a path's kind there, its commands about that path.

    Raises:
      TaskVecError: a kind without comments, a file that is there already, or no room.
    """
    if path.suffix not in EXAMPLES:
        raise TaskVecError(
            f"--new={path}: ends in {path.suffix or 'nothing'!r}; allowed: "
            f"{', '.join(sorted(EXAMPLES))} (JSON has no comments; its forms stand in"
            " taskvec_jax/tasks/README.md)"
        )
    text = EXAMPLES[path.suffix].read_text(encoding="utf-8")
    text = text.replace("--tasks=own_task", f"--tasks=own_{name_of(path)}")
    text = text.replace(f"own_task{path.suffix}", str(path))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise TaskVecError(f"--new={path}: is there already; choose another name") from None
    except OSError as error:
        raise TaskVecError(f"--new={path}: cannot be written ({first_line(error)})") from None
