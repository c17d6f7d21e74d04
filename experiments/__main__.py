"""Lists what there is to run: `python -m experiments`."""

from __future__ import annotations

import sys

from taskvec_jax.printing import until_nobody_reads
from taskvec_jax.programs import listing, programs

USAGE = "python -m experiments.NAME [--flag=value ...]"


def main() -> None:
    """Prints a line for each program of this package.

    Raises:
      SystemExit: 2, if there is another word on the command line.
    """
    word = next(iter(sys.argv[1:]), "--help")
    if word not in ("-h", "--help"):
        way = f"python -m experiments.{word}" if word in programs("experiments") else USAGE
        print(f"error: unexpected argument {word!r}; run {way}", file=sys.stderr)
        sys.exit(2)
    print(f"usage: {USAGE}; python -m experiments.NAME --help lists the flags\n")
    print("\n".join(listing("experiments")))
    print(
        "\nTimes are for the default model at the paper's settings. `python -m convert` lists the"
        " models,\n`python -m experiments.tasks` the tasks."
    )


if __name__ == "__main__":
    with until_nobody_reads():
        main()
