"""A converted model with random weights and a real tokenizer, for commands that must be quick."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import LLAMA, random_params
from slow import QUICK
from zygote import DAY

from taskvec_jax.models import checkpoint
from taskvec_jax.prompting.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--num_prompts=2", "--batch_size=4")


def save_tiny(path: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    """Writes the model under `path`."""
    config = dataclasses.replace(
        LLAMA, vocab_size=tokenizer.vocab_size, num_layers=3, max_length=1024
    )
    manifest = {"model": path.name, "weights_sha256": f"random {seed}"}
    checkpoint.save(path, config, random_params(config, seed), tokenizer, manifest)
    return path


def command_line(module: str, *flags: str) -> list[str]:
    """What runs an experiment."""
    return [sys.executable, "-m", f"experiments.{module}", *flags]


def run(module: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs an experiment to its end."""
    return subprocess.run(
        command_line(module, *flags),
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICK, "SOURCE_DATE_EPOCH": DAY, **env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def assert_same_but_for_noise(one: Path, other: Path) -> None:
    """Two result files, without their provenance: all is equal but log-probabilities and
    differences of logits, which follow the order of sums and are so to 1e-4."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (one, other)]
    for result in results:
        del result["provenance"]
    (first, shape), (second, other_shape) = map(jax.tree.flatten_with_path, results)
    assert shape == other_shape
    for (path, a), (_, b) in zip(first, second, strict=True):
        summed = {"logprob", "logit_difference"} & {getattr(step, "key", None) for step in path}
        assert a == (pytest.approx(b, abs=1e-4) if summed else b), path
