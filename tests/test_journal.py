"""Finished units are kept, found again, never mixed, and survive a torn end."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from experiments.fingerprint import code_of, fingerprint
from experiments.journal import Journal
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation import Settings


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
        changed = dataclasses.replace(Settings(), **{field.name: 7})
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


def test_code_that_only_explains_or_shows_does_not_part_numbers_but_other_code_does():
    plain = "def f(x):\n    return x + 1\n"
    explained = '"""Doc."""\n# why\ndef f(x):\n    """Adds."""\n    return (x + 1)\n'
    shown = plain + "def draw_figures(r):\n    return 3\ndef section(r):\n    return 2\n"
    assert code_of(plain) == code_of(explained) == code_of(shown)
    assert code_of(plain) != code_of(plain.replace("1", "2"))
    assert len(fingerprint(never)) == 64


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
