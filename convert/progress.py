"""How far long work has come: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import dataclasses
import threading
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

EVERY = 60.0  # seconds between the lines of a log
AT_ONCE = 2.0  # seconds; what is done sooner after the start was found done, and says nothing
_told = time.monotonic()  # when the last line of a log was printed


def in_words(seconds: float) -> str:
    """`40 s`, `12 minutes`, `3.5 hours`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


@dataclasses.dataclass
class Overall:
    """Pieces of work that follow one another, such as the experiments of a paper.

    How long the rest takes: the time that work took so far, times the ratio of costs. What was
    found done, whole pieces or shares of one, counts neither as time nor as work.

    Attributes:
      costs: name of each piece -> what it costs in relation to the others, above 0.
      found: share of the piece under way that was found done, from 0 to 1.
    """

    costs: dict[str, float]
    found: float = 0.0
    _at: int = -1
    _began: float = 0.0
    _seconds: float = 0.0  # of finished work
    _paid: float = 0.0  # what it cost

    def begin(self, name: str) -> None:
        """The piece of this name begins."""
        self._at, self._began, self.found = list(self.costs).index(name), time.monotonic(), 0.0

    def end(self, *, computed: bool) -> None:
        """The piece that was begun ends.

        Args:
          computed: it was work, rather than found done.
        """
        if computed:
            self._seconds += time.monotonic() - self._began
            self._paid += (1 - self.found) * self._cost

    @property
    def place(self) -> str:
        """`3 of 9`; empty before the first."""
        return f"{self._at + 1} of {len(self.costs)}" if self._at >= 0 else ""

    def seconds_left(self, share: float) -> float | None:
        """About how long the piece under way and those after it take; None: not known yet.

        Args:
          share: of the piece under way that is done, from 0 to 1.
        """
        seconds = self._seconds + time.monotonic() - self._began
        paid = self._paid + max(0.0, share - self.found) * self._cost
        if self._at < 0 or paid <= 0:
            return None
        rest = sum(list(self.costs.values())[self._at + 1 :])
        return seconds / paid * ((1 - share) * self._cost + rest)

    @property
    def _cost(self) -> float:
        return list(self.costs.values())[self._at]


class Bar(Progress):
    """A progress bar; lines printed through its console stay above it.

    Where the console is no terminal, the bar is a line every `EVERY` seconds instead, which says
    what is under way, how much of it is done, and about how long the rest takes.
    """

    def __init__(self, console: Console, overall: Overall | None = None) -> None:
        self._overall = overall
        self._place = f"{overall.place}: " if overall is not None and overall.place else ""
        self._found: dict[TaskID, tuple[float, float]] = {}  # when and how much, `AT_ONCE`
        self._ended = threading.Event()
        super().__init__(
            TextColumn(self._place + "{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            _Left(self),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Bar:
        super().__enter__()
        if self.disable:
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        super().__exit__(kind, error, trace)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As of `Progress`."""
        super().update(task_id, **changes)
        self._note_found(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As of `Progress`."""
        super().advance(task_id, advance)
        self._note_found(task_id)

    def _note_found(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        if (task.elapsed or 0.0) < AT_ONCE:
            self._found[task_id] = task.elapsed or 0.0, task.completed
            if self._overall is not None and task.total:
                self._overall.found = task.completed / task.total

    def left(self, task: Task) -> str:
        """`about 40 s left, 12 minutes for all`; empty as long as nothing is known."""
        since, found = self._found.get(task.id, (0.0, 0.0))
        total, done = task.total or 0.0, task.completed - found
        words = []
        if done > 0 and total > task.completed:
            rate = done / max((task.elapsed or 0.0) - since, 1e-9)
            words.append(f"about {in_words((total - task.completed) / rate)} left")
        share = task.completed / total if total else 0.0
        if self._overall is not None:
            seconds = self._overall.seconds_left(share)
            words += [] if seconds is None else [f"about {in_words(seconds)} for all"]
        return ", ".join(words)

    def line(self, task: Task) -> str:
        """A row of the bar as a line of a log."""
        words = [
            f"{time.strftime('%H:%M:%S')} {self._place}{task.description}",
            f"{task.completed:.0f} of {task.total or 0:.0f}",
            f"{in_words(task.elapsed or 0.0)} so far",
            self.left(task),
        ]
        return ", ".join(word for word in words if word)

    def _tell(self) -> None:
        """Prints a line of a log every `EVERY` seconds until the work ends.

        The time is counted from the last line of any bar, so that many short bars are told of too.
        """
        global _told
        while not self._ended.wait(max(0.0, _told + EVERY - time.monotonic())):
            for task in self.tasks:
                self.console.print(self.line(task), markup=False)
            _told = time.monotonic()


class _Left(ProgressColumn):
    """Time that the rest takes."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar

    def render(self, task: Task) -> Text:
        """See the class."""
        return Text(self._bar.left(task), style="cyan")
