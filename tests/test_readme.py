"""What README shows works as written."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


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
