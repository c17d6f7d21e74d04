"""The benchmark for an accelerator runs at tiny size on whatever is here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import LLAMA
from slow import slow

from experiments.bench import torch_loop
from experiments.bench.on_device import texts_of
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.vectors.flops import injection_flops, reading_flops

ROOT = Path(__file__).resolve().parent.parent.parent


@slow
def test_the_benchmark_runs_at_tiny_size_and_counts_needed_work(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.bench.on_device", f"--shape={SMALL_MODEL}"),
            *("--layers=1", "--batch_size=2", "--new_tokens=2", "--repeats=1"),
            *("--dtype=float32", f"--out={tmp_path}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "on_device.json").read_text())
    assert found["certificate"] < 1e-4
    config = dataclasses.replace(describe(SMALL_MODEL)[1], num_layers=1)
    assert found["layers"] == 1
    for name in ("reading_seconds", "sweep_seconds", "tokens_per_second", "planned_bytes"):
        assert found[name] > 0, name
    if not torch.cuda.is_available():
        assert found["torch_loop_seconds"] is None
    # The random model has the default model's vocabulary, which is larger.
    read, queries = texts_of(config, 2)
    assert found["reading_flops"] > sum(reading_flops(config, t, len(t)) for t in read)
    assert found["sweep_flops"] > sum(injection_flops(config, len(q), range(1)) for q in queries)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_torchs_loop_is_timed_on_the_gpu():
    taken = torch_loop.random_loop_seconds(LLAMA, 2, 4, 1)
    assert taken is not None
    assert taken > 0
