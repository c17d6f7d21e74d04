"""experiments.steer: what the model says with a vector and without, side by side."""

from __future__ import annotations

import json

import in_process
import pytest

from taskvec_jax import TaskVector
from taskvec_jax.models.registry import SMALL_MODEL

GROWN = f"--model={SMALL_MODEL}"
FEW = ("--num_prompts=4", "--batch_size=8", "--max_new_tokens=2")


def steer(*flags: str) -> tuple[int, str]:
    done = in_process.experiment("steer", GROWN, *flags)
    return done.returncode, done.printed


def test_a_tasks_vector_changes_what_the_small_model_says_and_is_kept(tmp_path):
    saved, exported = tmp_path / "v.safetensors", tmp_path / "v.gguf"
    code, printed = steer(
        *FEW,
        "--task=bijection_1",
        "--layers=1,2",
        "--scales=1,0.5",
        "--prompt=example:19->",
        f"--save={saved}",
        f"--export={exported}",
    )
    assert code == 0, printed
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    said = {tuple(row[:2]): row for row in rows if row[0] in ("none", "1", "2")}
    assert ("1", "1") in said
    assert ("2", "0.5") in said
    assert said["1", "1"][2].startswith("'29")  # what the demonstrations teach
    assert not any("'29" in word for word in next(row for row in rows if row[0] == "none")[1:2])
    assert "which ADDS it at every position; the vector above does something else" in printed
    assert TaskVector.load(saved).layers == tuple(range(6))
    assert exported.stat().st_size > 4 * 128

    inputs, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    inputs.write_text('example:19->\n{"prompt": "example:20->"}\n')
    code, printed = steer(
        *FEW, f"--vector={saved}", "--layers=1", f"--inputs={inputs}", f"--out={out}"
    )
    assert code == 0, printed
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["prompt"], r["layer"]) for r in records] == [
        ("example:19->", None),
        ("example:19->", 1),
        ("example:20->", None),
        ("example:20->", 1),
    ]
    assert records[1]["text"].startswith("29")
    assert records[1]["next"][0]["token"] == "29"
    assert 0.5 < records[1]["next"][0]["probability"] <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=x"], "name a vector with --vector"),
        (["--task=bijection_1"], "give a prompt with --prompt"),
        (["--task=bijection_1", "--inputs=x"], "--inputs needs --out"),
        (["--task=bijection_1", "--prompt=x", "--position=last"], "--position=last"),
        (["--task=bijection_1", "--prompt=x", "--scales=two"], "--scales=two"),
        (["--vector=/none.safetensors", "--prompt=x"], "there is no such file"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    code, printed = steer(*flags)
    assert code == 2
    assert printed.splitlines()[-1].startswith("error: ")
    assert message in printed.splitlines()[-1]
    assert "Traceback" not in printed
