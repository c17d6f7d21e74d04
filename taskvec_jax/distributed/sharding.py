"""Many devices: a mesh from a flag, and which axis of which parameter lies on it.

    mesh = make_mesh(MeshShape.parse("data:2,model:4"))
    model = load_model("llama-7b", mesh=mesh)

Prompts are split over `data`; parameters over `model`, by `SPLITS`: heads, the MLP's hidden layer
and the vocabulary. A layer then needs two all-reduces, after attention and after the MLP; XLA's
partitioner inserts them.

A mesh has one axis for each prime factor of the size of `model` (`model_axes`), so that an axis
that 8 devices do not divide can still be split over 4 of them, each shard held by two.

Shapes: B rows, H heads, G key/value heads, K head size, D width, F MLP width, V vocabulary.
"""

# Long because: where every parameter lies is told in one place.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from taskvec_jax.distributed.processes import T
from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params, leaf_types, unflatten

# Path of a leaf -> the axes that may be split over `model`, best first: counted from 0, the leading
# axis of layers left out. The first axis is taken whose size divides among at least half of the
# devices. A leaf without one, and every leaf not named here (norms, biases [D]), is replicated.
#
# Why half: attention is a third of LLaMA's parameters. Split over half of the devices, each shard
# is held twice and a device holds 4/3 of an even share (LLaMA 30B, 52 heads on 4 of 8, in bfloat16:
# 10.8 GB instead of 8.1), for 2 collectives a layer instead of 5. Over a quarter a device would
# hold twice the share, so attention is split along D instead: one sum each for queries, keys and
# values, and a gather of the output. Splitting K takes more collectives, because XLA then splits
# scores and halves of rotary pairs too: 7 with values alone, 17 with all three (jax 0.10.2).
SPLITS: dict[str, tuple[int, ...]] = {
    "embed/embedding": (0, 1),  # [V, D]
    "layers/attn/query/kernel": (1, 0),  # [D, H, K]
    "layers/attn/query/kernel_scale": (0,),  # [H, K], of an int8 kernel; see quantization.py
    "layers/attn/query/bias": (0,),  # [H, K]
    "layers/attn/key/kernel": (1, 0),  # [D, G, K]; see `head_axes`
    "layers/attn/key/kernel_scale": (0,),
    "layers/attn/key/bias": (0,),  # [G, K]
    "layers/attn/value/kernel": (1, 0),
    "layers/attn/value/kernel_scale": (0,),
    "layers/attn/value/bias": (0,),
    "layers/attn/out/kernel": (0, 2),  # [H, K, D]
    "layers/mlp/gate/kernel": (1, 0),  # [D, F]
    "layers/mlp/gate/kernel_scale": (0,),  # [F]
    "layers/mlp/gate/bias": (0,),  # [F]
    "layers/mlp/up/kernel": (1, 0),
    "layers/mlp/up/kernel_scale": (0,),
    "layers/mlp/up/bias": (0,),
    "layers/mlp/down/kernel": (0, 1),  # [F, D]
    "unembed/kernel": (1, 0),  # [D, V]
    "unembed/kernel_scale": (0,),  # [V]
    "unembed/bias": (0,),  # [V]
}
DATA, MODEL = "data", "model"  # the axes of a mesh, as flags and messages name them
ATTENTION = "layers/attn/"
KEYS_AND_VALUES = (f"{ATTENTION}key/", f"{ATTENTION}value/")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices lie along each axis.

    Attributes:
      data: prompts are split over these.
      model: parameters are split over these.
    """

    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        if min(self.data, self.model) < 1:
            raise TaskVecError(f"mesh {self}: each axis needs at least 1 device")

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.data * self.model

    def __str__(self) -> str:
        return f"{DATA}:{self.data},{MODEL}:{self.model}"

    @classmethod
    def parse(cls, text: str) -> MeshShape:
        """Reads `data:2,model:4`; an axis that is left out has one device.

        Raises:
          TaskVecError: anything else.
        """
        sizes: dict[str, int] = {}
        for part in text.split(","):
            name, _, size = (word.strip() for word in part.partition(":"))
            if name not in (DATA, MODEL) or name in sizes or not size.isdecimal():
                raise TaskVecError(
                    f"mesh {text!r}: cannot read {part!r}; allowed: {DATA}:N,{MODEL}:M with whole"
                    " numbers above 0, either one alone, or nothing"
                )
            sizes[name] = int(size)
        return cls(**sizes)


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the first devices; physical neighbours lie along `model`, before it is factored.

    Args:
      devices: to choose from; None: those that JAX sees.

    Raises:
      TaskVecError: there are too few devices, or some of a process's are left out.
    """
    devices = jax.devices() if devices is None else devices
    if shape.devices > len(devices) or (jax.process_count() > 1 and shape.devices < len(devices)):
        few = ", ".join(
            str(MeshShape(len(devices) // m, m))
            for m in range(1, len(devices) + 1)
            if len(devices) % m == 0
        )
        raise TaskVecError(
            f"mesh {shape} is {shape.devices} devices, there are {len(devices)} in"
            f" {jax.process_count()} process(es); all of them: {few}"
        )
    flat = jax.make_mesh((shape.data, shape.model), (DATA, MODEL), devices=devices[: shape.devices])
    sizes = {DATA: shape.data, **model_axes(shape.model)}
    return Mesh(
        flat.devices.reshape(*sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),  # Explicit breaks einsums over split heads
    )


def model_axes(devices: int) -> dict[str, int]:
    """Name -> size of the axes of a mesh that make up `model`; none for a single device."""
    factors: list[int] = []
    while (rest := devices // math.prod(factors)) > 1:
        factors.append(next(n for n in range(2, rest + 1) if rest % n == 0))
    return {f"{MODEL}{i}": size for i, size in enumerate(factors)}


def shape_of(mesh: Mesh | None) -> MeshShape:
    """Sizes of a mesh; one device when there is none."""
    if mesh is None:
        return MeshShape()
    return MeshShape(mesh.shape[DATA], mesh.size // mesh.shape[DATA])


class Split(NamedTuple):
    """How a leaf lies on `model`.

    Attributes:
      axis: of the leaf, 0-based.
      over: name -> size of the axes of a mesh that it lies on, the outermost first.
    """

    axis: int
    over: dict[str, int]

    @property
    def shards(self) -> int:
        """How many there are of it; several devices hold the same one if they are more."""
        return math.prod(self.over.values())


def split_of(
    config: DecoderConfig, path: str, shape: tuple[int, ...], devices: int
) -> Split | None:
    """How a leaf lies on `model`, or None if each device holds it whole.

    Args:
      path: of the leaf, without "params/".
      shape: of the leaf, with its layers.
    """
    like = path.removesuffix("_scale") if config.quantization == "int4" else path  # an axis each
    axes, first = SPLITS.get(like, ()), int(path.startswith("layers/"))
    heads, groups = head_axes(config, devices)
    if axes and heads and path.startswith(ATTENTION):
        over = groups if path.startswith(KEYS_AND_VALUES) else heads
        return Split(first + axes[0], over) if over else None
    for axis in axes:
        if over := axes_of(shape[first + axis], devices):
            return Split(first + axis, over)
    return None


def axes_of(size: int, devices: int) -> dict[str, int]:
    """The axes of a mesh that an axis of this size lies on; none if too few devices divide it."""
    over = _dividing(size, model_axes(devices))
    return over if _enough(over, devices) else {}


def head_axes(config: DecoderConfig, devices: int) -> tuple[dict[str, int], dict[str, int]]:
    """The axes of a mesh that heads, and key/value heads, lie on; none where attention lies on D.

    Key/value heads are split over the axes that divide their number and copied along the others.
    Their axes are the outer ones of heads, so that a device has the keys and values of its queries,
    except where its heads are neither whole groups nor within one (40 heads in groups of 4 over 8).
    """
    axes = model_axes(devices)
    groups = _dividing(config.num_kv_heads, axes)
    rest = {name: size for name, size in axes.items() if name not in groups}
    heads = groups | _dividing(config.num_heads // config.num_kv_heads, rest)
    return (heads, groups) if _enough(heads, devices) else ({}, {})


def _dividing(size: int, axes: Mapping[str, int]) -> dict[str, int]:
    """As many of the axes of a mesh as divide a size together."""
    taken: dict[str, int] = {}
    for name, devices in axes.items():
        if size % (math.prod(taken.values()) * devices) == 0:
            taken[name] = devices
    return taken


def _enough(over: Mapping[str, int], devices: int) -> bool:
    """Whether a split over these axes is worth its copies: at most two; see `SPLITS`."""
    return bool(over) and 2 * math.prod(over.values()) >= devices


def placement(
    config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], mesh: Mesh | None
) -> dict[str, Sharding]:
    """Path -> where the leaf lies; all on the first device without a mesh.

    Raises:
      TaskVecError: several processes, and no mesh.
    """
    if mesh is None:
        if jax.process_count() > 1:
            raise TaskVecError(
                f"there are {jax.process_count()} processes and no mesh; make one of all devices"
                " (sharding.make_mesh)"
            )
        return dict.fromkeys(shapes, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    placed: dict[str, Sharding] = {}
    for path, shape in shapes.items():
        split = split_of(config, path, shape, shape_of(mesh).model)
        spec = PartitionSpec(*[None] * split.axis, tuple(split.over)) if split else PartitionSpec()
        placed[path] = NamedSharding(mesh, spec)
    return placed


def params_in_shapes(config: DecoderConfig, mesh: Mesh | None) -> Params:
    """The parameters of a model as shapes, dtypes and places, with no numbers in memory.

    Raises:
      TaskVecError: several processes, and no mesh.
    """
    types = leaf_types(config)
    places = placement(config, {path: leaf.shape for path, leaf in types.items()}, mesh)
    return unflatten(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path])
            for path, leaf in types.items()
        }
    )


def local_box(sharding: Sharding, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """One slice an axis: the smallest box of a leaf that covers the shards of local devices."""
    boxes = [
        [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
        for index in sharding.addressable_devices_indices_map(shape).values()
        if index is not None
    ]
    return tuple(
        slice(min(box[i][0] for box in boxes), max(box[i][1] for box in boxes))
        for i in range(len(shape))
    )


def put_local_box(sharding: Sharding, shape: tuple[int, ...], part: np.ndarray) -> jax.Array:
    """Moves this process's `local_box` of a leaf to its devices.

    On a single CPU device the array takes over the memory of `part`.
    """
    if len(sharding.device_set) == 1:
        return jax.device_put(part, sharding)
    offsets = [s.start for s in local_box(sharding, shape)]

    def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # JAX asks for what a device holds
        bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
        return part[tuple(slice(a - o, b - o) for (a, b), o in zip(bounds, offsets, strict=True))]

    return jax.make_array_from_callback(shape, sharding, of_device)


def rows_for(mesh: Mesh | None, rows: int) -> int:
    """`rows`, rounded up to what `data` divides."""
    data = shape_of(mesh).data
    return -(-rows // data) * data


def put_rows(mesh: Mesh | None, tree: T) -> T:
    """Splits arrays [B, ...] over `data`; each process moves its own rows only.

    Args:
      tree: host arrays, the same in every process; left alone without a mesh.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(DATA))

    def put(rows: Any) -> jax.Array:
        host = np.asarray(rows)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)
