"""kill -9 at random moments: a rerun goes on, computes nothing twice, and ends the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import in_process
import pytest
from slow import QUICK, SLOW, slow
from tiny_checkpoint import SMALL, assert_same_but_for_noise, run, save_tiny
from zygote import DAY, Child, Zygote

from experiments.cross_models import compare
from taskvec_jax.tasks import TASKS

KILLS = 10 if SLOW else 4
NUM_TASKS = 18 if SLOW else 8


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote("vocabulary_projection", "main_results", "layer_sweep") as made:
        yield made


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


def start(zygote: Zygote, module: str, *flags: str, out: Path, **env: str) -> Child:
    printed = out.with_name(f"{out.name}.printed")
    dated = {"SOURCE_DATE_EPOCH": DAY, **env}
    return zygote.start(module, *flags, f"--out={out}", printed=printed, env=dated)


def here(module: str, *flags: str, out: Path) -> in_process.Done:
    """Runs an experiment in this process, whose programs the next one finds compiled."""
    return in_process.experiment(module, *flags, f"--out={out}")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_killed_at_random_moments_the_results_are_the_same(zygote, tmp_path, tokenizer):
    model = save_tiny(tmp_path / "tiny", tokenizer)
    tasks = ",".join(sorted(TASKS)[:NUM_TASKS])
    flags = (f"--model={model}", *SMALL, f"--tasks={tasks}")
    env = {"TASKVEC_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": QUICK}
    whole = tmp_path / "whole"  # by a process of its own, whose strings hash otherwise
    done = run("vocabulary_projection", *flags, f"--out={whole}", **env)
    assert done.returncode == 0, done.stderr
    lines = (whole / "journal.jsonl").read_bytes().splitlines()
    assert len(lines) == 2 * NUM_TASKS

    rng = random.Random(20261124)
    out = tmp_path / "killed"
    journal = out / "journal.jsonl"
    killed = 0
    while killed < KILLS:
        before = size(journal)
        child = start(zygote, "vocabulary_projection", *flags, out=out, **env)
        # Wait for the first new byte of some runs, not of others; then for a random moment.
        patient = rng.random() < 0.8
        while patient and size(journal) <= before and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * (0.15 if patient else 1.0))
        if child.poll() is None:
            child.kill()
            killed += 1
        if child.wait() == 0:
            break  # it was over before its moment; what is left is checked below
    assert killed >= KILLS, f"the runs end too early for {KILLS} kills"

    child = start(zygote, "vocabulary_projection", *flags, out=out, **env)
    assert child.wait() == 0, child.printed
    assert final(out) == final(whole)
    resumed = [json.loads(line)["unit"] for line in journal.read_bytes().splitlines()]
    assert len(resumed) == len(set(resumed)), "a unit was computed twice"
    assert set(resumed) == {json.loads(line)["unit"] for line in lines}


def test_a_run_with_other_settings_is_refused_and_touches_nothing(tmp_path, tokenizer):
    """Whatever experiment it is of, and whatever differs; each is told before a model is loaded."""
    model = save_tiny(tmp_path / "tiny", tokenizer)
    tiny = (f"--model={model}", *SMALL, "--tasks=algorithmic_to_upper")
    out = tmp_path / "out"
    done = here("layer_sweep", *tiny, out=out)
    assert done.returncode == 0, done.printed
    before = contents(out)
    (tmp_path / "other").mkdir()
    other = save_tiny(tmp_path / "other" / "tiny", tokenizer, seed=1)
    for module, flag in (
        ("layer_sweep", "--seed=1"),
        ("main_results", "--seed=1"),
        ("vocabulary_projection", "--num_prompts=3"),
        ("layer_sweep", "--dtype=bfloat16"),
        ("main_results", "--quantization=int8"),
        ("main_results", f"--model={other}"),
    ):
        done = here(module, *tiny, flag, out=out)
        assert done.returncode == 2, done.printed
        assert "layer_sweep.json is of another run (" in done.printed
        assert "choose another --out" in done.printed
        assert "re-injected" not in done.printed
    shutil.rmtree(model)
    save_tiny(model, tokenizer, seed=1)  # trained on in place: other weights of the same name
    done = here("main_results", *tiny, out=out)
    assert done.returncode == 2, done.printed
    assert "of another run (weights random 0; now weights random 1)" in done.printed
    assert contents(out) == before


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@slow  # test_jobs.py compares two seeds too
def test_two_seeds_are_compared_as_two_rows(zygote, tmp_path, tokenizer):
    model = save_tiny(tmp_path / "tiny", tokenizer)
    flags = (f"--model={model}", *SMALL, "--tasks=algorithmic_to_upper")
    env = {"TASKVEC_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": QUICK}
    outs = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, out in enumerate(outs):
        child = start(zygote, "main_results", *flags, f"--seed={seed}", out=out, **env)
        assert child.wait() == 0, child.printed
    models = compare(outs)["models"]
    ours = [name for name, found in models.items() if found["ours"]]
    assert ours == [f"{model}, seed 0", f"{model}, seed 1"]
    for name, out in zip(ours, outs, strict=True):
        written = json.loads((out / "main_results.json").read_text())
        assert models[name]["run"]["seed"] == written["settings"]["seed"]
        mean = written["averages_where_icl_gains"]["icl"]
        assert models[name]["averages"]["icl"] == mean


def test_units_of_other_settings_share_a_journal_without_mixing(tmp_path, tokenizer, monkeypatch):
    model = save_tiny(tmp_path / "tiny", tokenizer)
    flags = (f"--model={model}", *SMALL, "--tasks=algorithmic_to_upper")
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DAY)
    for out, seeds in ((shared, (0, 1)), (alone, (1,))):
        for seed in seeds:
            (out / "main_results.json").unlink(missing_ok=True)  # the way out of a refusal
            done = here("main_results", *flags, f"--seed={seed}", out=out)
            assert done.returncode == 0, done.printed
    assert final(shared) == final(alone)
    assert len((shared / "journal.jsonl").read_bytes().splitlines()) == 4  # two a run


@slow  # three layer sweeps in processes of their own
def test_sigterm_ends_between_units_and_a_rerun_on_other_devices_goes_on(
    zygote, tmp_path, tokenizer
):
    model = save_tiny(tmp_path / "tiny", tokenizer)
    names = ("to_upper", "to_lower", "next_letter", "prev_letter", "list_first", "list_last")
    tasks = ",".join(f"algorithmic_{name}" for name in names)
    flags = (f"--model={model}", f"--tasks={tasks}", *SMALL)
    env = {"TASKVEC_CACHE": str(tmp_path / "cache")}
    one, two = (f"--xla_force_host_platform_device_count={n} {QUICK}" for n in (1, 2))

    whole, out = tmp_path / "whole", tmp_path / "stopped"
    child = start(zygote, "layer_sweep", *flags, out=whole, XLA_FLAGS=one, **env)
    assert child.wait() == 0, child.printed

    child = start(zygote, "layer_sweep", *flags, out=out, XLA_FLAGS=one, **env)
    while size(out / "journal.jsonl") == 0 and child.poll() is None:
        time.sleep(0.002)  # its first unit is not done yet
    child.kill(signal.SIGTERM)
    assert child.wait() == 0, child.printed
    assert "stopped by SIGTERM between two units" in child.printed
    assert not (out / "layer_sweep.json").exists()
    lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert 1 <= len(lines) < 12  # two units a task
    assert all(line.endswith(b"\n") for line in lines)

    # More devices, and a smaller batch, as another machine may have.
    child = start(zygote, "layer_sweep", *flags, "--batch_size=3", out=out, XLA_FLAGS=two, **env)
    assert child.wait() == 0, child.printed
    after = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert after[: len(lines)] == lines
    assert len(after) == 12
    results = [json.loads((d / "layer_sweep.json").read_text()) for d in (whole, out)]
    assert [r["provenance"]["device"]["count"] for r in results] == [1, 2]
    assert_same_but_for_noise(whole / "layer_sweep.json", out / "layer_sweep.json")
