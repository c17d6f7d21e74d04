"""Where tensors come from: a Hugging Face directory of safetensors files, or a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs)
import numpy as np
import safetensors

from convert.rules import Shapes
from taskvec_jax.errors import TaskVecError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a TaskVecError that says what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskVecError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise TaskVecError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


class SafetensorsSource:
    """The *.safetensors files of a directory, one or sharded with an index."""

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise TaskVecError(f"{index}: has no weight_map; fetch it again")
            files = sorted({str(name) for name in weight_map.values()})
        else:
            files = ["model.safetensors"]
        self._handles: dict[str, Any] = {}
        for name in files:
            path = directory / name
            if path.parent != directory or not path.is_file():
                raise TaskVecError(
                    f"{directory}: {name} is not there; a Hugging Face directory needs"
                    " model.safetensors, or model.safetensors.index.json with every file it names"
                )
            try:
                handle = safetensors.safe_open(path, framework="numpy")
            except (OSError, safetensors.SafetensorError) as error:
                raise TaskVecError(
                    f"{path}: not a whole safetensors file ({error}); fetch it again"
                ) from None
            for tensor in handle.keys():
                if tensor in self._handles:
                    raise TaskVecError(f"{directory}: tensor {tensor} is in two files")
                self._handles[tensor] = handle

    def shapes(self) -> Shapes:
        return {
            name: tuple(handle.get_slice(name).get_shape())
            for name, handle in self._handles.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._handles[name].get_tensor(name)


class GGUFSource:
    """A GGUF file, dequantised tensor by tensor with the `gguf` package.

    Attributes:
      meta: metadata key -> plain value.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            reader = gguf.GGUFReader(path)
            self.meta = {key: field.contents() for key, field in reader.fields.items()}
        except Exception as error:  # the reader raises whatever a broken header leads it to
            raise TaskVecError(
                f"{path}: not a whole GGUF file ({type(error).__name__}: {error}); fetch it again"
            ) from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def shapes(self) -> Shapes:
        # GGUF lists the fastest-varying axis first.
        return {
            name: tuple(int(n) for n in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        return values.reshape([int(n) for n in reversed(tensor.shape)])
