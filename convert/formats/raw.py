"""Numbers as they lie in a file, read without a memory map: pages of a map count as resident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError


def read_numbers(path: Path, dtype: np.dtype[Any], count: int, start: int) -> np.ndarray:
    """`count` numbers from byte `start` on, [count].

    Raises:
      TaskVecError: the file has become shorter since it was found to hold them, or is gone.
    """
    try:
        numbers = np.fromfile(path, dtype, count, offset=start)
    except OSError as error:
        raise TaskVecError(f"{path}: cannot be read ({error.strerror or error})") from None
    if numbers.size != count:
        raise TaskVecError(f"{path}: became shorter while it was read; fetch it again")
    return numbers
