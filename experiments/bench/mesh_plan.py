"""Compiles the programs of a run for devices this machine does not have, and checks the plan.

    python -m experiments.bench.mesh_plan
    python -m experiments.bench.mesh_plan --target=tpu:v5e:2x4 --models=llama-7b --dtype=bfloat16
    python -m experiments.bench.mesh_plan --target=gpu:h100:8 --meshes=data:1,model:8;data:2,model:4

No weights are loaded, and nothing runs: XLA's own compilers for the target compile every program of
a run (`run_programs.py`) from shapes. For each: whether it fits; bytes a device needs, by the
compiler and by `--plan`; collectives; FLOPs and bytes moved; and the least time it can take by the
vendor's published rates (the roofline), with what bounds it. All of it goes to mesh_plan.json under
--out. Targets are those of `taskvec_jax/distributed/targets.py`.

On the default target, cpu, devices are simulated and the rates are not known. TPUs need libtpu
(`pip install 'taskvec-jax[tpu-compile]'`), GPUs the CUDA plugin (the extra `cuda`).
--programs=read,inject compiles the sweep alone.

Time: half a minute a program of LLaMA 7B (2 cores).
"""

# Long because: a program is compiled, weighed against its target, planned and told in one place.

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh

from convert import cli as command
from convert.cli import FLAGS, console
from experiments.bench import hlo, run_programs
from experiments.bench.compile_only import devices_of
from experiments.run.results import prepare_out, write_json
from taskvec_jax.distributed import plan
from taskvec_jax.distributed.footprint import PROGRAMS, program_bytes
from taskvec_jax.distributed.plan import GB
from taskvec_jax.distributed.sharding import MeshShape, make_mesh
from taskvec_jax.distributed.targets import Target
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory
from taskvec_jax.models.names import describe
from taskvec_jax.transformer.config import DTYPES, QUANTIZATIONS, DecoderConfig

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "": 1}
WAYS_OUT = "more devices on model, --quantization=int8, --dtype=bfloat16 or a smaller --batch_size"


class Program(NamedTuple):
    """What a compiled program needs of each device.

    Attributes:
      bytes: arguments, results and everything between; None where the compiler does not say.
      arguments, temporaries, outputs: the parts of `bytes`.
      work: what it does; None where it could not be compiled.
      refused: why it could not be compiled, in a sentence.
    """

    bytes: int | None
    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    work: hlo.Work | None = None
    refused: str = ""

    @property
    def loops(self) -> list[list[str]]:
        """For each loop over layers, the collectives of one layer."""
        work = self.work
        return [self._kinds(loop) for loop in work.loops] if work else []

    @property
    def outside(self) -> list[str]:
        """The other collectives."""
        return self._kinds("")

    def _kinds(self, loop: str) -> list[str]:
        return [c.kind for c in self.work.collectives if c.loop == loop] if self.work else []


def compile_sweep(config: DecoderConfig, mesh: Mesh, batch_size: int) -> dict[str, Program]:
    """Both programs of a layer sweep, at the lengths of `footprint.sweep_bytes`."""
    trace = run_programs.programs_of(config, mesh, batch_size)
    return {name: compiled(trace[name], mesh.size) for name in run_programs.SWEEP}


def compiled(trace: run_programs.Trace, devices: int) -> Program:
    """A program as the compiler for its devices makes it; one that does not fit says so."""
    try:
        made = trace().lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _refused(str(error))
    memory = made.memory_analysis()
    work = hlo.count(made.as_text() or "", devices)
    if memory is None:
        return Program(None, work=work)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = memory.argument_size_in_bytes, memory.temp_size_in_bytes, outputs
    return Program(sum(parts), *parts, work)


def _refused(message: str) -> Program:
    """What a compiler says of a program that does not fit: how much it would need, of how much."""
    number = r"([\d.]+)([KMGT]?)"
    said = re.search(rf"Used {number} of {number} hbm", message) or re.search(
        rf"total memory required .*\({number}\) exceeds available HBM \({number}\)", message
    )
    if not said:
        return Program(None, refused=f"does not fit ({first_line(message)}); use {WAYS_OUT}")
    needs, has = (float(said[i]) * UNITS[said[i + 1]] for i in (1, 3))
    return Program(
        round(needs),
        refused=f"needs {needs / GB:.2f} GB of a device that has {has / GB:.2f}; use {WAYS_OUT}",
    )


def seconds_at_roofline(work: hlo.Work, target: Target) -> tuple[float | None, str | None]:
    """The least time a program can take on a device of the target, and what bounds it.

    The largest of three: products at their peak rates, bytes at the memory's bandwidth, collectives
    at the bandwidth of all links of a device, as a ring would do them. They would overlap at best.
    """
    chip = target.chip
    if not chip.peak:
        return None, None
    times = {
        "compute": sum(flops / chip.peak[how] for how, flops in work.flops.items()),
        "memory": work.bytes / chip.bandwidth,
        "interconnect": sum(c.times * _sent(c) for c in work.collectives) / chip.link,
    }
    bound = max(times, key=lambda name: times[name])
    return times[bound], bound


def _sent(one: hlo.Collective) -> float:
    """Bytes that a device sends in a collective done as a ring."""
    rest = (one.devices - 1) / one.devices
    if one.kind == "all-reduce":
        return 2 * rest * one.bytes
    if one.kind == "reduce-scatter":
        return rest * one.bytes * one.devices
    return one.bytes * (1.0 if one.kind == "collective-permute" else rest)


def fits(program: Program, target: Target) -> bool:
    """Whether a device of the target has room for a program."""
    if program.refused:
        return False
    if program.bytes is None or target.chip.kind == "tpu":  # its compiler refuses what does not fit
        return True
    if target.chip.kind == "cpu":
        return program.bytes <= plan.this_machine().device_bytes
    return program.bytes <= target.chip.usable


def record_of(
    name: str, program: Program, target: Target, *, planned: int | None
) -> dict[str, Any]:
    """One program in mesh_plan.json, without what it was compiled of."""
    work = program.work
    seconds, bound = seconds_at_roofline(work, target) if work else (None, None)
    collectives = Counter()
    for one in work.collectives if work else ():
        collectives[one.kind, one.bytes, one.devices] += one.times
    return {
        "program": name,
        "fits": fits(program, target),
        "compiler_bytes": program.bytes,
        "plan_bytes": planned,
        "collectives": [
            {"kind": kind, "bytes": size, "devices": devices, "times": times}
            for (kind, size, devices), times in sorted(collectives.items())
        ],
        "flops": sum(work.flops.values()) if work else None,
        "bytes": work.bytes if work else None,
        "seconds_at_roofline": seconds,
        "bound": bound,
        "argument_bytes": program.arguments,
        "temporary_bytes": program.temporaries,
        "output_bytes": program.outputs,
        "flops_by_kind": work.flops if work else None,
        "refused": program.refused or None,
    }


def _gb(size: float) -> str:
    return f"{size / GB:.3g} GB" if size >= 1e7 else f"{size / 1e6:.3g} MB"


def _say(name: str, program: Program, record: dict[str, Any], seconds: float) -> None:
    head, took = f"  {name}:", f"({seconds:.0f} s to compile)"
    if program.refused:
        console.print(f"{head} DOES NOT FIT: {program.refused} {took}", markup=False)
        return
    needed, planned = program.bytes, record["plan_bytes"]
    cells = []
    if needed is not None:
        cells.append(
            f"{_gb(needed)} a device (arguments {_gb(program.arguments)}, temporaries"
            f" {_gb(program.temporaries)}, outputs {_gb(program.outputs)})"
        )
        if planned is not None:
            cells.append(f"plan {_gb(planned)} ({planned / needed - 1:+.1%})")
    if not record["fits"]:
        cells.append(f"DOES NOT FIT; use {WAYS_OUT}")
    layer = max(program.loops, key=len, default=[])
    each = ", ".join(f"{layer.count(kind)} {kind}" for kind in sorted(set(layer)))
    cells.append(f"a layer: {each or 'no collectives'}")
    cells.append(f"{record['flops'] / 1e12:.3g} TFLOP, {_gb(record['bytes'])} moved")
    if record["bound"]:
        at_best = record["seconds_at_roofline"]
        cells.append(f"at best {at_best * 1e3:.3g} ms, bound by {record['bound']}")
    console.print(f"{head} {'; '.join(cells)} {took}", markup=False)


def _meshes(target: Target) -> list[MeshShape]:
    """The meshes of --meshes; when left out, all devices on model, and two on data.

    Raises:
      TaskVecError: one of them is not of all devices of the target.
    """
    number = 8 if target.chip.kind == "cpu" else target.devices
    if FLAGS.meshes is None:
        shapes = [MeshShape(1, number)]
        return shapes + [MeshShape(2, number // 2)] * (number % 2 == 0 and number > 2)
    shapes = [MeshShape.parse(text) for text in FLAGS.meshes.split(";")]
    for shape in shapes:
        if target.chip.kind != "cpu" and shape.devices != target.devices:
            raise TaskVecError(
                f"mesh {shape} is {shape.devices} devices, the target {target} has"
                f" {target.devices}; allowed: meshes of all of them"
            )
    return shapes


def _config(name: str) -> DecoderConfig:
    _, config = describe(name)
    return dataclasses.replace(config, dtype=FLAGS.dtype, quantization=FLAGS.quantization)


def plan_model(
    name: str, shape: MeshShape, target: Target, devices: Sequence[Any]
) -> list[dict[str, Any]]:
    """Compiles a model's programs for a mesh, prints a line for each, and gives their records."""
    config = _config(name)
    mesh = make_mesh(shape, devices)
    trace = run_programs.programs_of(config, mesh, FLAGS.batch_size)
    about = {
        "model": name,
        "target": str(target),
        "mesh": str(shape),
        "dtype": config.dtype,
        "quantization": config.quantization,
    }
    quantized = "" if config.quantization == "none" else f" {config.quantization}"
    console.print(f"{name} {config.dtype}{quantized}, {target}, {shape}:", markup=False)
    planned = {
        program: program_bytes(config, program, FLAGS.batch_size, shape, kind=target.chip.kind)
        for program in PROGRAMS
    }
    records = []
    for program in FLAGS.programs:
        started = time.monotonic()
        made = compiled(trace[program], shape.devices)
        record = record_of(program, made, target, planned=planned.get(program))
        _say(program, made, record, time.monotonic() - started)
        records.append(about | record)
    return records


def _check_program(name: str) -> None:
    if name not in run_programs.NAMES:
        raise TaskVecError(f"program {name!r}; allowed: {', '.join(run_programs.NAMES)}")


def main() -> None:
    """Prints a line a program, and writes mesh_plan.json."""
    target = Target.parse(FLAGS.target)
    shapes = _meshes(target)
    devices = devices_of(target, max(shape.devices for shape in shapes))
    for name in FLAGS.models:
        _config(name)  # refuses one that is not known before anything is compiled
    out = prepare_out(FLAGS.out) if FLAGS.out else None
    records: list[dict[str, Any]] = []
    for name in FLAGS.models:
        for shape in shapes:
            records += plan_model(name, shape, target, devices)
            if out:
                write_json(out / "mesh_plan.json", records)


if __name__ == "__main__":
    command.define_list(
        "models", ["llama-7b", "llama-13b", "llama-30b", "pythia-12b"], "names or paths"
    )
    flags.DEFINE_string("target", "cpu", "tpu:v5e:2x4, gpu:h100:8, cpu, ...: what to compile for")
    flags.DEFINE_string("meshes", None, "meshes, with ; between; all devices when left out")
    flags.DEFINE_enum("dtype", "float32", list(DTYPES), "of the parameters")
    flags.DEFINE_enum("quantization", "none", list(QUANTIZATIONS), "how kernels are kept")
    flags.DEFINE_integer("batch_size", plan.PLANNED_BATCH, "prompts a call", lower_bound=1)
    command.define_list("programs", list(run_programs.NAMES), "programs", _check_program)
    flags.DEFINE_string("out", None, "directory for mesh_plan.json; none when left out")
    command.run(main)
