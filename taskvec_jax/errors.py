"""The one exception a user of this project is meant to see."""

from __future__ import annotations


class TaskVecError(ValueError):
    """Bad input, said in one line: the thing, what was got, what was allowed, the way out.

    Command lines print the message and exit with status 2; library callers may catch it as a
    ``ValueError``.
    """
