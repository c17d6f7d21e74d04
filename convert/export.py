"""Writes a model as a Hugging Face directory: the tables of the families, applied backwards.

    python -m convert.export --model=smollm2-135m-instruct --out=/tmp/smollm2

The directory (config.json, model.safetensors, tokenizer.json) loads in transformers and here; in
the dtype the model is in, bit for bit. A Mistral model comes back as the LLaMA it computes.

Time: seconds a GB.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
from absl import flags

import taskvec_jax.models.checkpoint as checkpoint
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params

from . import cli as command
from .families import FAMILIES
from .families.tree import from_tree
from .formats import safetensors_file

# Files of a model, in any form: what is left of an older one would be read beside the new one.
_OF_A_MODEL = re.compile(
    r"(model|shard-\d+-model|pytorch_model|consolidated|adapter_model|tf_model|flax_model)[^/]*"
    r"\.(safetensors|bin|pth|h5|msgpack|json)"
    r"|(config|generation_config|adapter_config|params|tokenizer[^/]*|special_tokens_map"
    r"|added_tokens|vocab|chat_template)\.json"
    r"|(tokenizer|spiece|spm|sentencepiece)[^/]*\.model(\.v\d+)?|merges\.txt|vocab\.txt"
    r"|tekken\.json|chat_template\.jinja"
)
MARGIN = 20_000_000  # bytes beside the parameters: the tokenizer


def export(config: DecoderConfig, params: Params, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes a model as a Hugging Face directory.

    It is written beside the directory and moved there when it is complete: until then an older
    model stays as it is, then none of its files is left. Files that belong to no model stay.

    Args:
      config: its shapes; the dtype says how the weights are written.
      params: {"params": ...}.
      tokenizer: the model's own.
      directory: made if it is not there.

    Raises:
      TaskVecError: a model that Hugging Face's formats cannot express, no room to write, or
        something at the place of the directory that is not to be replaced.
    """
    check_target(directory)
    family = FAMILIES[config.family]
    raw = family.config_to_hf(config) | {"dtype": config.dtype}
    tensors = list(from_tree(family.hf, config, params))
    size = sum(math.prod(shape) for _, shape, _ in tensors) * jnp.dtype(config.dtype).itemsize
    with _writing(directory, size) as made:
        _save_tokenizer(tokenizer, made)
        safetensors_file.write(made / "model.safetensors", config.dtype, tensors)
        (made / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    try:
        tokenizer.save(directory)
    except (OSError, TaskVecError):
        raise
    except Exception as error:  # the tokenizers package has no kinds of them
        raise OSError(str(error).strip() or type(error).__name__) from None


def check_target(directory: Path) -> None:
    """Refuses a place that a model is not exported to, before anything is read or written.

    Raises:
      TaskVecError: there is a file, or a converted model.
    """
    if directory.exists() and not directory.is_dir():
        raise TaskVecError(f"{directory}: there is a file of this name; choose another directory")
    if checkpoint.is_checkpoint(directory):
        raise TaskVecError(
            f"{directory}: holds a converted model, which an exported one would replace in part;"
            " choose another directory"
        )


@contextlib.contextmanager
def _writing(directory: Path, size: int) -> Iterator[Path]:
    """A temporary directory, whose files take the place of those of an older model in the end.

    Args:
      directory: where the files go.
      size: bytes of the weights.

    Raises:
      TaskVecError: no room, or a disk that cannot be written; nothing has changed then.
    """
    directory = Path(os.path.realpath(directory))
    there = next(place for place in (directory, *directory.parents) if place.exists())
    try:
        if (free := shutil.disk_usage(there).free) < size + MARGIN:
            raise TaskVecError(
                f"{directory}: needs {(size + MARGIN) / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
                " on its disk; make room, or choose a directory on another disk"
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        inside = directory if directory.exists() else directory.parent  # the same file system
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}.", dir=inside, ignore_cleanup_errors=True
        ) as made:
            yield Path(made)
            _replace(Path(made), directory)
    except OSError as error:
        raise TaskVecError(
            f"{directory}: cannot be written ({error.strerror or error}); make room, or choose"
            " another directory"
        ) from None


def _replace(made: Path, directory: Path) -> None:
    """Moves complete files to their place; config.json, without which there is no model, last."""
    made.chmod(0o755)
    if not directory.exists():
        os.replace(made, directory)
        return
    first = [directory / "config.json"]
    for old in first + [path for path in directory.iterdir() if _OF_A_MODEL.fullmatch(path.name)]:
        if old.is_file() or old.is_symlink():
            old.unlink()
    for new in sorted(made.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(new, directory / new.name)


def main() -> None:
    """Exports the model that the flags name."""
    out = Path(command.FLAGS.out)
    check_target(out)
    model = load_model(command.FLAGS.model, command.FLAGS.dtype or "float32")
    export(model.config, model.params, model.tokenizer, out)
    command.console.print(f"wrote {out}")


if __name__ == "__main__":
    command.define_model_flags(None)
    flags.DEFINE_string("out", None, "directory to write", required=True)
    command.run(main)
