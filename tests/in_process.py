"""Commands run in this process, so that those which need the same programs compile them once."""

from __future__ import annotations

import atexit
import contextlib
import io
import runpy
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

from absl import flags

from convert import help as helping


class Done(NamedTuple):
    """What a command left.

    Attributes:
      returncode: its exit status.
      printed: standard output and error.
    """

    returncode: int
    printed: str


def run(command: str, *more: str) -> Done:
    """Runs `python -m MODULE --flag=value ...` in the working directory, to the end of a process.

    Args:
      command: as it is written in a shell.
      more: further flags.
    """
    python, m, module, *words = shlex.split(command)
    assert (python, m) == ("python", "-m"), command
    argv, sigterm = sys.argv, signal.getsignal(signal.SIGTERM)
    printed = io.StringIO()
    at_end: list[tuple[Callable[..., object], tuple[object, ...]]] = []
    for name in helping.project_flags():  # of the command before
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.argv = [module, *words, *more]
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
            mock.patch.object(atexit, "register", lambda f, *args: at_end.append((f, args))),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
            try:
                runpy.run_module(module, run_name="__main__")
                status = 0
            except SystemExit as ended:
                status = ended.code or 0
            for function, arguments in reversed(at_end):
                function(*arguments)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, sigterm)
    return Done(int(status), printed.getvalue())
