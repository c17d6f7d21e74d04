"""Conversion as a command: killed at any moment, out of room, twice at once, and how much memory
it takes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hf
import numpy as np
import pytest
from slow import QUICK, SLOW, slow

import taskvec_jax.models.atomic as atomic
import taskvec_jax.models.checkpoint as checkpoint
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.hashing import hash_leaves, hash_params
from taskvec_jax.models.loading import load_model
from taskvec_jax.transformer.decoder import flatten

ROOT = Path(__file__).resolve().parent.parent.parent
TOKENS = np.array([5, 71, 2, 33, 99, 14])
KILLS = 20 if SLOW else 8

# Imports once, then forks a converter for every line it reads; JAX starts its threads only in the
# forked one.
NURSERY = """
import os, resource, sys, warnings
from pathlib import Path
import orbax.checkpoint, transformers, convert
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.converting import convert_model
warnings.simplefilter("ignore")
for line in sys.stdin:
    source, out, dtype, limit = line.split()
    child = os.fork()
    if not child:
        try:
            if int(limit):
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
            convert_model(source, Path(out), dtype=dtype)
        except TaskVecError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
        except BaseException:
            os._exit(3)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Processes that convert, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Orbax speaks at length when a write fails
            text=True,
        )

    def start(self, source: Path, out: Path, dtype: str, limit: int = 0) -> int:
        """Begins a conversion; gives the process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{source} {out} {dtype} {limit}\n")
        self.process.stdin.flush()
        return self._number()

    def finish(self) -> int:
        """Waits for it; gives its exit status, negative for a signal."""
        return self._number()

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.process.communicate()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf.save(hf.random_model(hf.llama()), tmp_path_factory.mktemp("source"))


def assert_whole(out: Path) -> None:
    """A reader that meets the directory gets all of it, with the hashes it was written with."""
    restored = checkpoint.restore(out)
    assert hash_params(restored.params) == restored.manifest["weights_sha256"]
    assert hash_leaves(restored.params) == restored.manifest["leaves_sha256"]


def test_a_conversion_killed_at_any_moment_leaves_nothing_half_done(
    nursery: Nursery, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "checkpoints" / "name"
    started = time.monotonic()
    nursery.start(source, out, "float32")
    assert nursery.finish() == 0
    longest = time.monotonic() - started
    rng = random.Random(11)
    killed = 0
    for _ in range(5 * KILLS):
        # Another dtype than is there, so that there is work to do and something to replace.
        there = checkpoint.read_config(out).dtype if out.exists() else "bfloat16"
        child = nursery.start(source, out, "float32" if there == "bfloat16" else "bfloat16")
        delay = longest * rng.random()
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if nursery.finish() == -signal.SIGKILL:
            killed += 1
        else:  # it was done before: the machine has less to do than at first
            longest = delay
        if checkpoint.is_checkpoint(out):
            assert_whole(out)
        else:
            assert not out.exists()
        if killed == KILLS:
            break
    assert killed == KILLS
    for dtype in ("float16", "float32"):
        nursery.start(source, out, dtype)
        assert nursery.finish() == 0
        assert_whole(out)
        assert checkpoint.read_config(out).dtype == dtype
    assert os.listdir(out.parent) == ["name"]


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    nursery: Nursery, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "checkpoints" / "name"
    for limit in (20_000, 60_000):
        nursery.start(source, out, "float32", limit)
        assert nursery.finish() == 2
        assert os.listdir(out.parent) == []
    nursery.start(source, out, "float32")
    assert nursery.finish() == 0


def test_a_disk_without_room_is_refused_before_anything_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=5_000_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: free)
    with pytest.raises(TaskVecError, match=r"needs 0\.02 GB, 0\.01 GB are free"):
        convert_model(source, tmp_path / "name")
    assert os.listdir(tmp_path) == []


def test_a_second_converter_waits_for_the_first_and_does_nothing(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "name"
    times: dict[str, float] = {}

    def second() -> None:
        convert_model(source, out)
        times["second"] = time.monotonic()

    with atomic.writing(out):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        assert not times
        assert not checkpoint.is_checkpoint(out)
        times["first"] = time.monotonic()
    thread.join()
    assert times["second"] > times["first"]
    before = (out / "manifest.json").stat().st_mtime_ns
    convert_model(source, out)
    assert (out / "manifest.json").stat().st_mtime_ns == before


def test_a_converted_checkpoint_restores_without_its_source(source: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in source.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    direct = load_model(copied)
    convert_model(copied, tmp_path / "out")
    for path in copied.iterdir():
        path.write_bytes(b"")
    restored = load_model(tmp_path / "out")
    assert restored.config == direct.config
    assert restored.weights_sha256 == direct.weights_sha256
    assert restored.tokenizer.sha256 == direct.tokenizer.sha256
    for path, leaf in flatten(direct.params).items():
        np.testing.assert_array_equal(leaf, flatten(restored.params)[path])


def test_rope_scaling_and_biases_survive_the_checkpoint(tmp_path: Path) -> None:
    for name in ("llama-rope-llama3", "gptj"):
        theirs = hf.random_model(hf.CONFIGS[name]())
        convert_model(hf.save(theirs, tmp_path / f"{name}-hf"), tmp_path / name)
        hf.assert_same(hf.run_ours(load_model(tmp_path / name), TOKENS), hf.run_hf(theirs, TOKENS))


def test_a_converted_model_is_not_converted_again(source: Path, tmp_path: Path) -> None:
    convert_model(source, tmp_path / "out")
    with pytest.raises(TaskVecError, match=r"a converted model already; .*--model="):
        convert_model(tmp_path / "out", tmp_path / "again")
    assert os.listdir(tmp_path) == ["out"]


def test_something_else_at_the_target_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("important")
    with pytest.raises(TaskVecError, match="there is something else there"):
        convert_model(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "important"


def test_arrays_that_do_not_fit_their_config_are_refused(source: Path, tmp_path: Path) -> None:
    convert_model(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for changes in ({"mlp_width": 54}, {"num_layers": 2}, {"tied_unembed": True}):
        (tmp_path / "out" / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(TaskVecError, match="cannot be restored"):
            load_model(tmp_path / "out")


def run(*arguments: str, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": QUICK, **environment},
        check=False,
    )


def test_the_command_converts_verifies_and_exports(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("convert", f"--model={source}", f"--out={out}", "--verify")
    assert done.returncode == 0, done.stderr
    assert f"{out}: float32, weights sha256" in done.stdout
    assert "first diverging site: none (beyond 0.0001)" in done.stdout
    assert "the differences above are rounding" in done.stdout
    done = run("convert.export", f"--model={out}", f"--out={tmp_path / 'back'}")
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "back").weights_sha256 == load_model(source).weights_sha256


def test_the_command_says_no_in_one_line(tmp_path: Path) -> None:
    done = run("convert", "--model=lama-7b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown model 'lama-7b' (did you mean llama-7b?)")
    assert done.stderr.count("\n") == 1


@slow
def test_conversion_keeps_to_its_memory(tmp_path: Path) -> None:
    kinds = ("safetensors", "bin", "pth", "gguf")
    done = run(
        "experiments.bench.conversion",
        "--layers=8",
        "--width=1024",
        "--vocabulary=16000",
        f"--formats={','.join(kinds)}",
        f"--scratch={tmp_path}",
        f"--out={tmp_path / 'results'}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results" / "conversion_benchmark.json").read_text())
    for kind in kinds:
        for stage in ("convert", "convert_and_write"):
            peak = results[kind][stage]["peak_bytes"]
            assert peak <= 1.25 * results["bytes"] + 300e6, (kind, stage)
