"""An account of work: the floating-point operations a run needed, did, and did again.

Every call of a program over rows (`batching.run_in_chunks`) says what its rows needed, with padding
and masked scores left out, and what the program did. A row that is the same as one that this
process has computed before, by the same program, adds to what was done and not to what was needed.
What `Model.generate` does, learning and patching of single places are not in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """What a program is asked to do, row by row.

    Attributes:
      needed: row number -> the FLOPs it needs.
      what: row number -> arrays and other values that say what is computed of it.
      done: length of the padded rows' longest text -> FLOPs a row of the program.
    """

    needed: Callable[[int], int]
    what: Callable[[int], Sequence[Any]]
    done: Callable[[int], int]


@dataclasses.dataclass
class Account:
    """FLOPs so far.

    Attributes:
      needed: of rows that were not computed before.
      again: that rows needed which were.
      done: by programs.
    """

    needed: int = 0
    again: int = 0
    done: int = 0
    _seen: set[bytes] = dataclasses.field(default_factory=set, repr=False)

    def add(self, program: str, work: Work, chunk: Sequence[int], rows: int, longest: int) -> None:
        """Enters one call.

        Args:
          program: its name; of another program the same row is other work.
          chunk: row numbers.
          rows: how many rows the program worked on; some repeat another.
          longest: length of the longest text.
        """
        self.done += rows * work.done(longest)
        for row in chunk:
            said = hashlib.sha256(program.encode())
            for value in work.what(row):
                said.update(
                    b"|"
                    + (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
                )
            kind = said.digest()
            if kind in self._seen:
                self.again += work.needed(row)
            else:
                self._seen.add(kind)
                self.needed += work.needed(row)

    def since(self, before: Account) -> Account:
        """What was added after `before`, a copy made then."""
        return Account(
            self.needed - before.needed, self.again - before.again, self.done - before.done
        )

    def now(self) -> Account:
        """A copy of the numbers."""
        return Account(self.needed, self.again, self.done)


ACCOUNT = Account()  # of this process
