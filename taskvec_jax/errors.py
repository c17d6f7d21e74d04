# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""The one exception a user of this project is meant to see, and what is read off other ones."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

MOST_CHARACTERS = 200  # of another library's message, in ours
REPR_CHARACTERS = 60  # of a value, in a message
_OUT_OF_MEMORY = (
    "resource_exhausted",
    "out of memory",
    "bad_alloc",
    "cannot allocate memory",
    "unable to allocate",
)
_OTHERS_FAULT = (  # reasons for which whole files cannot be read at the moment
    "permission_denied",
    "permission denied",
    "too many open files",
    "input/output error",
    "stale file handle",
    "deadline_exceeded",
    "unavailable:",
)
_OTHERS_FAULT_NUMBERS = (
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ESTALE,
)


class TaskVecError(ValueError):
    """Bad input, said in one line: the thing, what was got, what was allowed, the way out.

    Command lines print the message and exit with status 2; library callers may catch it as a
    ``ValueError``.
    """


def short_repr(value: Any) -> str:
    """The beginning of a value's repr, in one line of at most `REPR_CHARACTERS`."""
    text = " ".join(repr(value).split())
    return text if len(text) <= REPR_CHARACTERS else f"{text[:REPR_CHARACTERS]}..."


def first_line(error: BaseException | str) -> str:
    """The first line of an exception's message, or of a text, cut to `MOST_CHARACTERS`.

    An exception without a message, such as ``MemoryError()``, gives the name of its class; an empty
    text gives an empty one.
    """
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()[:MOST_CHARACTERS]
    return "" if isinstance(error, str) else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, says that memory did not suffice.

    On the host (``MemoryError``, ``ENOMEM``, C++'s ``bad_alloc``) or on a device (XLA's
    ``RESOURCE_EXHAUSTED``).
    """
    return any(
        isinstance(cause, MemoryError)
        or getattr(cause, "errno", None) == errno.ENOMEM
        or any(word in str(cause).lower() for word in _OUT_OF_MEMORY)
        for cause in _causes(error)
    )


def is_temporary(error: BaseException) -> bool:
    """Whether an exception is about the machine rather than about what a file holds.

    No permission, too many open files, a disk or a server that does not answer: the same file may
    be read well at another time or by another user. Out of memory has its own function.
    """
    return any(
        getattr(cause, "errno", None) in _OTHERS_FAULT_NUMBERS
        or any(word in str(cause).lower() for word in _OTHERS_FAULT)
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, the members of a group, and what they were raised from or during."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, *getattr(cause, "exceptions", ())]
        if not cause.__suppress_context__:
            waiting.append(cause.__context__)
