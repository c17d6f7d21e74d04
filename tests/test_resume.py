"""kill -9 at random moments: a rerun goes on, computes nothing twice, and ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from tiny_checkpoint import ROOT, SMALL, command_line, run, save_tiny

KILLS = 10


def final(directory: Path) -> dict[str, object]:
    """The results without their provenance, byte for byte."""
    found: dict[str, object] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".png", ".svg"):
            found[path.name] = path.read_bytes()
        elif path.suffix == ".json":
            result = json.loads(path.read_text())
            del result["provenance"]
            found[path.name] = json.dumps(result, indent=1)
    return found


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_killed_at_ten_random_moments_the_results_are_the_same(tmp_path, tokenizer):
    model = save_tiny(tmp_path / "tiny", tokenizer)
    flags = (f"--model={model}", *SMALL)
    cache = str(tmp_path / "cache")
    whole = tmp_path / "whole"
    done = run("vocabulary_projection", *flags, f"--out={whole}", TASKVEC_CACHE=cache)
    assert done.returncode == 0, done.stderr
    lines = (whole / "journal.jsonl").read_bytes().splitlines()
    assert len(lines) == 2 * 18

    rng = random.Random(20261124)
    out = tmp_path / "killed"
    journal = out / "journal.jsonl"
    killed = 0
    while killed < KILLS:
        before = size(journal)
        process = subprocess.Popen(
            command_line("vocabulary_projection", *flags, f"--out={out}"),
            cwd=ROOT,
            env={**os.environ, "TASKVEC_CACHE": cache, "PYTHONHASHSEED": str(killed)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Wait for the first new byte of some runs, not of others; then for a random moment.
        patient = rng.random() < 0.8
        while patient and size(journal) <= before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * (0.15 if patient else 3.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        if process.returncode == 0:
            break  # it was over before its moment; what is left is checked below
    assert killed >= KILLS, "the runs end too early for ten kills"

    done = run("vocabulary_projection", *flags, f"--out={out}", TASKVEC_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert final(out) == final(whole)
    resumed = [json.loads(line)["unit"] for line in journal.read_bytes().splitlines()]
    assert len(resumed) == len(set(resumed)), "a unit was computed twice"
    assert set(resumed) == {json.loads(line)["unit"] for line in lines}


def test_runs_with_other_settings_share_a_directory_without_mixing(tmp_path, tokenizer):
    model = save_tiny(tmp_path / "tiny", tokenizer)
    flags = (f"--model={model}", *SMALL, "--tasks=algorithmic_to_upper")
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    for out, seeds in ((shared, (0, 1)), (alone, (1,))):
        for seed in seeds:
            done = run("main_results", *flags, f"--seed={seed}", f"--out={out}")
            assert done.returncode == 0, done.stderr
    assert final(shared) == final(alone)
    assert len((shared / "journal.jsonl").read_bytes().splitlines()) == 2
