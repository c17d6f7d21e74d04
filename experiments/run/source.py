"""When a result was computed, and by which code."""

from __future__ import annotations

import functools
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from taskvec_jax.errors import TaskVecError

PROJECT = Path(__file__).resolve().parents[2]
DIGITS = 12  # of a commit's hash, for people


def date() -> str:
    """Today in UTC, `2026-11-26`; the day of $SOURCE_DATE_EPOCH where that is set, in seconds.

    Raises:
      TaskVecError: $SOURCE_DATE_EPOCH is no whole number.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch and not epoch.isdecimal():
        raise TaskVecError(f"$SOURCE_DATE_EPOCH is {epoch!r}; allowed: whole seconds since 1970")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.date().isoformat()


@functools.cache
def commit() -> str | None:
    """The commit that the code is at, with a note where files differ from it.

    None outside of a checkout of the project, and where git is not installed.
    """
    if not (PROJECT / ".git").exists():
        return None  # installed; a repository around it would be another one

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return done.stdout.strip()

    try:
        found = git("rev-parse", f"--short={DIGITS}", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{found} (with changes)" if changed else found
