"""Experiments in forked processes, for tests that start the same command many times.

A process that has imported everything forks a child for each run, which then does what `python -m
experiments.<module>` does: it has a backend, a memory and a death of its own, and starts without
the seconds of imports. No backend is up and no thread of Python runs where the fork happens.

    python tests/zygote.py MODULE ...       reads orders and gives answers, JSON lines both
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DAY = "1790000000"  # for figures that say when they were made and are compared byte for byte
DEEDS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")


class Child:
    """A run under way.

    Attributes:
      pid: of the process.
      returncode: None as long as it runs; minus the signal that killed it.
    """

    def __init__(self, answers: Any, pid: int, printed: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._answers = answers
        self._printed = printed

    def poll(self) -> int | None:
        """The return code if it has ended."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """The return code, once it has ended."""
        if self.returncode is None:
            self.returncode = json.loads(self._answers.readline())["returncode"]
        assert self.returncode is not None
        return self.returncode

    def kill(self, how: int = signal.SIGKILL) -> None:
        """Sends it a signal."""
        os.kill(self.pid, how)

    @property
    def printed(self) -> str:
        """Standard output and error, both."""
        return self._printed.read_text()


class Zygote:
    """The process that forks; one child at a time. A context manager."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *modules],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `Child.poll` looks at the pipe itself
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()  # its input ends, and so does it

    def start(
        self,
        module: str,
        *flags: str,
        printed: Path,
        env: dict[str, str],
        doom: dict[str, Any] | None = None,
    ) -> Child:
        """Starts a run.

        Args:
          module: of `experiments`.
          printed: file for what it prints.
          env: environment variables that are set for it.
          doom: `watch`'s arguments; None: it is not watched.
        """
        order = {"module": module, "flags": flags, "printed": str(printed), "env": env}
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        orders.write((json.dumps({**order, "doom": doom}) + "\n").encode())
        return Child(answers, json.loads(answers.readline())["pid"], printed)


def watch(
    under: str, record: str, deed: str = ".", nth: int | None = None, delay: float = 0.0
) -> None:
    """Ends this process, without a word, a moment after the nth thing it does to a directory.

    Args:
      under: the directory.
      record: file that the number of deeds is written to, should the process live to its end.
      deed: pattern of the deeds that count, written as `os.rename FROM TO`, `open PATH` and so on.
      nth: counted from 0; None: never.
      delay: seconds from there to the end; 0: before the deed is done.
    """
    import atexit

    pattern, seen = re.compile(deed), 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in DEEDS or under not in (line := " ".join(map(str, (event, *args[:2])))):
            return
        if not pattern.search(line):
            return
        if seen == nth and delay:
            signal.setitimer(signal.ITIMER_REAL, delay)  # SIGALRM kills, wherever it finds us
        elif seen == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    sys.addaudithook(hook)
    atexit.register(lambda: Path(record).write_text(str(seen)))


def serve(modules: list[str]) -> None:
    """Forks a child for each order; only children return."""
    for name in ("matplotlib.pyplot", "orbax.checkpoint", "experiments.page.figures"):
        importlib.import_module(name)
    for module in modules:  # what they import stays; themselves they are run, not imported
        importlib.import_module(f"experiments.{module}")
        del sys.modules[f"experiments.{module}"]
    while line := sys.stdin.readline():
        order = json.loads(line)
        if not (pid := os.fork()):
            become(order)
            return
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}), flush=True)


def become(order: dict[str, Any]) -> None:
    """Runs the module of an order as `python -m` does."""
    printed = os.open(order["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((0, nothing), (1, printed), (2, printed)):
        os.dup2(theirs, ours)
    os.environ.update(order["env"])
    # The package is imported already, without this environment.
    importlib.import_module("taskvec_jax.distributed.backend").turn_off_wrong_fusion()
    sys.argv = [order["module"], *order["flags"]]
    if order["doom"]:
        watch(**order["doom"])
    runpy.run_module(f"experiments.{order['module']}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
