"""Where tensors come from, one at a time: safetensors, GGUF, and torch's .bin and .pth files.

open_weights(directory) -> DirectorySource; MetaSource(directory); GGUFSource(path)
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError

from ..families.rules import Shapes
from . import gguf_file, gguf_parts
from .safetensors_file import SafetensorsFile
from .torch_file import TorchFile

INDEX = ".index.json"
WEIGHTS = (  # the order in which transformers looks for them
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_OTHER_FORMS = {".gguf", ".safetensors", ".bin", ".pth", ".pt", ".h5", ".msgpack"}
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


def _files(directory: Path, name: str) -> tuple[list[Path], dict[str, str] | None]:
    """The files of a checkpoint, and its index (tensor -> file name) if `name` is one.

    Raises:
      TaskVecError: a wrong index, or a file that is not there.
    """
    if not name.endswith(INDEX):
        return [directory / name], None
    index = directory / name
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TaskVecError(f"{index}: has no weight_map; fetch it again")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise TaskVecError(
                f"{index}: names the file {file!r}; allowed: files of its own directory"
            )
    names = sorted(set(weight_map.values()))
    if missing := [file for file in names if not (directory / file).is_file()]:
        raise TaskVecError(
            f"{directory}: {', '.join(missing[:4])} not there ({len(missing)} of {len(names)}"
            f" files of {name}); the download is not complete, fetch it again"
        )
    return [directory / file for file in names], weight_map


class DirectorySource:
    """The weights of a Hugging Face directory: one file, or the shards that an index names.

    Which tensors are used is known only when the config is read: `check_used` then looks for what
    the index or a second file says differently of those, and of no others.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Reads names and shapes.

        Args:
          directory: where the files are.
          name: of the single file, or of the index.

        Raises:
          TaskVecError: a file is missing or damaged.
        """
        self.where = str(directory)
        self.files, self._index = _files(directory, name)
        self._shards: dict[str, SafetensorsFile | TorchFile] = {}
        self._twice: set[str] = set()
        for path in self.files:
            kind = SafetensorsFile if path.suffix == ".safetensors" else TorchFile
            shard = kind(path)
            self._twice |= self._shards.keys() & shard.entries.keys()
            self._shards |= dict.fromkeys(shard.entries, shard)

    def check_used(self, names: Iterable[str]) -> None:
        """Each of these tensors lies in the file that the index names, and nowhere else.

        Raises:
          TaskVecError: the files are of different downloads.
        """
        names = list(names)
        if twice := [name for name in names if name in self._twice]:
            raise TaskVecError(
                f"{self.where}: tensor {twice[0]} is in two files ({len(twice)} tensors are);"
                " they are of different downloads, fetch them again"
            )
        if self._index is None:
            return
        wrong = [n for n in names if self._index.get(n) != self._shards[n].path.name]
        if wrong:
            raise TaskVecError(
                f"{self.where}: its index and its files disagree about {', '.join(wrong[:6])}"
                f" ({len(wrong)} tensors); they are of different downloads, fetch both again"
            )

    def shapes(self) -> Shapes:
        """See `rules.Source`."""
        return {name: shard.entries[name].shape for name, shard in self._shards.items()}

    def dtypes(self) -> dict[str, str]:
        """See `rules.Source`."""
        return {name: shard.entries[name].dtype.name for name, shard in self._shards.items()}

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        return self._shards[name].read(name)


class GGUFSource:
    """A GGUF file, or all parts of a split one, dequantized tensor by tensor by the `gguf` package.

    Attributes:
      meta: metadata key -> plain value.
    """

    def __init__(self, path: Path) -> None:
        """Reads metadata, names and shapes.

        Args:
          path: the file; of a split one any part, beside all the others.

        Raises:
          TaskVecError: a part is damaged, missing, or of another model.
        """
        self.where = str(path)
        self.files, self.meta, self._entries = gguf_parts.read_headers(path)

    def shapes(self) -> Shapes:
        """See `rules.Source`."""
        return {name: entry.shape for name, (_, entry) in self._entries.items()}

    def dtypes(self) -> dict[str, str]:
        """See `rules.Source`."""
        plain = gguf_file.PLAIN
        return {
            name: plain[entry.kind.name].name if entry.kind.name in plain else "float32"
            for name, (_, entry) in self._entries.items()
        }

    def check_used(self, names: Iterable[str]) -> None:
        """See `rules.Source`: all tensors were checked when the headers were read."""

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        path, entry = self._entries[name]
        return gguf_file.read_tensor(path, name, entry)


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

    def check_used(self, names: Iterable[str]) -> None:
        """See `rules.Source`: all tensors were checked when the headers were read."""

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        parts = [shard.read(name) for shard in self._shards]
        axis = self._axis(name)
        if axis is not None:
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
        if any(not np.array_equal(part, parts[0]) for part in parts):
            raise TaskVecError(f"{self.where}: tensor {name} differs between shards")
        return parts[0]


def open_weights(directory: Path, named: str | None = None) -> DirectorySource:
    """The weights of a Hugging Face directory, chosen among several as transformers chooses.

    Args:
      directory: where they are.
      named: the file that config.json names in `transformers_weights`; None: the first that is
        there of model.safetensors, its index, pytorch_model.bin, its index.

    Raises:
      TaskVecError: there are none, or damaged ones.
    """
    if shards := [p.name for p in sorted(directory.iterdir()) if _DISTRIBUTED.fullmatch(p.name)]:
        raise TaskVecError(
            f"{directory}: holds a distributed checkpoint ({shards[0]} and so on), which"
            " transformers reads before all other weights and this reader does not; save the model"
            " once more in one piece, or remove those files"
        )
    if named is not None:
        plain = Path(named).name == named and named.endswith(
            (".safetensors", f".safetensors{INDEX}")
        )
        if not plain or not (directory / named).is_file():
            raise TaskVecError(
                f"{directory}: config.json names the weights {named[:80]!r} (transformers_weights);"
                " allowed: a .safetensors file, or an index of such files, of its own directory"
            )
        return DirectorySource(directory, named)
    for name in WEIGHTS:
        if (directory / name).is_file():
            return DirectorySource(directory, name)
    raise TaskVecError(
        f"{directory}: no weights here; a Hugging Face directory needs model.safetensors or"
        f" pytorch_model.bin, or an index (.index.json) with every file it names"
        + other_forms(directory)
    )


def other_forms(directory: Path) -> str:
    """What is there of weights in another form, as the end of a message; "" if nothing."""
    if not directory.is_dir():
        return ""
    others = [p.name for p in sorted(directory.iterdir()) if p.suffix in _OTHER_FORMS]
    if not others:
        return ""
    shown = ", ".join(others[:4]) + (" ..." if len(others) > 4 else "")
    if any(name.endswith(".gguf") for name in others):
        return (
            f". Here are {shown}: give a .gguf file by its own path, --model={directory}/NAME.gguf"
        )
    return f". Here are {shown}: weights under other names or in other formats are not read"
