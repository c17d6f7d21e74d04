"""Compiles the sweep for meshes this machine does not have, without weights, and checks the plan.

    python -m experiments.bench.mesh_plan
    python -m experiments.bench.mesh_plan --models=llama-65b --meshes=data:1,model:8;data:2,model:4

Devices are simulated CPU devices. For each model and mesh: what the compiler says a device needs,
what `--plan` says, and the collectives of a layer. Expected (2026-11-25, 2 cores, jax 0.10.2):
the plan within 2 %; two all-reduces a layer for LLaMA, whose MLP reads what attention left, one for
Pythia; LLaMA 30B's 52 heads lie on 4 of 8 devices.

Time: 46 s (2 cores).
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convert import cli as command
from convert.cli import FLAGS, console
from taskvec_jax.distributed import plan
from taskvec_jax.distributed.plan import GB
from taskvec_jax.distributed.sharding import DATA, MeshShape, make_mesh, placement, rows_for
from taskvec_jax.models.names import describe
from taskvec_jax.transformer.config import DTYPES, QUANTIZATIONS, DecoderConfig
from taskvec_jax.transformer.decoder import leaf_types, unflatten
from taskvec_jax.vectors.programs import inject_rows, read_rows, wavefront_schedule
from taskvec_jax.vectors.rows import Rows

COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


class Program(NamedTuple):
    """What a compiled program needs of each device.

    Attributes:
      loops: for each loop over layers, the collectives of one layer.
      outside: the other collectives.
      bytes: arguments, results and everything between.
    """

    loops: list[list[str]]
    outside: list[str]
    bytes: int


def compile_sweep(config: DecoderConfig, mesh: Mesh, batch_size: int) -> dict[str, Program]:
    """Both programs of a layer sweep, at the lengths of `plan.sweep_bytes`."""
    c, rows = config, rows_for(mesh, batch_size)

    def batch(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(DATA))
        return jax.ShapeDtypeStruct((rows, *shape), jnp.dtype(dtype), sharding=sharding)

    leaves = leaf_types(c)
    shardings = placement(c, {path: leaf.shape for path, leaf in leaves.items()}, mesh)
    params = unflatten(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
            for path, leaf in leaves.items()
        }
    )
    read_tokens = min(plan.PROMPT_TOKENS, c.max_length)
    token: Any = batch(read_tokens)  # shapes stand for arrays
    ends: Any = batch(3)
    inject = (
        batch(plan.QUERY_TOKENS),
        batch(),
        batch(c.num_layers, c.width, dtype="float32"),
        batch(c.num_layers),
    )
    schedule = wavefront_schedule(c.num_layers)
    lowered = {
        "read": read_rows.lower(c, params, Rows(token, token, token, ends)),
        "inject": inject_rows.lower(c, params, *inject, schedule),
    }
    return {name: _look(program.compile()) for name, program in lowered.items()}


def _look(program: Any) -> Program:
    memory = program.memory_analysis()
    loops, outside = collectives(program.as_text() or "")
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(loops, outside, needed)


def collectives(program: str) -> tuple[list[list[str]], list[str]]:
    """Collectives in the text of a compiled program: of each loop's body, and of the rest."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in program.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = start[1]
        found.setdefault(name, []).extend(re.findall(rf" ({COLLECTIVES})(?:-start)?\(", line))
    loops = sorted(set(re.findall(r"body=%?([\w.\-]+)", program)))
    outside = [kind for name, kinds in found.items() if name not in loops for kind in kinds]
    return [found[loop] for loop in loops], outside


def main() -> None:
    """Prints a line a model and mesh."""
    meshes = [MeshShape.parse(text) for text in FLAGS.meshes.split(";")]
    jax.config.update("jax_num_cpu_devices", max(shape.devices for shape in meshes))
    jax.config.update("jax_platforms", "cpu")
    for name in FLAGS.models:
        for shape in meshes:
            _, config = describe(name)
            config = dataclasses.replace(config, dtype=FLAGS.dtype, quantization=FLAGS.quantization)
            started = time.monotonic()
            programs = compile_sweep(config, make_mesh(shape), FLAGS.batch_size)
            planned = plan.device_bytes(config, config.dtype, FLAGS.batch_size, shape)
            needed = max(program.bytes for program in programs.values())
            kind = (
                config.dtype
                if config.quantization == "none"
                else f"{config.quantization}, {config.dtype}"
            )
            layer = max((max(p.loops, key=len) for p in programs.values()), key=len)
            cells = ", ".join(f"{layer.count(each)} {each}" for each in sorted(set(layer)))
            console.print(
                f"{name} {kind} {shape}: compiler {needed / GB:.2f} GB a device (read"
                f" {programs['read'].bytes / GB:.2f}, inject {programs['inject'].bytes / GB:.2f}),"
                f" plan {planned / GB:.2f} GB ({planned / needed - 1:+.1%}); a layer:"
                f" {cells or 'no collectives'}; {time.monotonic() - started:.0f} s",
                markup=False,
            )


if __name__ == "__main__":
    command.define_list(
        "models", ["llama-7b", "llama-13b", "llama-30b", "pythia-12b"], "names or paths"
    )
    flags.DEFINE_string("meshes", "data:1,model:8;data:2,model:4", "meshes, with ; between")
    flags.DEFINE_enum("dtype", "float32", list(DTYPES), "of the parameters")
    flags.DEFINE_enum("quantization", "none", list(QUANTIZATIONS), "how kernels are kept")
    flags.DEFINE_integer("batch_size", plan.PLANNED_BATCH, "prompts a call", lower_bound=1)
    command.run(main)
