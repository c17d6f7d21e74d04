"""What a torch pickle hands the reader is checked for type and range, one argument at a time."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import _utils

from convert.formats.torch_file import TorchFile
from taskvec_jax.errors import TaskVecError


class Storage:
    """Pickled as a reference to a record of the zip."""

    def __init__(self, *reference: Any) -> None:
        self.reference = reference


class Rebuilt:
    """Pickled as a call of one of torch's functions, with a state set on it if there is one."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) + ((state,) if state is not None else ())

    def __reduce__(self) -> Any:
        return self.parts


class Twice:
    """Pickled as a dictionary to which one name is given twice: the second value stays."""

    def __init__(self, first: Any, second: Any) -> None:
        self.values = first, second

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), None, None, iter([("x", v) for v in self.values])


class Pickler(pickle._Pickler):  # the one in C does not write torch's storages by their names
    def persistent_id(self, obj: Any) -> Any:
        return obj.reference if isinstance(obj, Storage) else None


def write(path: Path, named: Any) -> Path:
    """A file of torch.save with six numbers, and whatever pickle is wanted."""
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(named)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        archive.writestr("x/data/0", np.arange(6, dtype=np.float32).tobytes())
        archive.writestr("x/version", "3\n")
    return path


REFERENCE: tuple[Any, ...] = ("storage", torch.FloatStorage, "0", "cpu", 6)
ARGUMENTS: tuple[Any, ...] = (Storage(*REFERENCE), 0, (2, 3), (3, 1), False)
VALUES: list[Any] = [
    None, True, False, -1, 2**40, 2**63, 2**64, 1.0, "0", "storage", b"0", (), ((),), ((2, 3),),
    ((1, 2), (3, 4)), (2, "3"), (2, None), (2, 3.0), (2, True), (-2, -3), (2, -1), (1, 1, 1),
    (0, 3), (2**62, 3), (3, 2**62), [2, 3], {}, {"a": 1}, Storage(*REFERENCE), torch.FloatStorage,
    torch.DoubleStorage, collections.OrderedDict(), collections.OrderedDict(a=1),
]  # fmt: skip


def replaced(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


def tensor(*arguments: Any) -> Rebuilt:
    return Rebuilt(_utils._rebuild_tensor_v2, *arguments)


def variants() -> dict[str, Any]:
    """Name -> what is pickled: a good tensor with one argument of one call replaced."""
    good = (*ARGUMENTS, collections.OrderedDict())
    found: dict[str, Any] = {}
    for number, value in enumerate(VALUES):
        for place in range(len(good)):
            found[f"tensor {place} {number}"] = {"x": tensor(*replaced(good, place, value))}
        for place in range(len(REFERENCE)):
            storage = Storage(*replaced(REFERENCE, place, value))
            found[f"storage {place} {number}"] = {"x": tensor(storage, *good[1:])}
        found[f"metadata {number}"] = {"x": tensor(*good, value)}
        found[f"reference {number}"] = {"x": tensor(Storage(value), *good[1:])}
        found[f"named {number}"] = {"x": tensor(*good), "y": value}
        found[f"whole {number}"] = value
        state = Rebuilt(collections.OrderedDict, state=value)
        found[f"state {number}"] = {"x": tensor(*good[:-1], state)}
        for place in range(3):
            arguments = replaced((tensor(*good), False, collections.OrderedDict()), place, value)
            parameter = Rebuilt(_utils._rebuild_parameter, *arguments)
            found[f"parameter {place} {number}"] = {"x": parameter}
    outside = tensor(*replaced(good, 1, 5))
    found["tuple of tuples, replaced"] = Twice(tensor(*replaced(good, 2, ((2, 3),))), tensor(*good))
    found["out of range, replaced"] = Twice(outside, tensor(*good))
    for key in (1, None, b"x", (1,), ("x",), 2.0):
        found[f"key {key!r}"] = {key: tensor(*good)}
    return found


def test_every_argument_of_a_pickle_is_refused_or_means_what_it_means_to_torch(
    tmp_path: Path,
) -> None:
    path, read, refusals = tmp_path / "x.bin", 0, list[str]()
    for name, named in variants().items():
        try:
            write(path, named)
        except Exception:  # not a pickle that can be written
            continue
        try:
            file = TorchFile(path)
            got = {key: file.read(key) for key in file.entries}
        except TaskVecError as error:
            refusals.append(str(error))
            continue
        expected = torch.load(path, "cpu", weights_only=True)
        read += 1
        assert got.keys() == expected.keys(), name
        for key, value in expected.items():
            assert got[key].shape == tuple(value.shape), name
            np.testing.assert_array_equal(got[key], value.detach().numpy(), name)
    assert 1 < read < len(variants()) // 4
    assert all("not a whole torch file of plain tensors" in message for message in refusals)


def test_a_pickle_that_says_all_as_torch_does_is_read(tmp_path: Path) -> None:
    good = {"x": tensor(*ARGUMENTS, collections.OrderedDict())}
    got = TorchFile(write(tmp_path / "x.bin", good)).read("x")
    np.testing.assert_array_equal(got, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("shape", [((2, 3),), ((1, 2), (3, 4)), ((), ())])
def test_a_size_of_tuples_is_refused(tmp_path: Path, shape: Any) -> None:
    arguments = replaced(ARGUMENTS, 2, shape)
    write(tmp_path / "x.bin", {"x": tensor(*arguments, collections.OrderedDict())})
    with pytest.raises(TaskVecError, match="a tensor that is not described as torch does"):
        TorchFile(tmp_path / "x.bin")


def test_fp8_in_a_torch_file_is_named(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "x.bin")
    with pytest.raises(TaskVecError, match=r"of a type that is not supported .* FP8"):
        TorchFile(tmp_path / "x.bin")
