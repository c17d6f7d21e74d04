"""The safetensors format: a length, a JSON header, the bytes of the tensors.

Read here without a memory map, unlike the `safetensors` package: pages of a map count as resident
memory, and a converted model must fit beside one tensor, not beside its whole source. Every
number of the header is checked before it is believed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from taskvec_jax.errors import TaskVecError

from .raw import read_numbers

MAX_HEADER = 100_000_000  # the limit of the format's own library

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_OTHER = {  # types of the format that hold quantized weights, or no weights of a language model
    "F8_E4M3": "FP8",
    "F8_E5M2": "FP8",
    "F8_E4M3FNUZ": "FP8",
    "F8_E5M2FNUZ": "FP8",
    "F8_E8M0": "scales of MX blocks",
    "F6_E2M3": "FP6",
    "F6_E3M2": "FP6",
    "F4": "FP4",
    "C64": "complex numbers",
}


class Entry(NamedTuple):
    """Where one tensor lies.

    Attributes:
      dtype: of its numbers.
      shape: of the tensor.
      start: its first byte in the file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> dict[str, Entry]:
    """Name -> entry of every tensor of a file.

    Raises:
      TaskVecError: the file is not a whole and consistent safetensors file, or its tensors are of
        a type that is not read, such as FP8.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
        _refuse_other_types(path, header)
        return _entries(header, 8 + length, size)
    except TaskVecError:  # whole, and of other types
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise TaskVecError(
            f"{path}: not a whole safetensors file ({error}); fetch it again"
        ) from None


class SafetensorsFile:
    """The named tensors of one file.

    Attributes:
      path: where it is.
      entries: name -> where the tensor lies.
    """

    def __init__(self, path: Path) -> None:
        """Reads names and shapes.

        Raises:
          TaskVecError: as `read_header`.
        """
        self.path = path
        self.entries = read_header(path)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype it is stored in."""
        return read_tensor(self.path, self.entries[name])


def _refuse_other_types(path: Path, header: Any) -> None:
    """Quantized weights are named as such: the file is whole, only not one for this reader."""
    for name, value in header.items() if isinstance(header, dict) else ():
        kind = value.get("dtype") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind in _OTHER:
            raise TaskVecError(
                f"{path}: tensor {name!r} has dtype {kind!r} ({_OTHER[kind]}), which is not"
                f" supported; allowed: {', '.join(_DTYPES)}. Quantized weights are not read: use"
                " the original weights of this model, in 16 or 32 bits"
            )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is listed twice")
    return dict(pairs)


def _entries(header: Any, base: int, size: int) -> dict[str, Entry]:
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    header.pop("__metadata__", None)
    entries: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    for name, value in header.items():
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        shape, offsets = value["shape"], value["data_offsets"]
        dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
        if dtype is None:
            raise ValueError(f"tensor {name!r} has dtype {value['dtype']!r}, not supported")
        if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
            raise ValueError(f"tensor {name!r} has shape {shape} at {offsets}")
        count = 1
        for n in shape:
            count *= n
        start, stop = offsets
        if stop - start != count * dtype.itemsize:
            raise ValueError(f"tensor {name!r} of shape {shape} has {stop - start} bytes")
        entries[name] = Entry(dtype, tuple(shape), base + start)
        spans.append((start, stop, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise ValueError(
                f"tensor {name!r} starts at byte {start}, the one before ends at {end}"
            )
        end = stop
    if base + end != size:
        raise ValueError(f"{size} bytes, its header describes {base + end}")
    return entries


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def read_tensor(path: Path, entry: Entry) -> np.ndarray:
    """One tensor, in the dtype it is stored in.

    Raises:
      TaskVecError: the file has become shorter since its header was read.
    """
    count = int(np.prod(entry.shape, dtype=np.int64))
    return read_numbers(path, entry.dtype, count, entry.start).reshape(entry.shape)


def write(
    path: Path,
    dtype: Any,
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
) -> None:
    """Writes tensors of one dtype, making them one at a time.

    Args:
      path: the file.
      dtype: of every tensor.
      tensors: (name, shape, function that makes the tensor).

    Raises:
      OSError: the file cannot be written; what is there of it is not complete.
      TaskVecError: a tensor has not the shape that was given for it.
    """
    dtype, tensors = np.dtype(dtype), list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, shape, _ in tensors:
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, make in tensors:
            tensor = make()
            if tensor.shape != tuple(shape) or tensor.dtype != dtype:
                raise TaskVecError(
                    f"{name} is {tensor.dtype} {tensor.shape}, expected {dtype} {shape}"
                )
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
