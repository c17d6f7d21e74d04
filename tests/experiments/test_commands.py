"""Commands as a user runs them: results on disk, determinism, and one clear line for bad input."""

# Long because: each kind of bad input is a line.

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import experiment as here
from slow import QUICK, slow
from tiny_checkpoint import save_tiny

from convert import cli
from taskvec_jax.distributed import plan
from taskvec_jax.models import checkpoint
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.registry import SMALL_MODEL

ROOT = Path(__file__).resolve().parent.parent.parent
GROWN = f"--model={SMALL_MODEL}"
SMALL = ["--num_prompts=3", "--batch_size=6", "--tasks=algorithmic_to_upper,linguistic_antonyms"]


def run(module: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory, tokenizer) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def sweep_out(tmp_path_factory, tiny_path) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("sweep")
    flags = (*SMALL, f"--model={tiny_path}", f"--out={out}")
    result = run("experiments.layer_sweep", *flags, XLA_FLAGS=QUICK, PYTHONHASHSEED="1")
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_the_layer_sweep_writes_the_documented_json(sweep_out, tiny_path):
    out, printed = sweep_out
    result = json.loads((out / "layer_sweep.json").read_text())
    of_run = {"model", "revision", "dtype", "quantization", "weights_sha256", "run"}
    of_run |= {"matmul_precision"}
    rest = {
        "experiment",
        "categories",
        "settings",
        "scored_by",
        "provenance",
        "vectors",
        "tasks",
        "data",
    }
    over_tasks = {"groups", "mean", "mean_paper", "mean_full", "share_of_icl_gain", "given_icl"}
    assert set(result) == of_run | rest | over_tasks | {"peak"}
    assert (result["revision"], result["dtype"], result["quantization"]) == (
        None,
        "float32",
        "none",
    )
    assert result["categories"] == {
        "algorithmic_to_upper": "algorithmic",
        "linguistic_antonyms": "linguistic",
    }
    assert result["tasks"]["linguistic_antonyms"]["category"] == "linguistic"
    assert result["model"] == str(tiny_path)
    assert result["settings"]["num_prompts"] == 3
    provenance = result["provenance"]
    assert {"versions", "device", "dtype", "seed", "command", "seconds"} <= set(provenance)
    assert re.fullmatch("[0-9a-f]{64}", provenance["tokenizer_sha256"])
    assert provenance["command"].startswith("python -m experiments.layer_sweep --num_prompts=3")
    assert list(result["tasks"]) == ["algorithmic_to_upper", "linguistic_antonyms"]
    for task in result["tasks"].values():
        for name in ("baseline", "icl", "task_vector", "random"):
            assert set(task[name]) == {"accuracy", "low", "high", "n", "queries"}
            assert task[name]["n"] == 3
            assert 0 <= task[name]["low"] <= task[name]["accuracy"] <= task[name]["high"] <= 1
        assert len(task["dev_accuracy_by_layer"]) == 3
        assert 0 <= task["best_layer"] < 3
        assert task["num_pairs"] > 0
        assert len(task["outcomes"]["queries"]) == 3
        assert set(task["outcomes"]["task_vector"]) == {
            "correct",
            "correct_paper",
            "correct_full",
            "predicted",
            "logprob",
            "rank",
            "logit_difference",
            "layer",
        }
    assert {"baseline", "icl", "task_vector", "random"} == set(result["mean"]["all"])
    assert result["mean"] == result["mean_full"]
    png = (out / "layer_sweep.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert "M parameters" in printed
    assert "algorithmic_to_upper" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "arrays",
        "journal.jsonl",
        "layer_sweep.json",
        "layer_sweep.png",
        "layer_sweep.svg",
        "layer_sweep_tasks.png",
        "layer_sweep_tasks.svg",
        "vectors",
    ]


def test_a_second_run_gives_the_same_bytes_whatever_the_hash_seed(sweep_out, tiny_path, tmp_path):
    out, _ = sweep_out
    flags = (*SMALL, f"--model={tiny_path}", f"--out={tmp_path}")
    again = run("experiments.layer_sweep", *flags, XLA_FLAGS=QUICK, PYTHONHASHSEED="77")
    assert again.returncode == 0, again.stderr
    texts = []
    for directory in (out, tmp_path):
        result = json.loads((directory / "layer_sweep.json").read_text())
        del result["provenance"]
        texts.append(json.dumps(result))
    assert texts[0] == texts[1]
    assert (out / "layer_sweep.png").read_bytes() == (tmp_path / "layer_sweep.png").read_bytes()


def test_show_prints_ids_bos_the_arrow_and_both_sites():
    flags = ("--task=algorithmic_to_upper", "--layer=3", f"--model={SMALL_MODEL}")
    result = run("experiments.show", *flags, XLA_FLAGS=QUICK)
    assert result.returncode == 0, result.stderr
    arrow = str(load_model(SMALL_MODEL).tokenizer.encode("example:a->")[-1])
    assert re.search(rf" {arrow} +48-50 +->", result.stdout)
    assert result.stdout.count("the arrow: θ is read here") == 2
    assert result.stdout.count("the arrow: θ is written here") == 1
    assert "BOS: none" in result.stdout
    assert "in context" in result.stdout
    assert "θ injected after layer 3" in result.stdout
    assert "expected" in result.stdout


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("layer_sweep", ["--model=lama-7b"], "unknown model 'lama-7b' (did you mean llama-7b?)"),
        ("layer_sweep", ["--model={tmp}"], "no model here; expected a directory with config.json"),
        ("layer_sweep", ["--tasks=zebras"], "unknown task 'zebras'; allowed:"),
        ("layer_sweep", ["--num_prompts=0"], "num_prompts is 0; it must be at least 1"),
        ("layer_sweep", ["--num_prompts=many"], "num_prompts"),
        ("layer_sweep", ["--dtype=int4"], "dtype"),
        ("layer_sweep", ["--colour=red"], "colour"),
        ("layer_sweep", ["stray"], "unexpected argument 'stray'"),
        ("layer_sweep", ["--task_data={tmp}"], "no task files"),
        ("layer_sweep", ["--out=/proc/nowhere"], "cannot be written"),
        (
            "layer_sweep",
            ["--num_demonstrations=30", "--tasks=algorithmic_to_upper"],
            "ask for fewer demonstrations",
        ),
        (
            "show",
            ["--task=capitals"],
            "unknown task 'capitals' (did you mean knowledge_country_capital?)",
        ),
        ("show", ["--layer=30"], "--layer=30 is out of range; allowed: 0 to 29"),
        ("layer_sweep", [GROWN, "--memory_gb=nan"], "--memory_gb=nan; it must be above 0"),
        ("patch_map", [GROWN, "--patches="], "--patches=[]: it is empty"),
        ("paper", [GROWN, "--patches=arrow:x"], "'arrow:x' has no place 'x'; allowed: prefix"),
        ("report", ["--results="], "--results=[]: it is empty; name at least one"),
        ("bench.mesh_plan", ["--batch_size=0"], "--batch_size=0"),
        ("task_geometry", [GROWN, "--layer=6"], "--layer=6 is out of range; allowed: 0 to 5"),
        ("small_pythia.train", ["--num_heads=0"], "--num_heads=0: each head must be"),
        ("emergence", ["--run={tmp}"], "holds no step<N>/ with a converted model"),
        ("report", ["--results={tmp}"], "no results; expected main_results.json"),
        ("bench.mesh_plan", ["--meshes=x"], "mesh 'x': cannot read 'x'"),
        ("bench.mesh_plan", ["--target=tpu:v9:2x2"], "target 'tpu:v9:2x2' is not known; allowed:"),
        ("bench.mesh_plan", ["--programs=x"], "program 'x'; allowed: read, inject, graded_read"),
        ("paper", [f"{GROWN},{GROWN[8:]}"], "would share "),
        ("paper", [GROWN, "--layer=6"], "--layer=6 is out of range; allowed: 0 to 5"),
        ("paper", [GROWN, "--num_demonstrations=5000"], "need 5003 different pairs"),
        ("learned_task_vector", [GROWN, "--layers=6"], "--layers=6: layers run from 6 to 6"),
        (
            "learned_task_vector",
            [GROWN, "--layers=x"],
            "--layers=x; allowed: all, best, or numbers",
        ),
        ("learned_task_vector", [GROWN, "--steps=0"], "steps is 0; it must be at least 1"),
        ("learned_task_vector", [GROWN, "--num_positions=0"], "--num_positions=0"),
        ("small_pythia.train", ["--steps=40"], "--warmup=100 with --steps=40"),
        ("small_pythia.train", ["--vector_layer=6"], "--vector_layer=6 is out of range"),
        ("small_pythia.train", ["--steps=0"], "--steps=0; it must be at least 1"),
        ("cross_models", ["--results={tmp}/gone"], "run experiments.main_results first"),
        ("report", ["--results={tmp}/gone"], "no results; expected main_results.json"),
        ("bench.sweep", ["--dtypes=float8"], "--dtypes: unknown 'float8'; allowed: float32"),
        ("bench.sweep", ["--stages=none"], "unknown stage 'none'"),
        ("bench.sweep", ["--shape=none"], "--shape=none; allowed: a path"),
        ("bench.sweep", [GROWN, "--tasks=linguistic_antonyms"], "this tokenizer leaves none"),
        ("main_results", [GROWN, "--mesh=x"], "mesh 'x': cannot read 'x'"),
        ("main_results", [GROWN, "--dtype=float64"], "dtype float64 needs jax_enable_x64"),
        ("main_results", [GROWN, "--tasks=linguistic_antonyms"], "this tokenizer leaves none"),
        ("main_results", [GROWN, "--num_demonstrations=5000"], "need 5003 different pairs"),
        ("show", [GROWN, "--tasks=bijection_1,bijection_2"], "one task is shown, but"),
        ("show", [GROWN, "--task=bijection_1", "--tasks=bijection_2"], "one task is shown, but"),
        ("show", [GROWN, "--layer=6"], "--layer=6 is out of range; allowed: 0 to 5"),
        ("layer_sweep", ["--tasks=antonims"], "(did you mean linguistic_antonyms?)"),
    ],
)
def test_bad_input_gets_one_line_and_exit_status_2(module, flags, message, tmp_path, default_model):
    out = tmp_path / "out"
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    if module not in ("show", "bench.mesh_plan") and not any(f.startswith("--out") for f in flags):
        flags.append(f"--out={out}")
    done = here(module, *flags)
    assert done.returncode == 2, done.printed
    # Before it there may be lines of progress; after it there is nothing.
    errors = [line for line in done.printed.splitlines() if "error" in line.lower()]
    assert errors == done.printed.splitlines()[-1:]
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert "Traceback" not in done.printed
    assert not out.exists()
    assert "loading" not in done.printed, "no mistake of these takes a model to be found"


def test_a_flag_may_be_written_with_hyphens():
    assert cli.underscored("--log-dir=a-b") == "--log_dir=a-b"
    assert cli.underscored("--nolog-dir") == "--nolog_dir"
    for word in ("--no-such=1", "-5", "a-b", "--"):
        assert cli.underscored(word) == word


def test_any_prompt_is_shown_without_the_ones_before_it():
    done = here("show", GROWN, "--task=bijection_1", "--index=99999999999")
    assert done.returncode == 0, done.printed
    assert "test prompt 99999999999" in done.printed


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], "algorithmic_next_letter"),  # the first of the model's own
        (["--tasks=bijection_2"], "bijection_2"),
        (["--task=lookup_letter"], "lookup_letter"),
    ],
)
def test_show_shows_the_task_that_is_asked_for(flags, shown):
    done = here("show", GROWN, *flags)
    assert done.returncode == 0, done.printed
    assert f"{shown}, test prompt 0" in done.printed
    rows = [line for line in done.printed.splitlines() if re.match(r"\s*\d+\s+\d+\s", line)]
    assert all(len(line.split()) >= 4 for line in rows), "a newline is a token, and breaks no row"


@slow  # compiles without a cache
def test_a_full_disk_is_one_line_and_leaves_no_torn_file(tmp_path):
    """A limit on the size of files stands for a disk without room."""
    out = tmp_path / "out"
    flags = (GROWN, "--tasks=bijection_1", "--num_prompts=2", "--batch_size=2", f"--out={out}")
    command = f"ulimit -f 1; exec {sys.executable} -m experiments.layer_sweep {' '.join(flags)}"
    env = {**os.environ, "XLA_FLAGS": QUICK, "TASKVEC_CACHE": "/dev/null/none"}
    full = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert full.returncode == 2, full.stdout + full.stderr
    assert full.stderr.startswith("error: ")
    assert len(full.stderr.splitlines()) == 1
    assert "cannot be written (File too large); make room" in full.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("layer_sweep", []),
        ("screen", []),
        ("show", []),
        ("steer", ["--task=bijection_1", "--prompt=a->"]),
    ],
)
def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_read(
    module, flags, tmp_path, monkeypatch
):
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(plan, "this_machine", lambda: plan.Mesh("m", 1, 0.001 * plan.GB))
    monkeypatch.setattr(checkpoint, "restore_params", read)
    out = [f"--out={tmp_path}"] if module == "layer_sweep" else []
    done = here(module, GROWN, *flags, *out)
    assert done.returncode == 2, done.printed
    assert "each device needs" in done.printed
    assert "has 0.00 GB; what would fit: a smaller model" in done.printed


def test_a_memory_limit_too_small_for_one_prompt_is_refused_before_weights_are_read(
    tmp_path, monkeypatch
):
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoint, "restore_params", read)
    done = here("layer_sweep", GROWN, "--memory_gb=0.01", f"--out={tmp_path}")
    assert done.returncode == 2, done.printed
    assert "0.01 GB" in done.printed
