"""The GGUF format: metadata, a list of tensors, their (mostly quantized) bytes.

The header is parsed here rather than by `gguf.GGUFReader`, which trusts every length that it reads
(a hostile one keeps it busy without end) and maps the file into memory. The `gguf` package
dequantizes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gguf
import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from taskvec_jax.errors import TaskVecError

from .raw import read_numbers

_SCALARS = {  # value type -> struct format
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
CHUNK_BYTES = 4_000_000  # of a tensor that are dequantized together
PLAIN: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}  # everything else is quantized


class Entry(NamedTuple):
    """Where one tensor lies.

    Attributes:
      kind: how it is stored.
      shape: of the tensor, slowest axis first.
      start: its first byte in the file.
      size: in bytes.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


class _Cursor:
    """Reads a file forward, and refuses a length that the file cannot hold."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.left = size

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"a length of {count} bytes where {self.left} are left")
        self.left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("it became shorter while it was read")
        return data

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"a value of unknown type {kind}")
        item, count = self.scalar("<I"), self.scalar("<Q")
        if item == _STRING:
            if count > self.left // 8:
                raise ValueError(f"a list of {count} strings where {self.left} bytes are left")
            return [self.string() for _ in range(count)]
        if item not in _SCALARS:
            raise ValueError(f"a list of values of unknown type {item}")
        dtype = np.dtype(_SCALARS[item][1:]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Metadata key -> plain value, and tensor name -> entry.

    Raises:
      TaskVecError: the file is not a whole and consistent GGUF file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise TaskVecError(
                    f"{path}: not a model: it does not begin with GGUF; give a .gguf file, or the"
                    " directory of a model"
                )
            return _header(_Cursor(file, size - 4), size)
    except TaskVecError:
        raise
    except (OSError, ValueError, struct.error) as error:
        raise TaskVecError(f"{path}: not a whole GGUF file ({error}); fetch it again") from None


def _header(cursor: _Cursor, size: int) -> tuple[dict[str, Any], dict[str, Entry]]:
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}; allowed: 2 and 3, little endian")
    num_tensors, num_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    if num_tensors > size // 24 or num_values > size // 13:
        raise ValueError(f"{num_tensors} tensors and {num_values} values in {size} bytes")
    meta: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.string()
        if key in meta:
            raise ValueError(f"{key!r} is listed twice")
        meta[key] = cursor.value(cursor.scalar("<I"))
    listed: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        name, rank = cursor.string(), cursor.scalar("<I")
        if not 1 <= rank <= 4:
            raise ValueError(f"tensor {name!r} has {rank} axes")
        fastest_first = [cursor.scalar("<Q") for _ in range(rank)]
        kind, offset = GGMLQuantizationType(cursor.scalar("<I")), cursor.scalar("<Q")
        if name in listed:
            raise ValueError(f"tensor {name!r} is listed twice")
        block, width = GGML_QUANT_SIZES[kind]
        count = 1
        for n in fastest_first:
            count *= n
        if count < 1 or fastest_first[0] % block:
            raise ValueError(f"tensor {name!r} of shape {fastest_first} cannot be {kind.name}")
        listed[name] = kind, tuple(reversed(fastest_first)), offset, count // block * width
    alignment = meta.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise ValueError(f"alignment {alignment}")
    base = -(-(size - cursor.left) // alignment) * alignment
    end = 0
    for name, (_, _, offset, length) in sorted(listed.items(), key=lambda item: item[1][2]):
        if offset < end or offset % alignment or base + offset + length > size:
            raise ValueError(f"tensor {name!r} lies at {offset} to {offset + length} of the data")
        end = offset + length
    return meta, {
        name: Entry(kind, shape, base + offset, length)
        for name, (kind, shape, offset, length) in listed.items()
    }


def read_tensor(path: Path, name: str, entry: Entry) -> np.ndarray:
    """One tensor: plain types as stored, everything else dequantized to float32.

    Raises:
      TaskVecError: a type that the gguf package does not dequantize, or a file cut short.
    """
    if entry.kind.name in PLAIN:
        data = read_numbers(path, np.dtype(np.uint8), entry.size, entry.start)
        return data.view(PLAIN[entry.kind.name]).reshape(entry.shape)
    try:
        return _dequantized(path, entry)
    except NotImplementedError:
        raise TaskVecError(
            f"{path}: tensor {name} is of type {entry.kind.name}, which the gguf package does not"
            " dequantize; use another quantization of this model"
        ) from None


def _dequantized(path: Path, entry: Entry) -> np.ndarray:
    """Some rows at a time, so that beside the result there is next to nothing."""
    width = entry.shape[-1]
    rows = math.prod(entry.shape[:-1])
    row_size = entry.size // rows
    out = np.empty((rows, width), np.float32)
    step = max(1, CHUNK_BYTES // (4 * width))
    for i in range(0, rows, step):
        part = out[i : i + step]
        size, start = len(part) * row_size, entry.start + i * row_size
        data = read_numbers(path, np.dtype(np.uint8), size, start).reshape(len(part), row_size)
        with np.errstate(over="ignore", invalid="ignore"):  # not finite: refused by the caller
            part[...] = gguf.dequantize(data, entry.kind)
    return out.reshape(entry.shape)
