"""Files of torch.save (pytorch_model.bin, consolidated.*.pth): a zip of a pickle and raw numbers.

Read here without torch, which is gigabytes on disk, takes 200 MB of memory once it is imported, and
maps the file: pages of a map count as resident memory, and a converted model must fit beside one
tensor, not beside its source. Nothing in the pickle is executed: only the few instructions are
allowed that describe named tensors, and of functions only stand-ins of our own are called.

Files of before torch 1.6 are no zip; those are left to torch, which reads them whole.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from convert.raw import read_numbers
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory

MAX_PICKLE = 16 << 20  # bytes; those of real checkpoints are below 1 MB
MAX_AXES = 8

_STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# What torch.save writes for a dictionary of tensors, in pickle's protocols 2 to 4.
_ALLOWED = frozenset(
    "PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND"
    " APPENDS SETITEM SETITEMS NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT"
    " BINUNICODE SHORT_BINUNICODE GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID BINPUT LONG_BINPUT"
    " MEMOIZE BINGET LONG_BINGET".split()
)
_MEMO = frozenset({"BINPUT", "LONG_BINPUT"})  # whose argument is a place that memory is made for


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
      dtype: of its numbers.
      shape: of the tensor.
      storage: the record of the zip that holds its numbers, perhaps among others.
      numbers: in the storage.
      offset: its first number in the storage.
      strides: numbers from one index to the next, along each axis.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    storage: str
    numbers: int
    offset: int
    strides: tuple[int, ...]


class TorchFile:
    """The named tensors of one file.

    Attributes:
      path: where it is.
      entries: name -> what the tensor is.
    """

    def __init__(self, path: Path) -> None:
        """Reads names and shapes.

        Raises:
          TaskVecError: the file is not whole, holds something else, or is of before torch 1.6 and
            torch is not there.
        """
        self.path = path
        self._whole: dict[str, np.ndarray] | None = None
        self._starts: dict[str, int] = {}
        try:
            if not zipfile.is_zipfile(path):
                self._whole = _read_old(path)
                self.entries = {
                    name: Entry(x.dtype, x.shape, "", x.size, 0, ())
                    for name, x in self._whole.items()
                }
                return
            with zipfile.ZipFile(path) as archive:
                self.entries = _read_names(archive)
                for entry in self.entries.values():
                    if entry.storage not in self._starts:
                        self._starts[entry.storage] = _start_of(archive, entry.storage)
        except TaskVecError:
            raise
        except Exception as error:  # zipfile and pickle raise many kinds for what is not theirs
            reason = first_line(error)
            if is_out_of_memory(error):
                raise TaskVecError(f"{path}: too little memory to read it ({reason})") from None
            raise TaskVecError(
                f"{path}: not a whole torch file of plain tensors ({reason}); fetch it again"
            ) from None

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype it is stored in.

        Raises:
          TaskVecError: the file has become shorter since its names were read.
        """
        if self._whole is not None:
            return self._whole[name]
        entry = self.entries[name]
        size = entry.dtype.itemsize
        start = self._starts[entry.storage] + entry.offset * size
        numbers = read_numbers(self.path, entry.dtype, _reach(entry), start)
        strides = tuple(size * stride for stride in entry.strides)
        return np.lib.stride_tricks.as_strided(numbers, entry.shape, strides)


def _reach(entry: Entry) -> int:
    """How many numbers lie between the first and the last of a tensor."""
    if 0 in entry.shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(entry.shape, entry.strides, strict=True))


def _read_names(archive: zipfile.ZipFile) -> dict[str, Entry]:
    records = archive.namelist()
    if len(set(records)) != len(records):
        raise ValueError("a record is in it twice")
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} records data.pkl, expected 1")
    root = pickles[0].removesuffix("data.pkl")
    for record in archive.infolist():  # of a version, an alignment: with their checksums
        if not record.filename.startswith(f"{root}data/") and record.file_size < 1000:
            archive.read(record)
    if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    info = archive.getinfo(pickles[0])
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_PICKLE:
        raise ValueError(
            f"a data.pkl of {info.file_size} bytes; allowed: {MAX_PICKLE}, as they are"
        )
    data = archive.read(info)
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _ALLOWED or (
            instruction.name in _MEMO and isinstance(argument, int) and argument > len(data)
        ):
            raise ValueError(f"its pickle has the instruction {instruction.name} {argument}"[:100])
    found = _Names(io.BytesIO(data)).load()
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(entry, Entry) for name, entry in found.items()
    ):
        raise ValueError("it holds something else than named tensors")
    entries = {
        name: entry._replace(storage=f"{root}data/{entry.storage}") for name, entry in found.items()
    }
    for name, entry in entries.items():
        _check(archive, name, entry)
    return entries


def _check(archive: zipfile.ZipFile, name: str, entry: Entry) -> None:
    places = (entry.offset, *entry.shape, *entry.strides)
    if len(entry.shape) != len(entry.strides) or len(entry.shape) > MAX_AXES:
        raise ValueError(f"tensor {name!r} has shape {entry.shape} and strides {entry.strides}")
    if any(type(n) is not int or n < 0 for n in places):
        raise ValueError(f"tensor {name!r} has shape {entry.shape} at {entry.offset}")
    info = archive.getinfo(entry.storage)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"the numbers of tensor {name!r} are compressed")
    if type(entry.numbers) is not int or entry.numbers * entry.dtype.itemsize != info.file_size:
        raise ValueError(f"tensor {name!r} has {entry.numbers} numbers in {info.file_size} bytes")
    # A stride of 0 would make much out of little.
    if max(entry.offset + _reach(entry), math.prod(entry.shape)) > entry.numbers:
        raise ValueError(f"tensor {name!r} of shape {entry.shape} has {entry.numbers} numbers")


def _start_of(archive: zipfile.ZipFile, record: str) -> int:
    """The first byte of a record in the file, behind a header of its own."""
    info = archive.getinfo(record)
    with archive.open(info) as inside:  # checks that header
        del inside
    file = archive.fp
    assert file is not None  # it is open
    file.seek(info.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > file.seek(0, io.SEEK_END):
        raise ValueError(f"record {record!r} ends behind the end of the file")
    return start


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    record: str
    numbers: int


class _Named(dict[str, Any]):
    """An OrderedDict, whose attributes (`_metadata` of a state_dict) are not looked at."""


class _Call:
    """One of our functions, made for one pickle: what that writes on it is gone with it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _ordered() -> _Named:
    return _Named()


def _tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    hooks: _Named,
    metadata: Any = None,
) -> Entry:
    del metadata
    kinds = (_Storage, int, tuple, tuple, bool, _Named)
    given = (storage, offset, shape, strides, requires_grad, hooks)
    if not all(isinstance(value, kind) for value, kind in zip(given, kinds, strict=True)):
        raise pickle.UnpicklingError("a tensor that is not described as torch does")
    return Entry(storage.dtype, shape, storage.record, storage.numbers, offset, strides)


def _parameter(tensor: Entry, *rest: Any) -> Entry:
    del rest
    return tensor


class _Names(pickle.Unpickler):
    """Knows the words of torch.save, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        known = {
            ("collections", "OrderedDict"): _ordered,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor"[:100])
        return _Call(known[module, name])

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError("it refers to something else than a storage")
        _, kind, record, _, count = pid  # and the device it was on
        if not (isinstance(kind, str) and kind in _STORAGES and isinstance(record, str)):
            raise pickle.UnpicklingError("a storage without a type or a record")
        return _Storage(_STORAGES[kind], record, count)


def _read_old(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file of before torch 1.6."""
    try:
        import torch
    except ImportError:
        raise TaskVecError(
            f"{path}: no zip, so of before torch 1.6, or damaged; only torch reads such files: pip"
            " install 'taskvec-jax[torch]', or use the safetensors files of this model"
        ) from None
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise ValueError("it holds something else than named tensors")
    arrays = {}
    for name, value in loaded.items():
        tensor = value.detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # NumPy has none, torch says: its bits
            arrays[name] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            arrays[name] = tensor.numpy()
    return arrays
