"""What a model needs, before anything is fetched: parameters, bytes, and where it fits.

    print("\\n".join(plan_lines(*describe("llama-30b"))))

Numbers come from the shapes alone; no weights are touched, and no network for known names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from pathlib import Path

import jax

from taskvec_jax.distributed.footprint import (
    ITEM_BYTES,
    PLANNED_BATCH,
    PLANNED_ROWS,
    PROGRAMS,
    RowSizes,
    parameter_bytes,
    program_bytes,
    sweep_bytes,
)
from taskvec_jax.distributed.processes import anywhere
from taskvec_jax.distributed.sharding import MeshShape
from taskvec_jax.distributed.targets import GIB, SHARE, Target
from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import leaf_shapes

SHOWN_DTYPES = ("float32", "bfloat16", "int8")  # int8: of the kernels, the rest in bfloat16
PRECISIONS = ("float32", "bfloat16", "int8", "int4")  # from the largest to the smallest
LARGEST_MODEL_AXIS = 256
GB = 1e9
RENTED = ("tpu:v5e:1x1", "gpu:h100:1", "gpu:h100:4", "gpu:h100:8", "tpu:v5e:2x4")  # by people
FREE_SHARE = 0.7  # of a host's free memory that is planned with; others want some of it too
RUNTIME_BYTES = 600_000_000  # of the interpreter, its libraries and the compiler, on a CPU


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Equal devices.

    Attributes:
      name: what to call them.
      devices: how many.
      device_bytes: memory of each.
    """

    name: str
    devices: int
    device_bytes: float


def parameter_count(config: DecoderConfig) -> int:
    """How many numbers the model consists of; a tied unembedding counts once, scales do not."""
    whole = dataclasses.replace(config, quantization="none")
    return sum(math.prod(shape) for shape in leaf_shapes(whole).values())


def in_precision(config: DecoderConfig, dtype: str) -> DecoderConfig:
    """The config in a dtype; "int8" and "int4" stand for such kernels, the rest in bfloat16."""
    if dtype in ("int8", "int4"):
        return dataclasses.replace(config, dtype="bfloat16", quantization=dtype)
    return dataclasses.replace(config, dtype=dtype)


def weight_bytes(config: DecoderConfig, dtype: str) -> int:
    """Bytes of all parameters in a dtype (as in `in_precision`); int8 kernels stay int8."""
    return share_bytes(config, dtype, 1)


def share_bytes(config: DecoderConfig, dtype: str, devices: int) -> int:
    """Bytes of the parameters in a dtype that each of some devices along `model` holds."""
    return parameter_bytes(in_precision(config, dtype), devices)


def largest_batch(
    config: DecoderConfig,
    memory: float,
    batch_size: int,
    mesh: MeshShape | None = None,
    sizes: RowSizes = PLANNED_ROWS,
) -> int:
    """The most prompts a call, at most `batch_size`, whose sweep fits in `memory` bytes a device.

    Raises:
      TaskVecError: one prompt at a time does not fit.
    """
    mesh = mesh or MeshShape()
    kind = device_kind()
    fixed = share_bytes(config, config.dtype, mesh.model)
    if kind == "cpu":
        fixed += RUNTIME_BYTES
    while batch_size > 0 and fixed + sweep_bytes(config, batch_size, mesh, sizes, kind) > memory:
        batch_size -= 1
    if batch_size < 1:
        raise TaskVecError(
            f"memory of {memory / GB:.2f} GB is too little: the weights and one prompt of"
            f" {sizes.prompt} tokens need"
            f" {(fixed + sweep_bytes(config, 1, mesh, sizes, kind)) / GB:.2f} GB; allow more, take"
            " fewer demonstrations, or use --dtype=bfloat16"
        )
    return batch_size


def device_kind() -> str:
    """What JAX computes on here, as `footprint.program_bytes` tells devices apart."""
    backend = jax.default_backend()
    return backend if backend in ("cpu", "tpu") else "gpu"


def device_bytes(
    config: DecoderConfig, dtype: str, batch_size: int, mesh: MeshShape, kind: str = "cpu"
) -> int:
    """What each device of a mesh needs: its share of the parameters, and the sweep."""
    planned = in_precision(config, dtype)
    return max(program_bytes(planned, program, batch_size, mesh, kind=kind) for program in PROGRAMS)


def choose_mesh(config: DecoderConfig, batch_size: int) -> MeshShape:
    """All devices on `data` if the model fits one (of every process), else on `model`."""
    devices = jax.device_count()
    data = MeshShape(data=devices)
    need = device_bytes(config, config.dtype, batch_size, data, device_kind())
    small = anywhere(need > this_machine().device_bytes)
    return MeshShape(model=devices) if small else data


def refuse_too_large(name: str, config: DecoderConfig, mesh: MeshShape | None) -> None:
    """Refuses a model that no batch fits beside, before anything of it is loaded.

    Args:
      mesh: that was asked for; None: all devices on `model`, where each holds least.

    Raises:
      TaskVecError: each device would need more than it has; it names the least change of precision
        that fits these devices, and the fewest devices that hold it as it is.
    """
    have, kind = this_machine().device_bytes, device_kind()
    mesh = mesh or MeshShape(model=jax.device_count())

    def need(dtype: str, mesh: MeshShape) -> int:
        return device_bytes(in_precision(config, dtype), dtype, mesh.data, mesh, kind)

    asked = config.dtype if config.quantization == "none" else config.quantization
    if (needed := need(asked, mesh)) <= have:
        return
    lower = PRECISIONS[PRECISIONS.index(asked) + 1 :] if asked in PRECISIONS else PRECISIONS[1:]
    ways = []
    if fitting := next((p for p in lower if need(p, mesh) <= have), None):
        flag = f"--dtype={fitting}" if fitting in ITEM_BYTES else f"--quantization={fitting}"
        ways.append(f"{flag} ({need(fitting, mesh) / GB:.2f} GB)")
    meshes = [MeshShape(model=1 << n) for n in range(LARGEST_MODEL_AXIS.bit_length())]
    if larger := next((m for m in meshes if need(asked, m) <= have), None):
        ways.append(
            f"{larger.devices} devices of this size with --mesh={larger}"
            f" ({need(asked, larger) / GB:.2f} GB)"
        )
    raise TaskVecError(
        f"{name}: in {asked} on mesh {mesh} each device needs {needed / GB:.2f} GB for parameters"
        f" and one prompt, and has {have / GB:.2f} GB; what would fit:"
        f" {', or '.join(ways) or 'a smaller model'}; --plan says more"
    )


def mesh_line(config: DecoderConfig, mesh: MeshShape, batch_size: int) -> str:
    """The mesh of a run and what each of its devices needs, for people."""
    share, sweep = (
        share_bytes(config, config.dtype, mesh.model),
        sweep_bytes(config, batch_size, mesh, kind=device_kind()),
    )
    have = this_machine().device_bytes
    return (
        f"mesh {mesh}: each device holds {share / GB:.2f} GB of {config.dtype} weights and"
        f" {-(-batch_size // mesh.data)} of {batch_size} prompts, up to {sweep / GB:.2f} GB; it has"
        f" {have / GB:.0f} GB" + ("" if share + sweep <= have else ", WHICH IS TOO LITTLE")
    )


def memory_to_use(held: int) -> float:
    """Bytes a run may take on each device here, its weights included, when nobody says a number.

    Args:
      held: bytes of weights that this process holds already on each device.
    """
    devices = jax.local_devices()
    if limit := (devices[0].memory_stats() or {}).get("bytes_limit"):
        return SHARE * limit
    free = _free_bytes()
    return held + RUNTIME_BYTES + FREE_SHARE * free / len(devices)


def _free_bytes() -> int:
    """Memory of the host that can be had without swapping; a half of all where it is not told."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def this_machine() -> Mesh:
    """The devices JAX sees, and their memory (of the host, on a CPU)."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if devices[0].platform == "cpu":  # simulated devices share one memory
        memory /= len(devices)
    return Mesh(f"this machine ({devices[0].device_kind})", len(devices), float(memory))


def plan_lines(name: str, config: DecoderConfig, batch_size: int = PLANNED_BATCH) -> list[str]:
    """The plan, for people."""
    c = config
    lines = [
        f"{name}: {parameter_count(c):,} parameters; {c.family}, {c.num_layers} layers, width"
        f" {c.width}, {c.num_heads} heads ({c.num_kv_heads} key/value) of {c.head_dim}, MLP"
        f" {c.mlp_width}, vocabulary {c.vocab_size}, context {c.max_length}",
        "weights: " + ", ".join(f"{weight_bytes(c, d) / GB:.2f} GB as {d}" for d in SHOWN_DTYPES),
        f"a layer sweep of {batch_size} prompts at a time: up to"
        f" {sweep_bytes(c, batch_size) / GB:.2f} GB beside them",
    ]
    meshes = [(this_machine(), device_kind())]
    for target in map(Target.parse, RENTED):
        size = f"{target.devices} x {target.chip.memory / GIB:.0f} GB"
        mesh = Mesh(f"{size} ({target})", target.devices, target.chip.usable)
        meshes.append((mesh, target.chip.kind))
    for mesh, kind in meshes:
        cells = []
        for dtype in SHOWN_DTYPES:
            planned = in_precision(c, dtype)
            need = device_bytes(planned, dtype, batch_size, MeshShape(model=mesh.devices), kind)
            verdict = "fits" if need <= mesh.device_bytes else "DOES NOT FIT"
            cells.append(f"{dtype} {need / GB:.2f} GB a device, {verdict}")
        memory = f"{mesh.device_bytes / GB:.1f} GB of each to plan with"
        lines.append(f"{mesh.name}, {memory}: " + "; ".join(cells))
    return lines
