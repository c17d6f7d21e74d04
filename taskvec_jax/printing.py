"""What a program does when nobody reads what it prints any more, as in `--help | head`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Ends the program quietly when the other end of its standard output is closed.

    Raises:
      SystemExit: 1, in place of BrokenPipeError.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, so that it does not fail while Python ends
    except BrokenPipeError:
        # What is still to be flushed when Python ends goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
