"""What README shows works as written."""

from __future__ import annotations

import re
from pathlib import Path

from taskvec_jax.programs import programs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs_and_the_vector_does_the_task(capsys, default_model):
    namespace: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(code, namespace)
    without, with_theta, *_ = capsys.readouterr().out.splitlines()
    assert (without, with_theta) == ("['slow;', 'rich,']", "[' slow;', ' poor;']")
    assert namespace["logits"].shape == (2, 4, default_model.config.vocab_size)


def test_the_first_screen_has_exactly_two_commands():
    commands = re.findall(r"```sh\n(.*?)```", README, re.S)
    assert len(commands) == 2
    assert "experiments.layer_sweep" in commands[0]
    assert "pytest" in commands[1]
    second = README.index(commands[1])
    assert README[:second].count("\n") < 30


def test_every_test_that_answers_a_question_is_there():
    questions = README[README.index("## Questions") :].split("\n## ")[0]
    answers = re.findall(r"`([\w/]+\.py)::(\w+)`", questions)
    assert len(answers) >= questions.count("\n| ") - 1
    for file, name in answers:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


def test_every_command_and_every_file_that_is_named_is_there():
    known = programs()
    named = re.findall(r"python -m (experiments|convert)((?:\.\w+)*)", README)
    for package, name in named:
        name = f"{package}{name}".removeprefix("experiments.")
        assert name in {*known, "experiments"}, name
    assert len(set(named)) > 8
    table = README[README.index("## Commands") :].split("\n## ")[0]
    listed = re.findall(r"`([a-z][\w.]*)[ `]", " ".join(re.findall(r"^\|(.*?)\|", table, re.M)))
    missing = set(known) - set(listed) - {"convert.families.read_keys", "notebooks.execute"}
    assert not [name for name in missing if not name.startswith("bench.")], "not in the table"
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_the_readme_is_read_in_one_go():
    assert README.count("\n") <= 250
