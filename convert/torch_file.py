"""Files of torch.save: pytorch_model.bin, consolidated.*.pth. Needs the optional torch.

A file is mapped anew for each tensor that is read: pages of a map count as resident memory for as
long as the map is there, and a converted model must fit beside one tensor, not beside its source.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from taskvec_jax.errors import TaskVecError


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
      dtype: of its numbers, in NumPy's words.
      shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]


class TorchFile:
    """The named tensors of one file.

    Attributes:
      path: where it is.
      entries: name -> what the tensor is.
    """

    def __init__(self, path: Path) -> None:
        """Reads names and shapes.

        Raises:
          TaskVecError: the file holds something else, or torch is not there.
        """
        self.path = path
        tensors = _load(path)
        self.entries = {name: _entry(tensor) for name, tensor in tensors.items()}
        # Files of before torch 1.6 are no archives: they cannot be mapped, and are kept whole.
        self._whole = None if zipfile.is_zipfile(path) else tensors

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype it is stored in.

        Raises:
          TaskVecError: the file is not what it was when its names were read.
        """
        tensor = (_load(self.path) if self._whole is None else self._whole).get(name)
        if tensor is None or _entry(tensor) != self.entries[name]:
            raise TaskVecError(f"{self.path}: became another while it was read; convert again")
        return _to_numpy(tensor)


def _torch(path: Path) -> Any:
    """The torch package, which only these old formats need."""
    try:
        import torch
    except ImportError:
        raise TaskVecError(
            f"{path}: reading it needs torch; pip install 'taskvec-jax[torch]', or use the"
            " safetensors files of this model"
        ) from None
    return torch


def _load(path: Path) -> dict[str, Any]:
    """Name -> torch tensor, mapped from the file; nothing in it is ever executed."""
    torch = _torch(path)
    try:
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # torch raises many kinds for what is no file of tensors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise TaskVecError(
            f"{path}: not a whole torch file of plain tensors ({reason}); fetch it again"
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise TaskVecError(f"{path}: holds something else than named tensors")
    return loaded


def _entry(tensor: Any) -> Entry:
    return Entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def _to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor as NumPy; torch has no bfloat16 there, so its bits are taken."""
    torch = _torch(Path())
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
