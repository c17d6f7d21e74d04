"""Where tensors come from, one at a time: safetensors, GGUF, and torch's .bin and .pth files.

open_source(path) -> SafetensorsSource | TorchSource | MetaSource | GGUFSource
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError

from . import gguf_file, safetensors_file
from .rules import Shapes
from .torch_file import TorchFile

MAX_JSON = 64 << 20  # a config or an index of more bytes than this is not one


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      TaskVecError: it says what is wrong with the file.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"{path.stat().st_size} bytes; allowed: {MAX_JSON}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaskVecError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise TaskVecError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def _files(directory: Path, single: str) -> tuple[list[Path], dict[str, str] | None]:
    """The files of a checkpoint, and its index (tensor -> file name) if it has one.

    Raises:
      TaskVecError: a wrong index, or a file that is not there.
    """
    index = directory / f"{single}.index.json"
    weight_map = None
    names = [single]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise TaskVecError(f"{index}: has no weight_map; fetch it again")
        for name in weight_map.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise TaskVecError(
                    f"{index}: names the file {name!r}; allowed: files of its own directory"
                )
        names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise TaskVecError(
            f"{directory}: {', '.join(missing[:4])} not there ({len(missing)} of {len(names)}"
            " files of the index); the download is not complete, fetch it again"
        )
    return [directory / name for name in names], weight_map


def _check_index(directory: Path, found: Mapping[str, Path], index: dict[str, str] | None) -> None:
    """Every tensor lies in the file that the index names, and nowhere else."""
    if index is None:
        return
    wrong = sorted(set(index) ^ set(found))
    wrong += sorted(name for name in set(index) & set(found) if found[name].name != index[name])
    if wrong:
        raise TaskVecError(
            f"{directory}: its index and its files disagree about {', '.join(wrong[:6])}"
            f" ({len(wrong)} tensors); they are of different downloads, fetch both again"
        )


class SafetensorsSource:
    """model.safetensors of a directory, or the shards that its index names."""

    SINGLE = "model.safetensors"

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self.files, index = _files(directory, self.SINGLE)
        self._places: dict[str, Path] = {}
        self._entries: dict[str, safetensors_file.Entry] = {}
        for path in self.files:
            for name, entry in safetensors_file.read_header(path).items():
                if name in self._entries:
                    raise TaskVecError(f"{directory}: tensor {name} is in two files")
                self._entries[name], self._places[name] = entry, path
        _check_index(directory, self._places, index)

    def shapes(self) -> Shapes:
        """See `rules.Source`."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> dict[str, str]:
        """See `rules.Source`."""
        return {name: entry.dtype.name for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        return safetensors_file.read_tensor(self._places[name], self._entries[name])


class GGUFSource:
    """A GGUF file, dequantised tensor by tensor with the `gguf` package.

    Attributes:
      meta: metadata key -> plain value.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.files = [path]
        self.meta, self._entries = gguf_file.read_header(path)

    def shapes(self) -> Shapes:
        """See `rules.Source`."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> dict[str, str]:
        """See `rules.Source`."""
        plain = gguf_file.PLAIN
        return {
            name: plain[entry.kind.name].name if entry.kind.name in plain else "float32"
            for name, entry in self._entries.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        return gguf_file.read_tensor(self.files[0], name, self._entries[name])


class TorchSource:
    """pytorch_model.bin of a directory, or the shards that its index names."""

    SINGLE = "pytorch_model.bin"

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self.files, index = _files(directory, self.SINGLE)
        self._places: dict[str, TorchFile] = {}
        for path in self.files:
            file = TorchFile(path)
            for name in file.entries:
                if name in self._places:
                    raise TaskVecError(f"{directory}: tensor {name} is in two files")
                self._places[name] = file
        _check_index(directory, {name: file.path for name, file in self._places.items()}, index)

    def shapes(self) -> Shapes:
        """See `rules.Source`."""
        return {name: file.entries[name].shape for name, file in self._places.items()}

    def dtypes(self) -> dict[str, str]:
        """See `rules.Source`."""
        return {name: file.entries[name].dtype.name for name, file in self._places.items()}

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        return self._places[name].read(name)


class MetaSource:
    """Meta's own release: params.json and consolidated.NN.pth, one file a shard.

    Every shard holds a slice of each matrix: of its rows or of its columns, which the shapes tell.

    Attributes:
      meta: params.json.
    """

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self.meta = read_json(directory / "params.json")
        self.files = sorted(directory.glob("consolidated.*.pth"))
        self._shards = [TorchFile(path) for path in self.files]
        self._first = self._shards[0].entries
        if any(shard.entries.keys() != self._first.keys() for shard in self._shards):
            raise TaskVecError(
                f"{directory}: its consolidated.*.pth do not hold the same tensors; they are of"
                " different downloads, fetch them again"
            )

    def _axis(self, name: str) -> int | None:
        """The axis along which the shards are joined; None for what every shard has whole."""
        shape = self._first[name].shape
        if len(shape) < 2:
            return None
        if name == "tok_embeddings.weight":  # Llama 3 split its rows, 1 and 2 its columns
            return 1 if shape[1] * len(self._shards) == self.meta.get("dim") else 0
        return 1 if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")) else 0

    @functools.cached_property
    def _shapes(self) -> Shapes:
        shapes = {}
        for name in self._first:
            parts = [shard.entries[name].shape for shard in self._shards]
            axis, shape = self._axis(name), list(parts[0])
            if any(part != parts[0] for part in parts):
                raise TaskVecError(
                    f"{self.where}: tensor {name} has other shapes in other shards, {parts}"
                )
            if axis is not None:
                shape[axis] *= len(parts)
            shapes[name] = tuple(shape)
        return shapes

    def shapes(self) -> Shapes:
        """See `rules.Source`."""
        return self._shapes

    def dtypes(self) -> dict[str, str]:
        """See `rules.Source`."""
        return {name: entry.dtype.name for name, entry in self._first.items()}

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        parts = [shard.read(name) for shard in self._shards]
        axis = self._axis(name)
        if axis is not None:
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
        if any(not np.array_equal(part, parts[0]) for part in parts):
            raise TaskVecError(f"{self.where}: tensor {name} differs between shards")
        return parts[0]


def open_weights(directory: Path) -> SafetensorsSource | TorchSource:
    """The weights of a Hugging Face directory; safetensors where there is a choice.

    Raises:
      TaskVecError: there are none, or damaged ones.
    """
    for kind in (SafetensorsSource, TorchSource):
        if any((directory / (kind.SINGLE + end)).is_file() for end in ("", ".index.json")):
            return kind(directory)
    raise TaskVecError(
        f"{directory}: no weights here; a Hugging Face directory needs model.safetensors or"
        " pytorch_model.bin, or an index (.index.json) with every file it names"
    )
