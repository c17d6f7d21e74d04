"""The ten jobs of README, each command run as it is written there, on small models."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import tokenizers
from conftest import LLAMA, random_params
from in_process import Done, run
from slow import slow

from convert.export import export
from experiments.commands import registry
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.vectors.vector import TaskVector

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SCHEMA = (ROOT / "experiments" / "README.md").read_text()
TEN = README[README.index("## Ten jobs") :].split("\n## ")[0]
JOBS = dict(re.findall(r"^\| (.+?) \| `(.+?)` \|", TEN, re.MULTILINE))
FEW = ("--num_prompts=2", "--batch_size=4")  # a test is no result
ONE = "--tasks=to_upper"
LLAMA_DIRECTORY = "my-llama"
CITIES = """# a pair a line; further columns are other right answers
a,NY,BigApple
b,LA
c,DC,"Washington,DC"
"""


def chat_tokenizer() -> Tokenizer:
    """One token for each letter, with and without a space before it, and for turns of a chat."""
    turns, arrow = ["<|im_start|>", "<|im_end|>"], ["example:", "->"]
    characters = [chr(i) for i in range(32, 127)] + ["\n"]
    spaced = [f" {c}" for c in characters if c.isalpha()]
    words = ["<unk>", *turns, *arrow, *characters, *spaced]
    vocab = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    pattern = r"<\|im_start\|>|<\|im_end\|>|example:|->| [A-Za-z]|[\s\S]"
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the files that the commands name."""
    directory = tmp_path_factory.mktemp("jobs")
    tokenizer = chat_tokenizer()
    config = dataclasses.replace(
        LLAMA, vocab_size=tokenizer.vocab_size, num_layers=2, max_length=512
    )
    export(config, random_params(config), tokenizer, directory / LLAMA_DIRECTORY)
    letters = "defghijklmnopqrst"
    rows = "".join(f"{a},{a.upper()}{b}\n" for a, b in zip(letters, letters[1:] + "a", strict=True))
    (directory / "cities.csv").write_text(CITIES + rows)
    before = Path.cwd()
    os.chdir(directory)
    for model, out in ((SMALL_MODEL, "runA"), (f"./{LLAMA_DIRECTORY}", "runB")):
        sweep = f"python -m experiments.layer_sweep --model={model} --out={out}"
        done = run(sweep, *FEW, ONE, "--rule=paper")
        assert done.returncode == 0, done.printed
    shutil.copy("runA/layer_sweep.json", "theirs.json")
    yield directory
    os.chdir(before)


def job(name: str, *more: str, model: str = SMALL_MODEL) -> Done:
    """Runs the command of a job; its `MODEL` is a small one."""
    (command,) = [command for title, command in JOBS.items() if name in title]
    done = run(command.replace("MODEL", model), *more)
    assert done.returncode == 0, done.printed
    return done


def result(printed: str) -> dict:
    """The last result file that a command says it wrote."""
    return json.loads(Path(re.findall(r"wrote (\S+?\.json)", printed)[-1]).read_text())


def test_there_are_ten_jobs():
    assert len(JOBS) == 10


def test_own_csv_of_answers_of_several_tokens(place):
    found = result(job("CSV", *FEW).printed)
    (task,) = found["tasks"].values()
    assert task["num_pairs"] == len(Path("cities.csv").read_text().splitlines()) - 1 == 20
    assert task["rule"] == "full", "whole answers are compared"
    assert any(len(answers[0]) > 1 for answers in task["outcomes"]["answers"])


def test_own_template(place):
    found = result(job("own template", *FEW, ONE, "--rule=paper", model=LLAMA_DIRECTORY).printed)
    (task,) = found["tasks"].values()
    assert all(prompt.startswith("Q:") for prompt in task["outcomes"]["prompts"])


def test_chat_model(place):
    done = job("chat", *FEW, ONE, "--rule=paper", model=LLAMA_DIRECTORY)
    assert "algorithmic_to_upper" in done.printed


def test_own_llama_directory(place):
    found = result(job("LLaMA", *FEW, ONE, "--rule=paper").printed)
    assert found["model"] == f"./{LLAMA_DIRECTORY}"


def test_two_seeds(place):
    found = result(job("seeds", *FEW, ONE, "--rule=paper").printed)
    assert list(found["seeds"]) == ["0", "1"]


def test_two_runs_prompt_by_prompt(place):
    done = job("two models")
    assert f"first: {SMALL_MODEL}; second: ./{LLAMA_DIRECTORY};" in done.printed
    assert "task_vector, mean of 1" in done.printed


def test_steer_and_generate(place):
    done = job("steer", *FEW, "--max_new_tokens=2", "--rule=paper")
    assert "continuation" in done.printed
    assert TaskVector.load("upper.safetensors").origin.model == SMALL_MODEL


def test_export_for_llama_cpp(place):
    done = job("llama.cpp", *FEW, "--max_new_tokens=2", "--rule=paper")
    assert "a control vector for llama.cpp" in done.printed
    assert Path("upper.gguf").read_bytes().startswith(b"GGUF")


def test_a_colleagues_result_run_again(place):
    job("colleague")
    theirs, ours = (
        json.loads(Path(p).read_text()) for p in ("theirs.json", "again/layer_sweep.json")
    )
    assert ours["tasks"] == theirs["tasks"]


@slow
def test_the_paper_on_a_cluster(place, monkeypatch):
    """With the main results alone, and without a cluster to ask."""
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *how: asked.append(how))
    monkeypatch.setattr(registry, "IN_PAPER", registry.IN_PAPER[:1])
    (command,) = [command for title, command in JOBS.items() if "cluster" in title]
    monkeypatch.setitem(JOBS, "cluster", command.removeprefix("srun "))
    monkeypatch.delitem(JOBS, next(title for title in JOBS if "cluster" in title))
    done = job("cluster", *FEW, ONE, "--rule=paper")
    assert asked == [(None, None, None)], "the cluster says where the others are"
    assert "experiment 1 of 1: main_results" in done.printed
    assert re.search(r"wrote \S+report\.html in", done.printed)


def documented(title: str) -> set[str]:
    """The keys in the tables of experiments/README.md after a sentence."""
    table = SCHEMA[SCHEMA.index(title) :].split("\n\n")[1]
    cells = [line.split("|")[1] for line in table.split("\n")[2:]]
    return set(re.findall(r"`(\w+)`", " ".join(cells)))


def test_every_key_of_a_result_file_is_documented(place):
    found = json.loads(Path("runA/layer_sweep.json").read_text())
    common, sweep = (
        documented("Every result file has these"),
        documented("`main_results.json` besides:"),
    )
    assert common < set(found)
    assert set(found) == common | sweep
    (task,) = found["tasks"].values()
    assert set(task) <= documented("A task in `tasks`:")
    columns = task["outcomes"]["task_vector"]
    (line,) = [line for line in SCHEMA.splitlines() if line.startswith("| `outcomes`")]
    assert {"queries", "answers", "prompts", *columns} <= set(re.findall(r"`(\w+)`", line))
