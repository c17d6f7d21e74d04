"""Converted models on disk: config, parameters (Orbax), tokenizer, manifest. The only user of Orbax.

    <name>/config.json              DecoderConfig
    <name>/params/                  Orbax tree of the "params" collection
    <name>/tokenizer/tokenizer.json
    <name>/manifest.json            where the weights came from, and their hash

A checkpoint is written under a temporary name and renamed when complete, so no reader ever sees
half of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from taskvec_jax.config import DecoderConfig
from taskvec_jax.decoder import Params, leaf_shapes, unflatten
from taskvec_jax.errors import TaskVecError
from taskvec_jax.tokenizer import Tokenizer

MANIFEST = "manifest.json"


class Checkpoint(NamedTuple):
    """A restored model; parameters are JAX arrays."""

    config: DecoderConfig
    params: Params
    tokenizer: Tokenizer
    manifest: dict[str, Any]


def is_checkpoint(path: Path) -> bool:
    """Whether the directory holds a complete converted model."""
    return (path / MANIFEST).is_file() and (path / "params").is_dir()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling directory that takes the place of `path` if the body succeeds.

    Raises:
      TaskVecError: the parent directory cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise TaskVecError(
            f"{path.parent}: cannot be written ({error.strerror}); choose another directory"
        ) from None
    try:
        yield scratch
        scratch.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def save(
    path: Path,
    config: DecoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    manifest: dict[str, Any],
) -> None:
    """Writes a converted model; an existing one at `path` is replaced at the very end.

    Raises:
      TaskVecError: the directory cannot be written.
    """
    import orbax.checkpoint as ocp  # slow to import

    with replacing(path) as scratch:
        (scratch / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        (scratch / "tokenizer").mkdir()
        tokenizer.save(scratch / "tokenizer" / "tokenizer.json")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(scratch / "params", params["params"])
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def restore(path: Path, dtype: str | None = None) -> Checkpoint:
    """Reads a converted model, cast to `dtype` (as saved when None).

    Raises:
      TaskVecError: no complete checkpoint there, or one whose arrays do not fit its config.
    """
    import orbax.checkpoint as ocp  # slow to import

    try:
        config = DecoderConfig.from_dict(json.loads((path / "config.json").read_text()))
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise TaskVecError(
            f"{path}: not a complete converted model ({error}); delete it and convert again"
        ) from None
    if dtype is not None:
        config = DecoderConfig.from_dict({**config.to_dict(), "dtype": dtype})
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = unflatten(
        {
            leaf: jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype), sharding=sharding)
            for leaf, shape in leaf_shapes(config).items()
        }
    )["params"]
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            params = checkpointer.restore((path / "params").absolute(), target)
        except Exception as error:  # Orbax raises many kinds for a damaged directory
            reason = str(error).strip().splitlines()[0][:200]
            raise TaskVecError(
                f"{path}: its params/ cannot be restored ({reason}); delete it and convert again"
            ) from None
    tokenizer = Tokenizer.from_file(path / "tokenizer" / "tokenizer.json")
    return Checkpoint(config, {"params": params}, tokenizer, manifest)
