"""The benchmark's steps all compute the same thing, and its results are written whole."""

from __future__ import annotations

import importlib.util
import json

import in_process
import numpy as np
import pytest
from slow import slow
from tiny_checkpoint import run, save_tiny

from experiments.bench import scoring
from experiments.bench.machine import peak_flops
from experiments.bench.stages import TORCH_STAGES
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.tasks import TASKS
from taskvec_jax.vectors.continuing import Beginnings

FLAGS = (
    "--num_prompts=3",
    "--batch_size=4",
    "--repeats=1",
    "--nodepths",
    "--tasks=algorithmic_to_upper",
    "--dtypes=float32",
)
STAGES = (
    "layer_loop,naive,prefix_cache,wavefront,shared_demonstrations,packed,torch_paper,torch_loop"
)


@pytest.fixture(scope="module")
def result(tmp_path_factory, tokenizer) -> dict:
    directory = tmp_path_factory.mktemp("benchmark")
    model = save_tiny(directory / "tiny", tokenizer)
    done = run(
        "bench.sweep",
        f"--model={model}",
        f"--out={directory / 'out'}",
        *FLAGS,
        f"--stages={STAGES}",
    )
    assert done.returncode == 0, done.stderr
    for kind in ("png", "svg"):
        assert (directory / "out" / f"benchmark.{kind}").stat().st_size > 1000
    return json.loads((directory / "out" / "benchmark.json").read_text())


@slow
def test_every_step_gives_the_same_answers(result):
    stages = result["dtypes"]["float32"]["stages"]
    assert list(stages) == STAGES.split(",")
    for name, stage in stages.items():
        assert stage["agreement_with_packed"] == 1.0, name


@slow
def test_the_headline_has_its_figures(result):
    line = result["headline"]["float32"]
    stages = {name: f"speedup_over_{name}" for name in ("layer_loop", *TORCH_STAGES)}
    cold = {name: f"cold_speedup_over_{name}" for name in TORCH_STAGES}
    measured = {"steady_seconds", "cold_seconds", "steady_fraction_of_gemm_peak", "peak_bytes"}
    assert set(line) == {
        *measured,
        *stages.values(),
        *cold.values(),
        "model_flops_utilisation",
    }
    for name in STAGES.split(","):
        measured |= {found[name] for found in (stages, cold) if name in found}
        ratio = result["dtypes"]["float32"]["stages"][name]["times_packed"]
        assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"]
    assert {key for key, value in line.items() if value is not None} == measured
    assert all(line[key] > 0 for key in measured)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.skipif(importlib.util.find_spec("nnsight") is None, reason="nnsight is not installed")
def test_nnsight_reads_and_writes_what_hooks_do():
    from experiments.bench import nnsight_loop, torch_loop

    theirs = torch_loop.exported(load_model(SMALL_MODEL))
    hooked, traced = torch_loop.TorchLoop(theirs, 1), nnsight_loop.NnsightLoop(theirs, 1)
    rows = [[3, 4, 5, 6], [7, 8, 9], [1, 2, 3, 4, 5]]
    theta = np.random.RandomState(0).standard_normal((3, 6, 128)).astype(np.float32)
    with torch_loop.torch.no_grad():
        for ours, want in zip(traced.read(rows), hooked.read(rows), strict=True):
            np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5)
        every = list(range(6))
        np.testing.assert_array_equal(
            traced.inject(rows, theta, every), hooked.inject(rows, theta, every)
        )


@slow  # compiles six programs
def test_what_a_gpu_is_measured_with_runs_on_random_weights_of_a_shape(tmp_path, tokenizer):
    shape = save_tiny(tmp_path / "tiny", tokenizer)
    out = tmp_path / "out"
    flags = [flag for flag in FLAGS if not flag.startswith("--dtypes")]
    done = run(
        "bench.sweep",
        f"--shape={shape}",
        "--dtypes=bfloat16,int8",
        "--stages=layer_loop,packed",
        f"--out={out}",
        *flags,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "benchmark.json").read_text())
    assert result["model"].startswith("random ")
    for dtype in ("bfloat16", "int8"):
        line = result["headline"][dtype]
        assert line["peak_bytes"] > 0
        assert line["speedup_over_layer_loop"] > 0
        assert line["model_flops_utilisation"] is None  # no vendor states the peak of a CPU
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None
    sizes = [result["dtypes"][dtype]["weight_bytes"] for dtype in ("bfloat16", "int8")]
    assert sizes[0] > sizes[1]


@slow  # compiles generation
def test_generation_is_measured_beside_transformers_and_says_the_same(tmp_path):
    out = f"--out={tmp_path}"
    done = run("bench.generation", f"--model={SMALL_MODEL}", "--new_tokens=4", "--turns=2", out)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "generation.json").read_text())
    assert list(result["batch_sizes"]) == ["1", "16"]
    for line in result["batch_sizes"].values():
        assert line["agreement"] == 1.0
        assert line["lowest"] <= line["ratio"] <= line["highest"]


@pytest.mark.parametrize("part", list(scoring.WITHOUT))
def test_what_is_left_out_of_the_timing_changes_no_first_token(part, monkeypatch):
    asked = []
    generate = Beginnings.next_tokens

    def counted(self, beginnings, *more):
        asked.append(len(beginnings))
        return generate(self, beginnings, *more)

    monkeypatch.setattr(Beginnings, "next_tokens", counted)
    model, task = load_model(SMALL_MODEL), TASKS["algorithmic_to_upper"]
    settings = Settings(num_prompts=4, rule="paper")
    want = evaluate_task(model, task, settings)
    assert asked  # whole answers were generated
    asked.clear()
    with scoring.WITHOUT[part]():
        got = evaluate_task(model, task, settings)
    assert bool(asked) == (part == "graded")
    assert got.dev_accuracy_by_layer == want.dev_accuracy_by_layer
    assert got.best_layer == want.best_layer
    for name in ("baseline", "icl", "task_vector", "random"):
        for key in ("predicted", "correct_paper"):
            assert got.outcomes[name][key] == want.outcomes[name][key], (name, key)
    assert ("logprob" in got.outcomes["icl"]) == (part == "whole_answers")
    # nothing stays replaced
    assert evaluate_task(model, task, settings).outcomes == want.outcomes


def test_ratios_of_turns_are_of_turns_not_of_medians():
    one, two = scoring.Times([2.0, 6.0], [1.0, 4.0]), scoring.Times([2.0, 2.0], [2.0, 2.0])
    assert one.ratios() == {"median": 1.75, "lowest": 1.5, "highest": 2.0}
    assert scoring.together([one, two]) == scoring.Times([4.0, 8.0], [3.0, 6.0])


@pytest.mark.parametrize(
    ("bench", "flag", "message"),
    [
        ("scoring", "--without=hope", "--without='hope'; allowed: whole_answers, graded"),
        ("scoring", "--repeats=0", "--repeats=0; it must be at least 1"),
        ("sweep", "--stages=packed,teleport", "unknown stage 'teleport'; allowed: layer_loop"),
        ("sweep", "--repeats=0", "--repeats=0; it must be at least 1"),
        ("sweep", "--shape=llama-8b-mega", "--shape=llama-8b-mega; allowed"),
    ],
)
def test_bad_flags_are_refused(bench, flag, message, tmp_path):
    done = in_process.experiment(f"bench.{bench}", flag, f"--out={tmp_path}")
    assert done.returncode == 2
    assert message in done.stderr
