"""The programs of this project as one command, from any directory.

    taskvec                                    lists them
    taskvec layer_sweep --model=PATH           as python -m experiments.layer_sweep --model=PATH
    taskvec sweep --model=PATH                 the same
    taskvec convert --model=PATH               as python -m convert --model=PATH
    taskvec convert.verify --model=PATH        as python -m convert.verify --model=PATH

`python -m experiments.layer_sweep` looks for `experiments` in the working directory first, and so
does not find this project's where that directory has an `experiments` or a `convert.py` of its
own. `taskvec`, or `python -m taskvec_jax` where the command is not on the PATH, does: it goes by
where the programs are installed.
"""

from __future__ import annotations

import difflib
import runpy
import sys

from taskvec_jax.models.foreign import PROJECT
from taskvec_jax.printing import until_nobody_reads
from taskvec_jax.programs import ALIASES, listing, module_of, programs


def main() -> None:
    """Runs the program that the first argument names, with the other arguments."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        with until_nobody_reads():
            way = "taskvec PROGRAM [--flag=value ...]"
            print(f"usage: {way}; taskvec PROGRAM --help lists the flags\n")
            print("\n".join(listing()))
            print(
                "\n" + ", ".join(f"{short} is short for {name}" for short, name in ALIASES.items())
            )
        return
    known = programs()
    name = sys.argv[1].removeprefix("experiments.")
    name = ALIASES.get(name, name)
    if name not in known:
        close = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        print(
            f"error: unknown program {name!r}{hint}; allowed: {', '.join(known)}", file=sys.stderr
        )
        sys.exit(2)
    # Before the working directory and PYTHONPATH, also for the processes that a program starts.
    sys.path.insert(0, str(PROJECT))
    del sys.argv[1]
    runpy.run_module(module_of(known[name]), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
