"""Progress: how long the rest takes, on a terminal and in a log."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from convert import progress
from convert.progress import Bar, Overall, in_words


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def log(clock: Clock | None = None) -> Console:
    """A console that is no terminal."""
    return Console(file=io.StringIO(), width=200, get_time=clock)


def test_times_are_said_in_words():
    assert [in_words(s) for s in (40.2, 720, 12_600)] == ["40 s", "12 minutes", "3.5 hours"]


def test_the_time_left_goes_by_the_time_and_costs_of_what_is_done(clock):
    overall = Overall({"a": 2.0, "b": 1.0, "c": 3.0})
    assert overall.place == ""
    overall.begin("a")
    assert overall.place == "1 of 3"
    assert overall.seconds_left(0.0) is None
    clock.now += 10
    assert overall.seconds_left(0.5) == pytest.approx(10 + 40)  # half of a took 10 s
    clock.now += 10
    overall.end(computed=True)
    overall.begin("b")
    assert overall.seconds_left(0.0) == pytest.approx(40)
    clock.now += 30  # b is slower than its cost says
    assert overall.seconds_left(1.0) == pytest.approx(50 / 3 * 3)


def test_what_was_found_done_says_nothing_of_the_rest(clock):
    overall = Overall({"a": 1.0, "b": 4.0, "c": 1.0})
    overall.begin("a")
    overall.end(computed=False)
    overall.begin("b")
    assert overall.seconds_left(0.0) is None
    overall.found = 0.75
    clock.now += 10
    assert overall.seconds_left(1.0) == pytest.approx(10)  # a quarter of b, as much as c, took 10 s


def test_a_bar_reckons_from_what_was_done_since_it_found_the_rest(clock):
    overall = Overall({"a": 1.0, "b": 1.0})
    overall.begin("a")
    bar = Bar(log(clock), overall)
    row = bar.add_task("sweep", total=18)
    bar.update(row, completed=12)  # at once: another run had done them
    assert bar.left(bar.tasks[0]) == ""
    clock.now += 27
    bar.advance(row, 3)
    assert bar.left(bar.tasks[0]) == "about 27 s left, about 3 minutes for all"  # 3 + 18 at 9 s
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d 1 of 2: sweep, 15 of 18, 27 s so far, about 27 s left,"
        r" about 3 minutes for all",
        bar.line(bar.tasks[0]),
    )


def test_a_log_gets_a_line_as_time_passes_though_nothing_is_finished(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    console = log()
    with Bar(console) as bar:
        bar.add_task("one long unit", total=2)
        deadline = time.monotonic() + 10
        while console.file.getvalue().count("\n") < 2 and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.01)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) >= 2
    assert all(" one long unit, 0 of 2, " in line for line in lines)
    time.sleep(0.06)
    assert len(console.file.getvalue().splitlines()) == len(lines), "it ends with the work"  # type: ignore[attr-defined]


def test_short_work_leaves_no_line_in_a_log():
    console = log()
    with Bar(console) as bar:
        bar.advance(bar.add_task("short", total=1))
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_terminal_has_the_bar_and_the_time_left_and_no_lines(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    overall = Overall({"a": 1.0, "b": 1.0})
    overall.begin("b")
    with Bar(console, overall) as bar:
        row = bar.add_task("sweep", total=4)
        monkeypatch.setattr(progress, "AT_ONCE", 0.0)
        time.sleep(0.01)
        bar.advance(row, 1)
        bar.refresh()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of 2: sweep" in printed
    assert "about 0 s left" in printed
    assert not re.search(r"\d\d:\d\d:\d\d 2 of 2", printed)
