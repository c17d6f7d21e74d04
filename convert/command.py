"""What the commands of `convert` share: flags, a progress bar, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from taskvec_jax.config import DEFAULT_MODEL, DTYPES
from taskvec_jax.errors import TaskVecError
from taskvec_jax.loading import Progress as Report

FLAGS = flags.FLAGS
console = Console(highlight=False, soft_wrap=True)


def define_model_flags() -> None:
    """--model, --revision and --dtype."""
    flags.DEFINE_string(
        "model",
        DEFAULT_MODEL,
        "a known name, ORG/NAME of the Hugging Face hub, or the path of a Hugging Face directory,"
        " .gguf file, Meta's consolidated.*.pth or converted model",
    )
    flags.DEFINE_string("revision", None, "branch, tag or commit on the hub, such as step1000")
    flags.DEFINE_enum(
        "dtype", None, list(DTYPES), "of the parameters; as the source has them when left out"
    )


def reporting(work: Callable[[Report], None]) -> None:
    """Does a piece of work behind a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task(FLAGS.model, total=1)

        def report(what: str, done: int, total: int) -> None:
            bar.update(row, description=f"{what} {FLAGS.model}", completed=done, total=total)

        work(report)


def run(main: Callable[[], None]) -> None:
    """Runs a command: parses flags, and turns bad input into one line and exit status 2."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = FLAGS(argv)
        except flags.Error as error:
            _refuse(f"{error}; --help lists the flags")
        if len(rest) > 1:
            _refuse(f"unexpected argument {rest[1]!r}; flags start with --, --help lists them")
        return rest

    def wrapped(argv: list[str]) -> None:
        del argv
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax and JAX speak at length below that
        try:
            main()
        except TaskVecError as error:
            _refuse(str(error))
        except KeyboardInterrupt:
            console.print("stopped")
            sys.exit(130)

    app.run(wrapped, flags_parser=parse)


def _refuse(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", markup=False)
    sys.exit(2)
