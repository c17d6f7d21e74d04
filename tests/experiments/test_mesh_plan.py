"""Programs for devices that are not here: what they ask for, and what is counted of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import LLAMA
from slow import slow

from experiments.bench import compile_only, hlo, mesh_plan, plan_matrix, run_programs
from taskvec_jax.distributed import footprint
from taskvec_jax.distributed.sharding import MeshShape, make_mesh
from taskvec_jax.distributed.targets import Target
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import DEFAULT_MODEL, SMALL_MODEL
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.vectors.flops import answer_flops, attention_flops, layer_flops
from taskvec_jax.vectors.programs import wavefront_schedule

ROOT = Path(__file__).resolve().parent.parent.parent
NO_LIBTPU = importlib.util.find_spec("libtpu") is None
FIELDS = ["model", "target", "mesh", "dtype", "quantization", "program", "fits", "compiler_bytes"]
FIELDS += ["plan_bytes", "collectives", "flops", "bytes", "seconds_at_roofline", "bound"]
SMALL = dataclasses.replace(LLAMA, num_layers=2)
TIED = dataclasses.replace(SMALL, mlp_width=54, tied_unembed=True)


def products(config: DecoderConfig, program: str, platform: str) -> tuple[list[str], str]:
    """The products of a program in the text that the compiler of a platform is given, and it."""
    trace = run_programs.programs_of(config, make_mesh(MeshShape()), 2)[program]
    text = trace().lower(lowering_platforms=(platform,)).as_text()
    return [line for line in text.splitlines() if "stablehlo.dot_general" in line], text


@pytest.mark.parametrize("program", [p for p in run_programs.NAMES if p != "restore"])
def test_every_product_of_a_float32_run_asks_for_full_precision_and_nothing_leaves_the_device(
    program,
):
    for platform in ("tpu", "cuda") if program == "read" else ("tpu",):
        found, text = products(SMALL, program, platform)
        assert len(found) >= 9  # four of attention's kernels, its own two, three of the MLP
        for line in found:
            assert "precision = [HIGHEST, HIGHEST]" in line, line
        assert "f64" not in text
        assert "callback" not in text


def test_the_precision_is_what_was_asked_for_and_half_precision_keeps_more_of_attention():
    def found(**changes: str) -> list[str]:
        config = dataclasses.replace(TIED, **changes)
        lines, _ = products(config, "read", "tpu")
        said = (re.search(r"precision = \[(\w+),", line) for line in lines)
        return sorted({match[1] if match else "DEFAULT" for match in said})

    assert found() == ["HIGHEST"]
    assert found(matmul_precision="high") == ["HIGH"]
    assert found(matmul_precision="default") == ["DEFAULT"]
    assert found(dtype="bfloat16") == ["DEFAULT", "HIGH"]
    assert found(quantization="int8") == ["HIGHEST"]
    assert found(quantization="int4") == ["HIGHEST"]


def test_on_a_tpu_each_loop_of_a_sweep_has_kernels_of_its_own():
    def barriers(program: str, platform: str) -> int:
        return products(SMALL, program, platform)[1].count("stablehlo.optimization_barrier")

    loops = len({stop for stop, _ in wavefront_schedule(SMALL.num_layers)})
    assert loops > 1
    assert barriers("inject", "tpu") == 3 * loops  # queries, keys, values
    assert barriers("inject", "cuda") == barriers("read", "tpu") == 0


def test_a_compiler_that_is_not_installed_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(compile_only, "_installed", lambda module: False)
    for name, extra in (("tpu:v5e:2x4", "tpu-compile"), ("gpu:h100:1", "cuda")):
        with pytest.raises(TaskVecError, match=rf"{name}: .*pip install 'taskvec-jax\[{extra}\]'"):
            compile_only.devices_of(Target.parse(name))


def test_a_program_that_does_not_fit_is_told_with_what_it_needs_and_the_way_out():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space"
        " hbm. Used 30.05G of 15.75G hbm. Exceeded hbm capacity by 14.30G."
    )

    other = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (30.05G) exceeds available HBM (15.75G)."
    )

    def trace(message: str = message):
        raise jax.errors.JaxRuntimeError(message)

    refused = mesh_plan.compiled(trace, 1)
    assert mesh_plan.compiled(lambda: trace(other), 1) == refused
    assert refused.bytes == round(30.05 * 2**30)
    assert "needs 32.27 GB of a device that has 16.91; use more devices" in refused.refused
    target = Target.parse("tpu:v5e:1x1")
    record = mesh_plan.record_of("read", refused, target, planned=1)
    assert not record["fits"]
    assert record["flops"] is record["seconds_at_roofline"] is None


def test_work_is_counted_as_often_as_loops_turn():
    def looped(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    shapes = (
        jax.ShapeDtypeStruct((4, 48), jnp.float32),
        jax.ShapeDtypeStruct((7, 48, 48), jnp.float32),
    )
    found = hlo.count(jax.jit(looped).lower(*shapes).compile().as_text() or "")
    assert found.flops == {"default": 7 * 2 * 4 * 48 * 48}
    kernels = 7 * 48 * 48 * 4
    assert kernels <= found.bytes < 4 * kernels
    assert found.collectives == []


def test_a_convolution_counts_where_its_window_meets_the_input():
    # What the compiler for TPUs makes of a product with batch axes 4 and 2: the window of each
    # place of the result meets one element of the spread input.
    text = """
ENTRY %main (a: f32[4,2,128,32], b: f32[4,2,96,32]) -> f32[4,2,128,96] {
  %a = f32[4,2,128,32]{3,2,1,0} parameter(0)
  %b = f32[4,2,96,32]{3,2,1,0} parameter(1)
  ROOT %c = f32[4,2,128,96]{3,2,1,0} convolution(%a, %b), HOW
}
"""
    how = "window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=01bf_01oi->01bf"
    text = text.replace("HOW", f"{how}, operand_precision={{highest,highest}}")
    assert hlo.count(text).flops == {"highest": 2 * 4 * 2 * 128 * 96 * 32}


def test_bytes_are_whole_tiles_in_main_memory_and_slices_of_what_is_only_sliced():
    text = """
%fused (p.0: f32[6,10,100], p.1: s32[]) -> f32[10,100] {
  %p.0 = f32[6,10,100]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %d = f32[1,10,100]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero)
  ROOT %b = f32[10,100]{1,0:T(8,128)S(1)} bitcast(%d)
}

ENTRY %main (a: f32[6,10,100], i: s32[]) -> f32[10,100] {
  %a = f32[6,10,100]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %f = f32[10,100]{1,0:T(8,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%fused
  ROOT %n = f32[10,100]{1,0:T(8,128)} negate(%f)
}
"""
    tile = 16 * 128 * 4  # 10 x 100 in whole tiles of 8 x 128
    assert hlo.count(text).bytes == (tile + 4) + tile  # the slice and its place; the result


def test_the_roofline_is_the_slowest_of_products_memory_and_links():
    chip = Target.parse("tpu:v5e:2x4").chip
    sums = [hlo.Collective("all-reduce", 10**9, 8, 3, "")]
    cases = {
        "compute": hlo.Work({"highest": 10**15}, 1, [], []),
        "memory": hlo.Work({"bfloat16": 1}, 10**12, [], []),
        "interconnect": hlo.Work({"bfloat16": 1}, 1, sums, []),
    }
    want = {
        "compute": 1e15 / (197e12 / 6),
        "memory": 1e12 / 819e9,
        "interconnect": 3 * 2 * 7 / 8 * 1e9 / chip.link,
    }
    for bound, done in cases.items():
        seconds, found = mesh_plan.seconds_at_roofline(done, Target.parse("tpu:v5e:2x4"))
        assert found == bound
        assert seconds == pytest.approx(want[bound])
    assert mesh_plan.seconds_at_roofline(cases["memory"], Target.parse("cpu")) == (None, None)


def padded_flops(config: DecoderConfig, rows: int) -> dict[str, int]:
    """FLOPs of the sweep's programs with all padding: every token that is run counts."""
    length, queries = footprint.PROMPT_TOKENS, footprint.QUERY_TOKENS
    each, layers = layer_flops(config), config.num_layers
    read = layers * (length * each + attention_flops(config, length**2))
    read += footprint.READS * answer_flops(config)
    inject = (1 + layers) * answer_flops(config)
    done = 0
    for stop, alive in wavefront_schedule(layers):
        tokens = queries + alive
        inject += (stop - done) * (tokens * each + attention_flops(config, tokens**2))
        done = stop
    return {"read": rows * read, "inject": rows * inject}


def compiled_for(target: str, out: Path, *more: str) -> list[dict]:
    command = [sys.executable, "-m", "experiments.bench.mesh_plan", f"--target={target}"]
    done = subprocess.run(
        [*command, "--programs=read,inject", f"--out={out}", *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "mesh_plan.json").read_text())


def test_the_matrix_takes_what_is_compiled_already_and_tells_what_failed(tmp_path, monkeypatch):
    target = Target.parse("gpu:h100:8")
    record = {"program": "read", "fits": True, "compiler_bytes": 2_172_000_000, "bytes": 10**9}
    record |= {"plan_bytes": 2_157_000_000, "flops": 10**13, "seconds_at_roofline": 0.0263}
    record |= {"bound": "interconnect"}
    place = tmp_path / "gpu-h100-8_llama-7b_bfloat16"
    place.mkdir()
    kept = [record, record | {"program": "inject", "compiler_bytes": None, "fits": False}]
    (place / "mesh_plan.json").write_text(json.dumps(kept))
    monkeypatch.setattr(plan_matrix.sys, "executable", "false")
    assert plan_matrix.compiled(target, "llama-7b", "bfloat16", tmp_path) == kept
    want = "| read | 2.172, 2.157 (-0.7%) | fits | 10 | 1 | 26.3 | interconnect |"
    assert plan_matrix.row(kept[0]) == want
    assert plan_matrix.row(kept[1]).startswith("| inject | not told | does not fit |")
    with pytest.raises(TaskVecError, match="gpu:h100:8 llama-7b int8: mesh_plan failed"):
        plan_matrix.compiled(target, "llama-7b", "int8", tmp_path)


@pytest.mark.skipif(NO_LIBTPU, reason="libtpu is not installed")
def test_the_small_model_compiles_for_four_chips_of_v5e(tmp_path):
    records = compiled_for(
        "tpu:v5e:2x2",
        tmp_path,
        f"--models={SMALL_MODEL}",
        "--meshes=data:2,model:2",
        "--batch_size=8",
    )
    _, config = describe(SMALL_MODEL)
    flops = padded_flops(config, rows=8)
    assert [record["program"] for record in records] == ["read", "inject"]
    for record in records:
        assert list(record)[: len(FIELDS)] == FIELDS
        assert record["fits"]
        # Half of the rows and half of every product on each; the vocabulary, 157, is not divided.
        assert record["flops"] == pytest.approx(flops[record["program"]] / 4, rel=0.02)
        assert set(record["flops_by_kind"]) == {"highest"}
        assert record["bytes"] > 1e6
        assert record["collectives"]
        assert record["seconds_at_roofline"] > 0


@slow  # compiles large models for a TPU and a GPU
@pytest.mark.parametrize(
    ("target", "model", "dtype"),
    [
        ("tpu:v5e:2x2", DEFAULT_MODEL, "float32"),
        ("tpu:v5e:2x4", "llama-7b", "bfloat16"),
        ("tpu:v5e:2x4", "llama-7b", "float32"),
        ("tpu:v4:2x2x2", "llama-7b", "bfloat16"),  # two hosts
        ("gpu:h100:8", "llama-7b", "bfloat16"),
    ],
)
def test_large_models_compile_and_need_what_is_planned(target, model, dtype, tmp_path):
    kind, devices = target.partition(":")[0], Target.parse(target).devices
    if not compile_only._installed(compile_only.PLUGINS[kind][0]):
        pytest.skip(f"the compiler for {target} is not installed")
    flags = [f"--models={model}", f"--dtype={dtype}", f"--meshes=data:1,model:{devices}"]
    for record in compiled_for(target, tmp_path, *flags):
        assert record["fits"]
        planned, compiled = record["plan_bytes"], record["compiler_bytes"]
        least = -0.03 if model != DEFAULT_MODEL else -0.2
        assert least <= planned / compiled - 1 <= (0.1 if model != DEFAULT_MODEL else 0.2), record
