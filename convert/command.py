"""What every command line shares: flags of the model, a progress bar, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from absl import app, flags, logging
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from taskvec_jax.config import DEFAULT_MODEL, DTYPES
from taskvec_jax.errors import TaskVecError
from taskvec_jax.loading import Progress as Report

FLAGS = flags.FLAGS
T = TypeVar("T")
console = Console(highlight=False, soft_wrap=True)


def define_model_flags(dtype: str | None) -> None:
    """--model, --revision and --dtype, which is `dtype` when left out (None: as the source is)."""
    flags.DEFINE_string(
        "model",
        DEFAULT_MODEL,
        "a known name, ORG/NAME of the Hugging Face hub, or the path of a Hugging Face directory,"
        " .gguf file, Meta's consolidated.*.pth or converted model",
    )
    flags.DEFINE_string("revision", None, "branch, tag or commit on the hub, such as step1000")
    as_source = "" if dtype else "; as the source has them when left out"
    flags.DEFINE_enum("dtype", dtype, list(DTYPES), f"of the parameters{as_source}")


def progress_bar() -> Progress:
    """The house's progress bar; rows printed through its console stay above it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def reporting(work: Callable[[Report], T]) -> T:
    """Does a piece of work on the model behind a progress bar, and gives its result."""
    with progress_bar() as bar:
        row = bar.add_task(f"loading {FLAGS.model}", total=1)

        def report(what: str, done: int, total: int) -> None:
            bar.update(row, description=f"{what} {FLAGS.model}", completed=done, total=total)

        return work(report)


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
