"""A converted model with random weights and a real tokenizer, for commands that must be quick."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

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
