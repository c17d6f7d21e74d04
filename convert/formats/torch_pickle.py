"""The pickle inside a file of torch.save, read without executing anything that it names.

Only the few instructions are allowed that describe named tensors, and of the functions that a
pickle may call, only stand-ins defined here are ever called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from taskvec_jax.errors import TaskVecError

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
# What builds tensors of other types: float8 and the like are saved by _rebuild_tensor_v3.
_OTHER_TYPE = re.compile(
    r"^torch\._utils\._rebuild_(tensor_v3|qtensor)$|^torch\.(float8|float4|Q[IU])|^bitsandbytes\."
)
_MEMO = frozenset({"BINPUT", "LONG_BINPUT"})  # their argument decides how much memory is taken


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


def reach(entry: Entry) -> int:
    """How many numbers lie between the first and the last of a tensor."""
    if 0 in entry.shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(entry.shape, entry.strides, strict=True))


def read_pickle(data: bytes, archive: zipfile.ZipFile, root: str) -> dict[str, Entry]:
    """Name -> tensor of everything that a pickle describes.

    Args:
      data: the pickle.
      archive: the file around it, with the records of numbers.
      root: the directory of the records in it, with a slash at its end.

    Raises:
      TaskVecError: tensors of a type that is not supported.
      ValueError, pickle.UnpicklingError: it is damaged, or holds something else than named tensors.
    """
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _ALLOWED or (
            instruction.name in _MEMO and isinstance(argument, int) and argument > len(data)
        ):
            raise ValueError(f"its pickle has the instruction {instruction.name} {argument}"[:100])
    found = _Names(io.BytesIO(data), archive, root).load()
    if not isinstance(found, dict) or not all(
        type(name) is str and type(entry) is Entry for name, entry in found.items()
    ):
        raise ValueError("it holds something else than named tensors")
    return dict(found)


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    record: str
    numbers: int


class _Kind(NamedTuple):
    """A storage class of torch: torch.FloatStorage and the like."""

    dtype: np.dtype[Any]


class _Named(dict[str, Any]):
    """An OrderedDict, whose attributes (`_metadata` of a state_dict) are ignored."""

    def __setstate__(self, state: Any) -> None:
        _demand(isinstance(state, dict), "an OrderedDict")


class _Call:
    """A stand-in for a function, made anew for each pickle, so that no pickle can change it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        del state
        _demand(False, "a function")


def _ordered() -> _Named:
    return _Named()


def _is_natural(value: Any) -> bool:
    """Whether a value is a whole number from 0 that torch and NumPy can hold; True is none."""
    return type(value) is int and 0 <= value < 1 << 63


def _are_naturals(value: Any) -> bool:
    return type(value) is tuple and all(map(_is_natural, value))


def _demand(fulfilled: bool, what: str) -> None:
    """Refuses a pickle unless what it says is as torch writes it."""
    if not fulfilled:
        raise pickle.UnpicklingError(f"it holds {what} that is not described as torch does")


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Entry:
    """torch._utils._rebuild_tensor_v2, with every argument checked for its type and range."""
    _demand(
        type(storage) is _Storage
        and _is_natural(offset)
        and _are_naturals(shape)
        and _are_naturals(strides)
        and type(requires_grad) is bool
        and type(hooks) is _Named
        and not hooks
        and (metadata is None or (isinstance(metadata, dict) and not metadata)),
        "a tensor",
    )
    entry = Entry(storage.dtype, shape, storage.record, storage.numbers, offset, strides)
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise ValueError(f"a tensor has shape {shape} and strides {strides}")
    # A stride of 0 would make a large tensor out of few numbers.
    if max(offset + reach(entry), math.prod(shape)) > storage.numbers:
        raise ValueError(f"a tensor of shape {shape} at {offset} has {storage.numbers} numbers")
    return entry


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Entry:
    """torch._utils._rebuild_parameter."""
    _demand(
        type(tensor) is Entry
        and type(requires_grad) is bool
        and type(hooks) is _Named
        and not hooks,
        "a parameter",
    )
    return tensor


class _Names(pickle.Unpickler):
    """Resolves the names that torch.save writes, and refuses all others."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if _OTHER_TYPE.search(f"{module}.{name}"):
            raise TaskVecError(
                f"{self._archive.filename}: holds tensors of a type that is not supported"
                f" ({module}.{name}; FP8 or otherwise quantized); use the original weights of this"
                " model, in 16 or 32 bits"
            )
        known = {
            ("collections", "OrderedDict"): _ordered,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor"[:100])
        return _Call(known[module, name])

    def persistent_load(self, pid: Any) -> _Storage:
        _demand(type(pid) is tuple and len(pid) == 5, "a storage")
        parts: tuple[Any, ...] = pid
        what, kind, record, device, numbers = parts
        _demand(
            what == "storage"
            and type(kind) is _Kind
            and type(record) is str
            and type(device) is str
            and _is_natural(numbers),
            "a storage",
        )
        info = self._archive.getinfo(f"{self._root}data/{record}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"the numbers of record {record!r} are compressed")
        if numbers * kind.dtype.itemsize != info.file_size:
            raise ValueError(f"record {record!r} has {numbers} numbers in {info.file_size} bytes")
        return _Storage(kind.dtype, info.filename, numbers)
