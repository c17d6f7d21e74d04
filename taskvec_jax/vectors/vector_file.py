"""A vector on disk: a safetensors file whose metadata says everything but the numbers.

tensors   vector [D] or [n, D]; zero_shot, of the same shape, where it is known
metadata  format: "taskvec_jax.TaskVector/1"; about: JSON of all else that is known
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.models.atomic import write_file

FORMAT = "taskvec_jax.TaskVector/1"
TENSOR = "vector"


def save(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes the file whole, or not at all.

    Args:
      tensors: by name, `TENSOR` among them.
      about: plain values.

    Raises:
      TaskVecError: it cannot be written.
    """
    metadata = {"format": FORMAT, "about": json.dumps(about, ensure_ascii=False)}
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write(path, safetensors.numpy.save(arrays, metadata))


def write(path: Path, data: bytes) -> None:
    """Writes a file whole, or not at all; its directory is made.

    Raises:
      TaskVecError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    except OSError as error:
        raise TaskVecError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another"
            " place"
        ) from None


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `save` wrote: tensors, about.

    Raises:
      TaskVecError: no such file, or not a vector's.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise TaskVecError(f"{path}: there is no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise TaskVecError(
            f"{path}: cannot be read as a vector ({first_line(error)}); it must be a file that"
            " TaskVector.save wrote"
        ) from None
    if metadata.get("format") != FORMAT or TENSOR not in tensors:
        raise TaskVecError(
            f"{path}: its format is {metadata.get('format')!r}; allowed: {FORMAT!r}, a file that"
            " TaskVector.save wrote"
        )
    try:
        return tensors, dict(json.loads(metadata["about"]))
    except (KeyError, TypeError, ValueError) as error:
        raise TaskVecError(f"{path}: its metadata is damaged ({first_line(error)})") from None
