"""Results say when and by which code they were computed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.run import source
from taskvec_jax.errors import TaskVecError


def test_the_date_is_that_of_source_date_epoch_where_it_is_set(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86399")
    assert source.date() == "1970-01-01"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert source.date() == "1970-01-02"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(TaskVecError, match="SOURCE_DATE_EPOCH is 'today'; allowed: whole seconds"):
        source.date()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", source.date())


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Iterator[Path]:
    """A repository of one commit in the project's place."""

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    (tmp_path / "code.py").write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(source, "PROJECT", tmp_path)
    source.commit.cache_clear()
    yield tmp_path
    source.commit.cache_clear()


def test_the_commit_is_said_and_whether_files_differ_from_it(repository):
    clean = source.commit()
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    source.commit.cache_clear()
    (repository / "new.txt").write_text("not part of it\n")
    assert source.commit() == clean
    source.commit.cache_clear()
    (repository / "code.py").write_text("2\n")
    assert source.commit() == f"{clean} (with changes)"


def test_outside_of_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PROJECT", tmp_path)
    source.commit.cache_clear()
    assert source.commit() is None
    source.commit.cache_clear()
