"""Files of torch.save (pytorch_model.bin, consolidated.*.pth): a zip of a pickle and raw numbers.

They are read without torch, which takes gigabytes on disk and 200 MB of memory once imported, and
which maps the file: mapped pages count as resident memory, and conversion must need room for one
tensor beside the converted model, not for the whole source.

Files written before torch 1.6 are no zip; torch reads those, each as a whole.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory

from .raw import read_numbers
from .torch_pickle import MAX_PICKLE, Entry, reach, read_pickle


class TorchFile:
    """The named tensors of one file.

    Attributes:
      path: where it is.
      entries: name -> what the tensor is.
    """

    def __init__(self, path: Path) -> None:
        """Reads names and shapes.

        Raises:
          TaskVecError: the file is not whole, holds something else, or was written before torch 1.6
            and torch is not installed.
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
        except Exception as error:  # zipfile and pickle raise many kinds for damaged files
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
        numbers = read_numbers(self.path, entry.dtype, reach(entry), start)
        strides = tuple(size * stride for stride in entry.strides)
        return np.lib.stride_tricks.as_strided(numbers, entry.shape, strides)


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
            f"a data.pkl of {info.file_size} bytes; allowed: {MAX_PICKLE}, uncompressed"
        )
    data = archive.read(info)
    return read_pickle(data, archive, root)


def _start_of(archive: zipfile.ZipFile, record: str) -> int:
    """Position in the file of the first byte of a record, after the record's header."""
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


def _read_old(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file written before torch 1.6."""
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
