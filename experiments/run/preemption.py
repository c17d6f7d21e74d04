"""SIGTERM, which schedulers send before they take a machine away.

The unit in hand is finished and kept, then the run ends with one line and exit status 0; the same
command goes on from there, on another number of devices too. Of several processes it is enough
that one is asked: all end after the same unit.
"""

from __future__ import annotations

import signal
from typing import Any

from experiments.run.flags import console
from experiments.run.journal import GOES_ON
from taskvec_jax.distributed.processes import anywhere

_asked = False


def listen() -> None:
    """From now on SIGTERM waits for `stop_if_asked`."""

    def ask(number: int, frame: Any) -> None:
        del number, frame
        global _asked
        _asked = True

    signal.signal(signal.SIGTERM, ask)


def stop_if_asked() -> None:
    """To be called between units, where everything finished is on the disk; by all processes.

    Raises:
      SystemExit: 0, if SIGTERM came to any of them.
    """
    if anywhere(_asked):
        console.print(f"stopped by SIGTERM between two units; {GOES_ON}")
        raise SystemExit(0)
