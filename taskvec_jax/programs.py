"""The programs of this project: what each is called, what it does, and how long it takes.

A program is a module that ends in `if __name__ == "__main__":`. The first line of its docstring
says what it does; a line that begins with `Time:` how long that takes, on the default model at the
paper's settings where that matters, with the circumstances in brackets.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from taskvec_jax.models.foreign import PROJECT

PACKAGES = {"experiments": "Experiments and tools", "convert": "Models"}
ALIASES = {"sweep": "layer_sweep", "train": "small_pythia.train", "verify": "convert.verify"}
_TIME = re.compile(r"^Time: (.+?)\.?$(?:\n|\Z)", re.MULTILINE)
_RUN = '\nif __name__ == "__main__":'


def programs(*packages: str) -> dict[str, Path]:
    """Name on the command line -> file, of every module that can be run.

    A program of `experiments` is called by its name there, one of `convert` with that package's.

    Args:
      packages: whose programs; all of `PACKAGES` when there are none.
    """
    found = {}
    for package in packages or PACKAGES:
        for path in sorted((PROJECT / package).rglob("*.py")):
            if path != PROJECT / "experiments" / "__main__.py" and _RUN in path.read_text("utf-8"):
                found[module_of(path).removeprefix("experiments.")] = path
    return found


def module_of(path: Path) -> str:
    """What `python -m` is given for a program."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__main__")


def about(path: Path) -> tuple[str, str]:
    """What a program does, in a sentence, and how long it takes; empty where it does not say."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    time = _TIME.search(docstring)
    first = " ".join(docstring.split("\n\n")[0].split()).rstrip(".")
    return re.sub(r" \([^()]*\)(\??)$", r"\1", first), time[1].split(" (")[0] if time else ""


def listing(*packages: str) -> list[str]:
    """A line for each program: its name, how long it takes, what it does.

    Args:
      packages: as for `programs`.
    """
    lines = []
    for package in packages or PACKAGES:
        rows = [(name, *about(path)) for name, path in programs(package).items()]
        names, times = (max(len(row[i]) for row in rows) for i in (0, 2))
        lines += ["", f"{PACKAGES[package]}:"]
        lines += [f"  {name:<{names}}  {time:<{times}}  {what}" for name, what, time in rows]
    return lines[1:]
