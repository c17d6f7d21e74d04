"""The memory plan against what XLA's own compilers for a TPU and a GPU say, as recorded."""

from __future__ import annotations

import dataclasses

import pytest

from taskvec_jax.distributed import plan
from taskvec_jax.distributed.footprint import PROGRAMS, parameter_bytes, program_bytes
from taskvec_jax.distributed.sharding import MeshShape
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.registry import NAMED_MODELS

# Bytes a device that the compiler asks for, in GB: (devices, model, precision) -> reading rows,
# injecting vectors, of 50 prompts; all devices on `model`. By the programs of
# `python -m experiments.bench.plan_matrix`: H100s and v5e, jax 0.10.2, libtpu 0.0.42.1,
# 2026-11-26 (H100) and 2026-11-27 (v5e).
COMPILED = {
    ("gpu:1", "gemma-2-2b", "bfloat16"): (5.748, 6.634),
    ("gpu:1", "gemma-2-2b", "float32"): (11.356, 11.864),
    ("gpu:1", "gemma-2-2b", "int8"): (3.684, 4.612),
    ("gpu:1", "llama-7b", "bfloat16"): (14.232, 13.887),
    ("gpu:1", "llama-7b", "float32"): (28.249, 27.707),
    ("gpu:1", "llama-7b", "int8"): (7.619, 7.21),
    ("gpu:1", "pythia-12b", "bfloat16"): (24.859, 24.408),
    ("gpu:1", "pythia-12b", "float32"): (49.233, 48.633),
    ("gpu:1", "pythia-12b", "int8"): (13.059, 12.621),
    ("gpu:8", "gemma-2-2b", "bfloat16"): (0.947, 0.876),
    ("gpu:8", "gemma-2-2b", "float32"): (1.677, 1.567),
    ("gpu:8", "gemma-2-2b", "int8"): (0.677, 0.608),
    ("gpu:8", "llama-7b", "bfloat16"): (2.172, 1.874),
    ("gpu:8", "llama-7b", "float32"): (3.926, 3.6),
    ("gpu:8", "llama-7b", "int8"): (1.343, 1.046),
    ("gpu:8", "pythia-12b", "bfloat16"): (3.606, 3.227),
    ("gpu:8", "pythia-12b", "float32"): (6.648, 6.256),
    ("gpu:8", "pythia-12b", "int8"): (2.145, 1.773),
    ("tpu:1", "llama-7b", "bfloat16"): (14.096, 13.731),
    ("tpu:1", "llama-7b", "float32"): (27.456, 27.176),
    ("tpu:1", "llama-7b", "int8"): (7.494, 7.13),
    ("tpu:8", "llama-7b", "bfloat16"): (2.079, 1.783),
    ("tpu:8", "llama-7b", "float32"): (3.738, 3.468),
    ("tpu:8", "llama-7b", "int8"): (1.186, 0.959),
    ("tpu:1", "gemma-2-2b", "bfloat16"): (5.624, 5.298),
    ("tpu:1", "gemma-2-2b", "float32"): (11.207, 10.649),
    ("tpu:1", "gemma-2-2b", "int8"): (3.604, 3.277),
    ("tpu:1", "pythia-12b", "bfloat16"): (24.428, 24.224),
    ("tpu:1", "pythia-12b", "float32"): (48.297, 47.878),
    ("tpu:1", "pythia-12b", "int8"): (12.997, 12.596),
    ("tpu:8", "gemma-2-2b", "bfloat16"): (0.962, 0.715),
    ("tpu:8", "gemma-2-2b", "float32"): (1.617, 1.4),
    ("tpu:8", "gemma-2-2b", "int8"): (0.695, 0.448),
    ("tpu:8", "pythia-12b", "bfloat16"): (3.743, 3.21),
    ("tpu:8", "pythia-12b", "float32"): (6.576, 6.202),
    ("tpu:8", "pythia-12b", "int8"): (2.298, 1.764),
}


@pytest.mark.parametrize("case", COMPILED, ids=" ".join)
def test_the_plan_is_within_a_tenth_of_the_compiler_and_hardly_below_it(case):
    target, name, precision = case
    kind, _, devices = target.partition(":")
    config = plan.in_precision(NAMED_MODELS[name].config, precision)
    for program, compiled in zip(("read", "inject"), COMPILED[case], strict=True):
        mesh = MeshShape(1, int(devices))
        planned = program_bytes(config, program, 50, mesh, kind=kind) / 1e9
        assert -0.03 <= planned / compiled - 1 <= 0.1, (program, planned, compiled)


def test_more_prompts_take_more_memory_and_more_devices_less_of_each():
    config = NAMED_MODELS["llama-7b"].config
    for kind in ("cpu", "gpu", "tpu"):
        for program in PROGRAMS:
            needs = [program_bytes(config, program, batch, kind=kind) for batch in (1, 8, 64)]
            assert needs == sorted(set(needs))
            assert needs[0] > parameter_bytes(config, 1)
            split = [
                program_bytes(config, program, 64, MeshShape(data, model), kind=kind)
                for data, model in ((1, 1), (2, 1), (2, 4), (4, 8))
            ]
            assert split == sorted(set(split), reverse=True)


def refusal(monkeypatch, gigabytes: float, mesh: MeshShape | None, **changes: str) -> str:
    config = dataclasses.replace(NAMED_MODELS["llama-7b"].config, **changes)
    machine = plan.Mesh("m", 1, gigabytes * plan.GB)
    monkeypatch.setattr(plan, "this_machine", lambda: machine)
    with pytest.raises(TaskVecError) as refused:
        plan.refuse_too_large("llama-7b", config, mesh)
    return str(refused.value)


def test_a_model_that_cannot_fit_is_refused_with_the_smallest_mesh_and_precision_that_would(
    monkeypatch,
):
    said = refusal(monkeypatch, 16, None)
    assert "in float32 on mesh data:1,model:1 each device needs 27." in said
    assert "has 16.00 GB; what would fit: --dtype=bfloat16 (13.5" in said
    assert "or 2 devices of this size with --mesh=data:1,model:2 (13.5" in said
    said = refusal(monkeypatch, 10, None, dtype="bfloat16")
    assert "what would fit: --quantization=int8 (7." in said
    assert "or 2 devices" in said
    said = refusal(monkeypatch, 5, MeshShape(2, 1), dtype="bfloat16", quantization="int8")
    assert "what would fit: --quantization=int4 (4." in said
    said = refusal(monkeypatch, 0.001, None)
    assert "what would fit: a smaller model" in said


def test_a_model_that_fits_is_not_refused(monkeypatch):
    config = NAMED_MODELS["llama-7b"].config
    machine = plan.Mesh("m", 1, 30 * plan.GB)
    monkeypatch.setattr(plan, "this_machine", lambda: machine)
    plan.refuse_too_large("llama-7b", config, None)
    plan.refuse_too_large("llama-7b", config, MeshShape(4, 1))
