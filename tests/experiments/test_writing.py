"""Files of results are written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from tiny_checkpoint import ROOT

from experiments.page import figures
from experiments.run.journal import Journal
from experiments.run.results import write_json
from experiments.run.study import Study
from experiments.run.writing import WriteError, write_whole
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.tasks import Pair, Task


def test_a_file_is_written_over_an_older_one_and_everyone_can_read_it(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("first", "é"):
        write_whole(path, content)
        assert path.read_text(encoding="utf-8") == content
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_older_file_and_no_scratch(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    path.write_text("older")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    figure, _ = figures.canvas(1, 1)
    for write in (
        lambda: write_json(path, {"a": 1}),
        lambda: write_whole(path, "newer"),
        lambda: figures.save(figure, tmp_path / "b"),
    ):
        with pytest.raises(WriteError, match=r"written \(No space left on device\); make"):
            write()
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_that_is_not_there_is_told_with_its_name(tmp_path):
    with pytest.raises(WriteError, match=r"gone/a\.txt: cannot be written \(No such file"):
        write_whole(tmp_path / "gone" / "a.txt", "x")


def test_no_experiment_takes_a_full_disk_for_a_task_that_cannot_be_measured(tmp_path):
    journal = Journal(tmp_path)
    study = Study(None, [], [], Settings(), Settings(), tmp_path, journal)  # type: ignore[arg-type]
    task = Task("own", "x", (Pair("a", "b"),))

    def full(task: Task) -> None:
        raise WriteError("journal.jsonl: cannot be written")

    with pytest.raises(WriteError):
        study.each("t", [task], full)
    journal.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_anywhere_else_is_one_line_of_a_command(number, tmp_path):
    code = (
        "import sys\nfrom experiments.run import flags as command\n"
        f"def main():\n    raise OSError({number}, 'no room', 'the/file')\n"
        "command.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the/file: cannot be written (no room); make room, or choose another --out"
    ]


def test_a_directory_that_stays_empty_is_taken_away_with_those_made_for_it(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    code = (
        "import sys\nfrom pathlib import Path\nfrom experiments.run.results import prepare_out\n"
        "prepare_out(sys.argv[1])\nprepare_out(sys.argv[2])\n"
        "(prepare_out(sys.argv[3]) / 'a').write_text('x')"
    )
    paths = [tmp_path / "new" / "deep", kept, tmp_path / "full"]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, cwd=ROOT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "kept"]
