"""What makes the sweep fast is held by counting, never by a clock."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA
from slow import QUICK, slow
from tiny_checkpoint import save_tiny

from taskvec_jax.distributed import plan
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.injection_check import check_injection
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.tasks import TASKS
from taskvec_jax.transformer.decoder import leaf_types, unflatten
from taskvec_jax.vectors import flops, sweep
from taskvec_jax.vectors.account import ACCOUNT
from taskvec_jax.vectors.graded import Graded
from taskvec_jax.vectors.programs import inject_rows, read_rows, wavefront_schedule
from taskvec_jax.vectors.rows import Rows

ROOT = Path(__file__).resolve().parent.parent.parent
OPTIMISED = True  # what the compiler makes is looked at here


@pytest.mark.parametrize(("num_prompts", "programs", "share"), [(10, 14, 1.15), (50, 25, 1.08)])
def test_a_sweep_compiles_few_programs_and_does_little_more_than_it_needs(
    num_prompts, programs, share, default_model, monkeypatch
):
    """Every shape of the paper's 18 tasks, with the programs replaced by ones that only look."""
    shapes, rng = set(), np.random.default_rng(0)  # vectors that differ, as real ones do
    ACCOUNT._seen.clear()  # another test's rows
    before = ACCOUNT.now()
    settings = dataclasses.replace(Settings(), num_prompts=num_prompts, batch_size=num_prompts)
    c = default_model.config

    def graded(shape):
        return Graded(*(np.zeros(shape, t) for t in (np.float32, np.int32, np.float32)))

    def read_rows(config, params, laid_out, grading=None, *, unanswered=0):
        shapes.add(("read", laid_out.tokens.shape, laid_out.ends.shape, grading is None))
        rows, reads = laid_out.ends.shape
        blank = np.zeros((rows, reads - unanswered), np.int32)
        residuals = rng.standard_normal((rows, reads, c.num_layers, c.width), np.float32)
        return residuals, blank, blank, grading and graded(blank.shape)

    def inject_rows(config, params, tokens, last, vectors, layers, schedule, *more):
        shapes.add(("inject", tokens.shape, vectors.shape, schedule, more[0] is None))
        blank = np.zeros((len(tokens), 1 + vectors.shape[1]), np.int32)
        return blank, blank, more[0] and graded(blank.shape)

    monkeypatch.setattr(sweep, "read_rows", read_rows)
    monkeypatch.setattr(sweep, "inject_rows", inject_rows)
    check_injection(default_model, settings.batch_size)
    for task in TASKS.values():
        evaluate_task(default_model, task, settings)
    loading = 1  # the look every model gets when it is loaded
    assert len(shapes) + loading <= programs, sorted(map(str, shapes))
    spent = ACCOUNT.since(before)
    assert spent.needed < spent.done <= share * spent.needed


COUNT = """
import json, runpy, sys
import jax
events = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: events.append(name)
)
from taskvec_jax.vectors import continuing, sweep
shapes = set()
for module, name in (
    (sweep, "read_rows"),
    (sweep, "inject_rows"),
    (continuing, "read_beginnings"),
    (continuing, "after_beginnings"),
):
    def looked(*args, run=getattr(module, name), name=name, **more):
        tree = jax.tree.map(lambda x: getattr(x, "shape", x), args[2:])
        shapes.add((name, str(tree)))
        return run(*args, **more)
    setattr(module, name, looked)
sys.argv = ["layer_sweep", *sys.argv[1:]]
try:
    runpy.run_module("experiments.layer_sweep", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps([len(shapes), sum(name.endswith("backend_compile_duration") for name in events)]))
"""


@slow
def test_nothing_compiles_beside_the_programs_of_the_sweep_and_the_look_at_the_model(
    tmp_path, tokenizer
):
    model = save_tiny(tmp_path / "tiny", tokenizer)
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            COUNT,
            f"--model={model}",
            "--num_prompts=4",
            "--batch_size=4",
            "--tasks=algorithmic_to_upper,translation_fr_en",
            f"--out={tmp_path / 'out'}",
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICK, "TASKVEC_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    shapes, compiled = json.loads(result.stdout.splitlines()[-1])
    assert shapes >= 4
    assert compiled <= shapes + 2  # the look at the model, and the check of sums


BOUNDED = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "experiments.layer_sweep", *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


@slow  # runs the default model
@pytest.mark.skipif(not hasattr(resource, "RUSAGE_CHILDREN"), reason="needs Unix accounting")
def test_peak_memory_stays_below_the_flag(tmp_path, default_model):
    bound = 1.3
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            BOUNDED,
            f"--memory_gb={bound}",
            "--num_prompts=12",
            "--tasks=algorithmic_list_first",
            f"--out={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "prompts a call" in result.stdout
    assert int(result.stdout.splitlines()[-1]) <= bound * 1e9


@slow  # compiles a large model for 8 devices
def test_the_plan_is_what_the_compiler_needs_for_llama_30b_on_8_devices(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.bench.mesh_plan",
            "--models=llama-30b",
            "--meshes=data:1,model:8",
            "--dtype=bfloat16",
            "--programs=read,inject",
            f"--out={tmp_path}",
        ],
        cwd=ROOT,
        check=True,
    )
    records = json.loads((tmp_path / "mesh_plan.json").read_text())
    compiled, planned = (
        max(record[name] for record in records) for name in ("compiler_bytes", "plan_bytes")
    )
    assert abs(planned / compiled - 1) <= 0.1
    sums = [c["times"] for c in records[0]["collectives"] if c["kind"] == "all-reduce"]
    assert sum(sums) // 60 == 2  # a layer of 60; few are outside of the loop


@slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sweep_makes_no_copy_of_the_layers(dtype):
    config = dataclasses.replace(LLAMA, dtype=dtype, num_layers=16, mlp_width=512)
    types = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in leaf_types(config).items()}
    held = sum(x.size * x.dtype.itemsize for x in types.values())
    params, tokens, one = unflatten(types), np.zeros((1, 3), np.int32), np.zeros(1, np.int32)
    copies = (jnp.zeros((1, 16, 42)), jnp.arange(16)[None], wavefront_schedule(16))
    for program in (
        read_rows.lower(config, params, Rows(tokens, tokens, tokens, one[None])),
        inject_rows.lower(config, params, jnp.array(tokens), jnp.array(one), *copies),
    ):
        memory = program.compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 0.3 * held


def test_the_batch_shrinks_with_the_memory_and_too_little_is_refused():
    sizes = [plan.largest_batch(LLAMA, memory * 1e9, 50) for memory in (0.602, 0.61, 4)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 50
    assert sizes[-1] == 50
    with pytest.raises(TaskVecError, match="one prompt of 128 tokens need"):
        plan.largest_batch(LLAMA, 1e6, 50)


def test_counted_work_equals_counting_by_hand():
    c = LLAMA  # D 42, H 6, G 3, K 14, F 53, V 131, L 5
    per_token = 2 * (42 * 84 + 2 * 42 * 42 + 84 * 42 + 3 * 42 * 53)
    assert flops.layer_flops(c) == per_token
    assert flops.answer_flops(c) == 2 * 42 * 131
    # Two texts of 3 and 4 tokens that share 2: 2 + 1 + 2 tokens; keys seen 1 + 2, 3, 3 + 4.
    texts = [[1, 2, 3], [1, 2, 4, 5]]
    want = 5 * (5 * per_token + 4 * (1 + 2 + 3 + 3 + 4) * 84) + 1 * 2 * 42 * 131
    assert flops.reading_flops(c, texts, 1) == want
    # A query of 2 tokens, copies after layers 0 and 3: 4 + 1 layer steps, each seeing 2 keys.
    want = 5 * (2 * per_token + 4 * 3 * 84) + 5 * (per_token + 4 * 2 * 84) + 3 * 2 * 42 * 131
    assert flops.injection_flops(c, 2, [0, 3]) == want


def test_copies_run_through_little_more_than_half_of_all_layers():
    for depth in (10, 30, 60):
        schedule = wavefront_schedule(depth)
        starts = [0, *(end for end, _ in schedule)]
        steps = sum(alive * (end - a) for a, (end, alive) in zip(starts, schedule, strict=False))
        assert steps <= 0.62 * depth * depth
