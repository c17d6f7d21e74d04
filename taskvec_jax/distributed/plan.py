"""What a model needs, before anything is fetched: parameters, bytes, and where it fits.

    print("\\n".join(plan_lines(*describe("llama-30b"))))

Numbers come from the shapes alone; no weights are touched, and no network for known names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from taskvec_jax.distributed.processes import anywhere
from taskvec_jax.distributed.sharding import MeshShape, axes_of, head_axes, split_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import leaf_shapes, leaf_types

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
SHOWN_DTYPES = ("float32", "bfloat16", "int8")  # int8: of the kernels, the rest in bfloat16
GB = 1e9
MESHES = ((1, 16), (1, 80), (4, 80), (8, 80), (8, 16))  # (devices, GB of each) that people rent
PLANNED_BATCH = 50  # prompts a call
PROMPT_TOKENS = 128  # of a row: 5 demonstrations, a query and 2 dummy queries, as a rule below 100
QUERY_TOKENS = 16  # of a zero-shot query
READS = 3  # places a row is read at: after the query and after 2 dummy queries
SHARE = 0.9  # of an accelerator's memory that is planned with; the rest goes to its runtime
FREE_SHARE = 0.7  # of a host's free memory that is planned with; others want some of it too
RUNTIME_BYTES = 600_000_000  # of the interpreter, its libraries and the compiler, on a CPU


class RowSizes(NamedTuple):
    """What decides the memory of one row of a layer sweep, beside the model.

    Attributes:
      prompt: tokens of the longest row that is read: demonstrations, query and dummy queries.
      query: tokens of the longest zero-shot query.
      reads: places a row is read at.
    """

    prompt: int = PROMPT_TOKENS
    query: int = QUERY_TOKENS
    reads: int = READS


PLANNED_ROWS = RowSizes()


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
    """Bytes of the parameters that each of some devices along `model` holds.

    As `sharding.SPLITS` says. LLaMA 30B's 52 heads do not divide among 8: two devices each hold the
    same quarter of its attention there.
    """
    return sum(
        leaf.size // _shards(config, path, leaf.shape, devices) * leaf.dtype.itemsize
        for path, leaf in leaf_types(in_precision(config, dtype)).items()
    )


def _shards(config: DecoderConfig, path: str, shape: tuple[int, ...], devices: int) -> int:
    split = split_of(config, path, shape, devices)
    return split.shards if split else 1


def sweep_bytes(
    config: DecoderConfig,
    batch_size: int = PLANNED_BATCH,
    mesh: MeshShape | None = None,
    sizes: RowSizes = PLANNED_ROWS,
) -> int:
    """An upper estimate of what a layer sweep needs beside the weights, on one device of a mesh.

    The larger of its two programs (see sweep.py): reading rows of demonstrations, or injecting L
    copies of the last token into rows of zero-shot queries. Counted for each: the residual stream
    twice, attention scores and weights, the MLP's hidden layer three times, logits once more than
    needed; and the residuals that are read.
    """
    c, wide, mesh = config, ITEM_BYTES[config.stream_dtype], mesh or MeshShape()
    rows = -(-batch_size // mesh.data)

    def part(size: int, over: Mapping[str, int] | None = None) -> int:
        over = axes_of(size, mesh.model) if over is None else over
        return size // math.prod(over.values())

    over, kv_over = head_axes(c, mesh.model)
    heads, kv_heads = part(c.num_heads, over), part(c.num_kv_heads, kv_over)

    def program(tokens: int, answers: int) -> int:
        cells = 2 * tokens * c.width + 2 * heads * tokens**2 + 3 * tokens * part(c.mlp_width)
        cells += 3 * tokens * (heads + 2 * kv_heads) * c.head_dim
        return rows * (cells + 2 * answers * part(c.vocab_size)) * wide

    read = program(sizes.prompt, sizes.reads)
    read += sizes.reads * rows * c.num_layers * c.width * wide
    inject = program(sizes.query + c.num_layers, 1 + c.num_layers)
    unpacked = 0
    if c.quantization != "none":  # the kernels of one layer, as the product reads them
        for path, leaf in leaf_types(c).items():
            numbers = 2 if leaf.dtype == "uint8" else 1  # in a byte
            if path.startswith("layers/"):
                held = leaf.size // c.num_layers // _shards(c, path, leaf.shape, mesh.model)
                unpacked += held * numbers * ITEM_BYTES[c.dtype]
    return max(read, inject) + unpacked


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
    fixed = share_bytes(config, config.dtype, mesh.model)
    if jax.default_backend() == "cpu":
        fixed += RUNTIME_BYTES
    while batch_size > 0 and fixed + sweep_bytes(config, batch_size, mesh, sizes) > memory:
        batch_size -= 1
    if batch_size < 1:
        raise TaskVecError(
            f"memory of {memory / GB:.2f} GB is too little: the weights and one prompt of"
            f" {sizes.prompt} tokens need"
            f" {(fixed + sweep_bytes(config, 1, mesh, sizes)) / GB:.2f} GB; allow more, take fewer"
            " demonstrations, or use --dtype=bfloat16"
        )
    return batch_size


def device_bytes(config: DecoderConfig, dtype: str, batch_size: int, mesh: MeshShape) -> int:
    """What each device of a mesh needs: its share of the parameters, and the sweep."""
    return share_bytes(config, dtype, mesh.model) + sweep_bytes(config, batch_size, mesh)


def choose_mesh(config: DecoderConfig, batch_size: int) -> MeshShape:
    """All devices on `data` if the model fits one (of every process), else on `model`."""
    devices = jax.device_count()
    data = MeshShape(data=devices)
    need = device_bytes(config, config.dtype, batch_size, data)
    small = anywhere(need > this_machine().device_bytes)
    return MeshShape(model=devices) if small else data


def mesh_line(config: DecoderConfig, mesh: MeshShape, batch_size: int) -> str:
    """The mesh of a run and what each of its devices needs, for people."""
    share, sweep = (
        share_bytes(config, config.dtype, mesh.model),
        sweep_bytes(config, batch_size, mesh),
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
    meshes = [this_machine()]
    meshes += [Mesh(f"{n} x {size} GB", n, size * GB) for n, size in MESHES]
    for mesh in meshes:
        cells = []
        for dtype in SHOWN_DTYPES:
            planned = in_precision(c, dtype)
            need = device_bytes(planned, dtype, batch_size, MeshShape(model=mesh.devices))
            verdict = "fits" if need <= mesh.device_bytes else "DOES NOT FIT"
            cells.append(f"{dtype} {need / GB:.2f} GB a device, {verdict}")
        memory = f"{mesh.devices} x {mesh.device_bytes / GB:.0f} GB"
        label = mesh.name if mesh.name == memory else f"{mesh.name}, {memory}"
        lines.append(f"{label}: " + "; ".join(cells))
    return lines
