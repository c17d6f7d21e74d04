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
from typing import Any, NamedTuple
from unittest import mock

from absl import flags

from convert import help as helping


class Done(NamedTuple):
    """What a command left.

    Attributes:
      returncode: its exit status.
      stdout, stderr: what it printed to each.
      printed: both, in order.
    """

    returncode: int
    stdout: str
    stderr: str
    printed: str


class _Copied(io.StringIO):
    """What is written, which is also written to another."""

    def __init__(self, both: io.StringIO) -> None:
        super().__init__()
        self._both = both

    def write(self, text: str) -> int:
        self._both.write(text)
        return super().write(text)


def experiment(module: str, *flags: str) -> Done:
    """Runs an experiment, as `tiny_checkpoint.run` does in a process of its own."""
    return run(f"python -m experiments.{module}", *flags)


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
    stdout, stderr = _Copied(printed), _Copied(printed)
    at_end: list[tuple[Any, tuple[Any, ...]]] = []

    def register(function: Any, *arguments: Any, **named: Any) -> Any:
        if str(getattr(function, "__module__", "")).startswith("experiments."):
            at_end.append((function, arguments))
        else:  # a library's own, which ends what the next command needs too
            known(function, *arguments, **named)
        return function

    known = atexit.register
    for name in helping.project_flags():  # of the command before
        delattr(flags.FLAGS, name)
    helping._groups.clear()
    flags.FLAGS.unparse_flags()
    sys.argv = [module, *words, *more]
    try:
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
            mock.patch.object(atexit, "register", register),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                status = 0
            except SystemExit as ended:
                status = ended.code or 0
            for function, arguments in reversed(at_end):
                function(*arguments)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, sigterm)
    return Done(int(status), stdout.getvalue(), stderr.getvalue(), printed.getvalue())
