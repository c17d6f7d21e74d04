"""What README shows works as written."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_the_python_example_runs_and_the_vector_does_the_task(capsys, default_model):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    namespace: dict = {}
    exec(code, namespace)
    assert capsys.readouterr().out.strip() == "slow"
    assert namespace["logits"].shape == (1, 4, default_model.config.vocab_size)


def test_the_first_screen_has_exactly_two_commands():
    commands = re.findall(r"```sh\n(.*?)```", README, re.S)
    assert len(commands) == 2
    assert "experiments.layer_sweep" in commands[0]
    assert "pytest" in commands[1]
    second = README.index(commands[1])
    assert README[:second].count("\n") < 30
