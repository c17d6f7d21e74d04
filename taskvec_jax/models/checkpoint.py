"""Converted models on disk: config, parameters, tokenizer, manifest; parameters by Orbax.

    <name>/config.json              DecoderConfig
    <name>/params/                  Orbax tree of the "params" collection
    <name>/tokenizer/               tokenizer.json, or tokenizer.model and tokenizer_config.json
    <name>/manifest.json            where the weights came from, and their hashes

A checkpoint is written under a temporary name and renamed when complete, so no reader ever sees
half of one. Several processes write one together to a disk that all of them see: each writes its
shards, the first one everything else.
"""

# Long because: what is written and what is read back stand in one place.

from __future__ import annotations

import dataclasses
import gc
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from taskvec_jax.distributed.processes import all_or_none, is_first_process
from taskvec_jax.distributed.sharding import local_box, placement
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory, is_temporary
from taskvec_jax.models.atomic import replacing, unwritable
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params, flatten, leaf_shapes, unflatten
from taskvec_jax.transformer.quantization import quantize_leaf

MANIFEST = "manifest.json"
CHUNK_BYTES = 64_000_000  # of a leaf on disk, at most
MARGIN = 20_000_000  # bytes beside the parameters: the tokenizer, indices


class Checkpoint(NamedTuple):
    """A restored model; parameters are JAX arrays."""

    config: DecoderConfig
    params: Params
    tokenizer: Tokenizer
    manifest: dict[str, Any]


def is_checkpoint(path: Path) -> bool:
    """Whether the directory holds a complete converted model."""
    return (path / MANIFEST).is_file() and (path / "params").is_dir()


def check_room(path: Path, config: DecoderConfig) -> None:
    """Refuses a disk without room for a model, before anything is read or written.

    Raises:
      TaskVecError: it says how much is needed.
    """
    count = sum(math.prod(shape) for shape in leaf_shapes(config).values())
    needed = count * jnp.dtype(config.dtype).itemsize + MARGIN
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise TaskVecError(
            f"{path}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on its disk;"
            " make room, or set TASKVEC_CHECKPOINTS to a directory that has it"
        )


def save(
    path: Path,
    config: DecoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    manifest: dict[str, Any],
) -> None:
    """Writes a converted model; an existing one at `path` is replaced at the very end.

    To be used within `writing(path)`. Of several processes each writes its shards; a failure in one
    ends the others' wait after Orbax's 5 minutes.

    Raises:
      TaskVecError: the directory cannot be written, or the disk is full.
    """
    import orbax.checkpoint as ocp  # slow to import

    sizes = [
        _local_bytes(leaf.sharding, leaf) if isinstance(leaf, jax.Array) else leaf.nbytes
        for leaf in jax.tree.leaves(params)
    ]
    with replacing(path) as made:
        try:
            if is_first_process():
                (made / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
                (made / "tokenizer").mkdir()
                tokenizer.save(made / "tokenizer")
            with ocp.Checkpointer(handler(sizes)) as checkpointer:
                arguments = ocp.args.PyTreeSave(
                    params["params"], save_args=jax.tree.map(_in_chunks, params["params"])
                )
                checkpointer.save((made / "params").absolute(), arguments)
            if is_first_process():
                (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        except OSError as error:
            raise TaskVecError(unwritable(path, error)) from None
        except Exception as error:  # what TensorStore and tokenizers raise for a full disk
            if is_out_of_memory(error):
                raise too_little_memory(path, "write", error) from None
            raise TaskVecError(
                f"{path}: cannot be written ({first_line(error)}); is there room for the model?"
            ) from None


def _in_chunks(leaf: Any) -> Any:
    """How Orbax cuts a leaf on disk.

    Small, so that a process with a part of it need not read all; unless processes have parts of it
    already: a shard that is one chunk is written from where it is, without a copy.
    """
    import orbax.checkpoint as ocp

    parted = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return ocp.SaveArgs(chunk_byte_size=None if parted else CHUNK_BYTES)


def _local_bytes(sharding: Sharding, leaf: Any) -> int:
    """Bytes of a leaf, an array or its shape and dtype, that this process reads or writes."""
    box = local_box(sharding, leaf.shape)
    return math.prod(s.stop - s.start for s in box) * leaf.dtype.itemsize


def _check_shapes(saved: dict[str, Any], config: DecoderConfig) -> None:
    """What is there is what the config asks for, said before anything is read."""
    wanted = leaf_shapes(config)
    wrong = [
        f"{name} is {saved.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(wanted.keys() | saved.keys())
        if wanted.get(name) != (None if name not in saved else tuple(saved[name]))
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:6]))


def handler(sizes: Sequence[int] = ()) -> Any:
    """Orbax's handler of trees; leaves of these sizes are written one or a few at a time.

    Weights hardly compress, and compressing them needs a second copy of each leaf: left out.
    """
    import orbax.checkpoint as ocp

    in_flight = 1.05 * max(sizes, default=0) + 1e6
    limit = cast(int, in_flight / 1e9)  # declared int, used as a number
    return ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit, use_compression=False)


def _groups(leaves: dict[str, Any], quantization: str) -> Iterator[dict[str, Any]]:
    """The leaves (shape, dtype, sharding) in groups that take no more than the largest leaf.

    One a group if they are to be quantized.
    """
    sizes = {name: _local_bytes(leaf.sharding, leaf) for name, leaf in leaves.items()}
    most = max(sizes.values()) if quantization == "none" else 0
    group: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if group and sum(sizes[other] for other in group) + sizes[name] > most:
            yield group
            group = {}
        group[name] = leaf
    yield group


def read_config(path: Path) -> DecoderConfig:
    """The config of a converted model, with the dtype it was saved in.

    Raises:
      TaskVecError: no complete checkpoint there.
    """
    return DecoderConfig.from_dict(read_json(path, "config.json"))


def read_manifest(path: Path) -> dict[str, Any]:
    """Where a converted model came from, and its hashes.

    Raises:
      TaskVecError: no complete checkpoint there, or none that names its weights.
    """
    manifest = read_json(path, MANIFEST)
    if "weights_sha256" not in manifest:
        raise TaskVecError(f"{path}: its manifest has no hash; delete it and convert again")
    return manifest


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a directory; what cannot be read is a TaskVecError."""
    try:
        value = json.loads((path / name).read_text())
        if not isinstance(value, dict):
            raise ValueError(f"{name} holds a {type(value).__name__}")
        return value
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise unreadable(path, "not a complete converted model", error) from None


def unreadable(
    path: Path, damage: str, error: BaseException, way_out: str = "delete it and convert again"
) -> TaskVecError:
    """What to say of a directory that could not be read.

    That it is damaged, and may be deleted, is said only where the machine is not the reason.

    Args:
      damage: what is wrong with it otherwise.
      way_out: what to do about damage.
    """
    if is_out_of_memory(error):
        return too_little_memory(path, "read", error)
    if is_temporary(error):
        return TaskVecError(
            f"{path}: cannot be read at the moment ({first_line(error)}); it need not be damaged:"
            " look at its permissions and at its disk, and try again"
        )
    return TaskVecError(f"{path}: {damage} ({first_line(error)}); {way_out}")


def too_little_memory(path: Path, deed: str, error: BaseException) -> TaskVecError:
    """The error for a lack of memory while files are read or written (`deed`)."""
    return TaskVecError(
        f"{path}: out of memory ({first_line(error)}); nothing is wrong with the files, there is"
        f" too little memory to {deed} them: use --dtype=bfloat16 or --quantization=int8, more"
        " devices, or a machine with more memory"
    )


def restore(
    path: Path, dtype: str | None = None, mesh: Mesh | None = None, quantization: str = "none"
) -> Checkpoint:
    """Reads a converted model, cast to `dtype` (as saved when None), straight to its shards.

    Without a mesh, all of it to the first device.

    Raises:
      TaskVecError: no complete checkpoint there, or one whose arrays do not fit its config.
    """
    with all_or_none():
        config, manifest = read_config(path), read_manifest(path)
    config = dataclasses.replace(config, dtype=dtype or config.dtype, quantization=quantization)
    params = restore_params(path, config, mesh)
    return Checkpoint(config, params, read_tokenizer(path, config), manifest)


def read_tokenizer(path: Path, config: DecoderConfig) -> Tokenizer:
    """The tokenizer of a converted model.

    Raises:
      TaskVecError: it cannot be read.
    """
    return Tokenizer.from_directory(path / "tokenizer", config.vocab_size)


def restore_params(path: Path, config: DecoderConfig, mesh: Mesh | None) -> Params:
    """Reads the parameters of a converted model straight to their shards, in the config's dtype.

    They are read one after the other, small ones together: beside the tree there is one of them on
    the host. Where they are to be quantized, each is as soon as it is read.

    Raises:
      TaskVecError: arrays that do not fit the config, are damaged, or do not fit in memory.
    """
    import orbax.checkpoint as ocp  # slow to import

    quantization, config = config.quantization, dataclasses.replace(config, quantization="none")
    shapes = leaf_shapes(config)
    shardings = placement(config, shapes, mesh)
    target = unflatten(
        {
            leaf: jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype), sharding=shardings[leaf])
            for leaf, shape in shapes.items()
        }
    )["params"]

    def arguments(group: dict[str, Any]) -> Any:
        part = unflatten(group)["params"]
        return ocp.args.PyTreeRestore(
            part,
            restore_args=ocp.checkpoint_utils.construct_restore_args(part),
            partial_restore=True,
        )

    with ocp.Checkpointer(handler()) as checkpointer:
        try:
            place = (path / "params").absolute()
            saved = checkpointer.metadata(place).item_metadata.tree
            _check_shapes(
                {name: leaf.shape for name, leaf in flatten({"params": saved}).items()}, config
            )
            leaves: dict[str, jax.Array] = {}
            config = dataclasses.replace(config, quantization=quantization)
            kept = placement(config, leaf_shapes(config), mesh)
            for group in _groups(flatten({"params": target}), quantization):
                read = flatten({"params": checkpointer.restore(place, arguments(group))})
                jax.block_until_ready(read)
                gc.collect(1)  # Orbax's own copy, which cycles of its tasks keep
                while read:
                    name, leaf = read.popitem()
                    if quantization == "none":
                        leaves[name] = leaf
                        continue
                    made = quantize_leaf(name, leaf, quantization)
                    leaves |= {at: jax.device_put(leaf, kept[at]) for at, leaf in made.items()}
            return unflatten(leaves)
        except Exception as error:  # Orbax raises many kinds for a damaged directory
            raise unreadable(path, "its params/ cannot be restored", error) from None
