"""Finished units are kept, found again, never mixed, and survive a torn end."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import numpy as np
import pytest

from experiments.run.journal import Journal
from experiments.run.writing import WriteError
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings


def never():
    raise AssertionError("computed twice")


def test_a_finished_unit_is_found_and_not_computed_again(tmp_path):
    journal = Journal(tmp_path)
    assert journal.unit({"task": "a"}, lambda: {"x": (1, 2.5)}) == {"x": [1, 2.5]}
    assert journal.unit({"task": "a"}, never) == {"x": [1, 2.5]}
    journal.close()
    again = Journal(tmp_path)
    assert again.unit({"task": "a"}, never) == {"x": [1, 2.5]}
    assert again.computed == 0
    again.close()


def test_units_of_other_settings_seeds_tasks_and_models_never_mix(tmp_path):
    journal = Journal(tmp_path)
    base = {"model": "m", "task": "a", "settings": dataclasses.asdict(Settings())}
    whats = [base, {**base, "model": "n"}, {**base, "task": "b"}]
    for field in dataclasses.fields(Settings):
        words = {"template": "{x}={y}", "rule": "paper", "filter": "none"}
        changed = dataclasses.replace(Settings(), **{field.name: words.get(field.name, 7)})
        whats.append({**base, "settings": dataclasses.asdict(changed)})
    values = [journal.unit(what, lambda i=i: i) for i, what in enumerate(whats)]
    assert values == list(range(len(whats)))
    journal.close()


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path):
    journal = Journal(tmp_path)
    for i in range(3):
        journal.unit({"unit": i}, lambda i=i: {"value": i / 3, "word": "é\n"})
    journal.close()
    whole = journal.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        journal.path.write_bytes(whole[:cut])
        torn = Journal(tmp_path)
        kept = sum(end <= cut for end in ends)
        for i in range(3):
            torn.unit({"unit": i}, lambda i=i: {"value": i / 3, "word": "é\n"})
        assert torn.computed == 3 - kept
        torn.close()
        assert torn.path.read_bytes() == whole


def test_an_altered_line_is_not_believed(tmp_path):
    journal = Journal(tmp_path)
    journal.unit({"unit": 0}, lambda: {"accuracy": 0.25})
    journal.close()
    journal.path.write_text(journal.path.read_text().replace("0.25", "0.75"))
    again = Journal(tmp_path)
    assert again.unit({"unit": 0}, lambda: {"accuracy": 0.25}) == {"accuracy": 0.25}
    assert again.computed == 1
    again.close()


def test_arrays_are_kept_whole_or_computed_again(tmp_path):
    journal = Journal(tmp_path)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(journal.array({"theta": 1}, lambda: array), array)
    np.testing.assert_array_equal(journal.array({"theta": 1}, never), array)
    (file,) = (tmp_path / "arrays").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    np.testing.assert_array_equal(journal.array({"theta": 1}, lambda: array), array)
    journal.close()


def test_two_runs_cannot_write_one_journal(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(TaskVecError, match="another run is writing it"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_numbers_that_json_cannot_hold_are_refused(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        journal.unit({"unit": 0}, lambda: float("nan"))
    assert journal.unit({"unit": 0}, lambda: 1.0) == 1.0
    journal.close()
    assert len([json.loads(line) for line in journal.path.read_text().splitlines()]) == 1


def filled(tmp_path, count: int = 4) -> Journal:
    journal = Journal(tmp_path)
    for i in range(count):
        journal.unit({"unit": i}, lambda i=i: {"value": i / 3, "word": '{"crc": 1, é\n'})
    journal.close()
    return journal


def computed_again(tmp_path, count: int = 4) -> int:
    """How many of the units of `filled` a new run computes; it must give the right values."""
    journal = Journal(tmp_path)
    for i in range(count):
        value = journal.unit({"unit": i}, lambda i=i: {"value": i / 3, "word": '{"crc": 1, é\n'})
        assert value["value"] == i / 3
    journal.close()
    return journal.computed


def test_a_byte_altered_anywhere_costs_one_unit_and_not_the_later_ones(tmp_path):
    whole = filled(tmp_path).path.read_bytes()
    path = tmp_path / "journal.jsonl"
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for at in sorted({*range(0, len(whole), 29), *ends}):
        for byte in (whole[at] ^ 1, ord("\n") ^ (whole[at] == ord("\n")), 0xFF):
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            assert computed_again(tmp_path) <= 1, (at, byte)
            assert computed_again(tmp_path) == 0, "what was computed again is found"


@pytest.mark.parametrize("junk", [b"[1]", b"7", b"{}", b'{"crc": 1}', b"[" * 100_000, b"\xff", b""])
def test_a_line_of_anything_else_is_passed_over_and_the_rest_is_read(tmp_path, junk):
    path = filled(tmp_path).path
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, junk + b"\n", *others]))
    assert computed_again(tmp_path) == 0
    journal = Journal(tmp_path)
    assert journal.unreadable == bool(junk)
    journal.close()


def test_an_array_altered_on_the_disk_is_computed_again(tmp_path):
    journal = Journal(tmp_path)
    array = np.arange(6, dtype=np.float32)
    journal.array({"theta": 1}, lambda: array)
    (file,) = (tmp_path / "arrays").iterdir()
    data = file.read_bytes()
    np.testing.assert_array_equal(np.load(file), array)
    for at in range(0, len(data), 7):
        file.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        before = journal.computed
        np.testing.assert_array_equal(journal.array({"theta": 1}, lambda: array), array)
        assert journal.computed == before + 1, at
    journal.close()


def test_a_full_disk_stops_a_unit_with_one_line_and_tears_nothing(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.unit({"unit": 0}, lambda: 0)
    whole = journal.path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for work in (
            lambda: journal.unit({"unit": 1}, lambda: 1),
            lambda: journal.array({"theta": 1}, lambda: np.zeros(3)),
        ):
            with pytest.raises(WriteError, match="No space left on device"):
                work()
    assert journal.path.read_bytes() == whole
    assert not list((tmp_path / "arrays").iterdir())
    assert journal.unit({"unit": 1}, lambda: 1) == 1  # there is room again
    journal.close()
    again = Journal(tmp_path)
    assert [again.unit({"unit": i}, never) for i in range(2)] == [0, 1]
    again.close()


def test_a_run_can_pause_between_units_but_not_inside_one(tmp_path):
    seen: list[str] = []
    journal = Journal(tmp_path, lambda: seen.append("pause"))

    def outer() -> int:
        seen.append("outer begins")
        inner = journal.unit({"name": "inner"}, lambda: 1)
        seen.append("outer ends")
        return inner + 1

    assert journal.unit({"name": "outer"}, outer) == 2
    assert seen == ["pause", "outer begins", "outer ends", "pause"]
    journal.unit({"name": "outer"}, outer)
    assert len(seen) == 4, "what is found needs no pause"
    journal.close()
