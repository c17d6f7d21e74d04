"""The benchmark's steps all compute the same thing, and its results are written whole."""

from __future__ import annotations

import json

import pytest
from tiny_checkpoint import run, save_tiny

FLAGS = (
    "--num_prompts=3",
    "--batch_size=4",
    "--repeats=1",
    "--nodepths",
    "--tasks=algorithmic_to_upper,translation_fr_en",
    "--dtypes=float32",
)


@pytest.fixture(scope="module")
def result(tmp_path_factory, tokenizer) -> dict:
    directory = tmp_path_factory.mktemp("benchmark")
    model = save_tiny(directory / "tiny", tokenizer)
    done = run("benchmark", f"--model={model}", f"--out={directory / 'out'}", *FLAGS)
    assert done.returncode == 0, done.stderr
    for kind in ("png", "svg"):
        assert (directory / "out" / f"benchmark.{kind}").stat().st_size > 1000
    return json.loads((directory / "out" / "benchmark.json").read_text())


def test_every_step_gives_the_same_answers(result):
    stages = result["dtypes"]["float32"]["stages"]
    assert list(stages) == [
        "layer_loop",
        "naive",
        "prefix_cache",
        "wavefront",
        "shared_demonstrations",
        "packed",
        "torch_paper",
        "torch_loop",
    ]
    for name, stage in stages.items():
        assert stage["agreement_with_packed"] == 1.0, name


def test_the_headline_has_its_figures(result):
    line = result["headline"]["float32"]
    assert set(line) == {
        "steady_seconds",
        "cold_seconds",
        "steady_fraction_of_gemm_peak",
        "speedup_over_layer_loop",
        "speedup_over_torch_paper",
        "cold_speedup_over_torch_paper",
        "speedup_over_torch_loop",
        "cold_speedup_over_torch_loop",
    }
    assert all(value > 0 for value in line.values())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--stages=packed,teleport", "unknown stage 'teleport'; allowed: layer_loop"),
        ("--repeats=0", "repeats is 0"),
        ("--shape=llama-8b-mega", "--shape=llama-8b-mega; allowed"),
    ],
)
def test_bad_flags_are_refused(flag, message, tmp_path):
    done = run("benchmark", flag, f"--out={tmp_path}")
    assert done.returncode == 2
    assert message in done.stderr
