"""What memory this process has taken, as the kernel counts it."""

from __future__ import annotations

import contextlib
from pathlib import Path


def process_peak() -> int | None:
    """Most resident bytes of this process since its start or the last reset; None if not told.

    Not getrusage's number, which on Linux begins with the memory of the parent.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def reset_peak_memory() -> None:
    """Starts the kernel's count of this process's peak memory anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
