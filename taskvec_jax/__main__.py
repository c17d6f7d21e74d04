"""The programs of this project as one command, from any directory.

    taskvec                                    lists them
    taskvec layer_sweep --model=PATH           as python -m experiments.layer_sweep --model=PATH
    taskvec convert --model=PATH               as python -m convert --model=PATH
    taskvec convert.verify --model=PATH        as python -m convert.verify --model=PATH

`python -m experiments.layer_sweep` looks for `experiments` in the working directory first, and so
does not find this project's where that directory has an `experiments` or a `convert.py` of its
own. `taskvec`, or `python -m taskvec_jax` where the command is not on the PATH, does: it goes by
where the programs are installed.
"""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

from taskvec_jax.models.foreign import PROJECT


def programs() -> dict[str, Path]:
    """Name on the command line -> file, of every module that can be run."""
    found = {}
    for package in ("convert", "experiments"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                name = module.removeprefix("experiments.").removesuffix(".__main__")
                found[name] = path
    return found


def main() -> None:
    """Runs the program that the first argument names, with the other arguments."""
    known = programs()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print("usage: taskvec PROGRAM [--flag=value ...]; taskvec PROGRAM --help lists the flags\n")
        width = max(map(len, known))
        for name, path in known.items():
            print(f"  {name:<{width}}  {_summary(path)}")
        return
    name = sys.argv[1].removeprefix("experiments.")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        print(
            f"error: unknown program {name!r}{hint}; allowed: {', '.join(known)}", file=sys.stderr
        )
        sys.exit(2)
    # Before the working directory and PYTHONPATH, also for the processes that a program starts.
    sys.path.insert(0, str(PROJECT))
    del sys.argv[1]
    module = ".".join(known[name].relative_to(PROJECT).with_suffix("").parts)
    runpy.run_module(module.removesuffix(".__main__"), run_name="__main__", alter_sys=True)


def _summary(path: Path) -> str:
    """First line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


if __name__ == "__main__":
    main()
