"""Reads a config of a foreign format key by key, and remembers which keys were read.

`HFKeys` (hf_keys.py), `GGUFKeys` (gguf_keys.py) and `MetaKeys` (meta.py) add what the formats have
of their own. Each ends with `finish`, which refuses a key that was not read and may change what the
model computes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from taskvec_jax.errors import TaskVecError

_log = logging.getLogger(__name__)


@functools.cache
def note(where: str, keys: tuple[str, ...], reader: str) -> None:
    """Warns, once for each file, which keys were ignored."""
    _log.warning("%s: %s does not read %s; passed over", where, reader, ", ".join(keys))


def shown(value: Any) -> str:
    """A value as a message shows it."""
    return "null" if value is None else repr(str(value)[:80])


class KeyReader:
    """A raw config that remembers which keys were read.

    Attributes:
      where: the file, for messages.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._raw = raw
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the key is there, perhaps as null."""
        return key in self._raw

    def was_read(self, key: str) -> bool:
        """Whether somebody has asked for the key."""
        return key in self._read

    def is_null(self, key: str) -> bool:
        """Whether the key is there, as null."""
        return key in self._raw and self._raw[key] is None

    def get(self, key: str, kind: type, default: Any, *, null: bool = False) -> Any:
        """The value of a key, or the default where it is absent.

        Args:
          null: whether null, too, stands for the default; transformers refuses it elsewhere.

        Raises:
          TaskVecError: the value is not of the kind.
        """
        self._read.add(key)
        value = self._raw.get(key)
        if value is None and (null or key not in self._raw):
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 1 << 53 else math.inf
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise TaskVecError(
                f"{self.where}: {key} is {shown(value)}; it must be of type {kind.__name__}"
            )
        return value

    def need(self, key: str, kind: type) -> Any:
        """The value of a key that must be there."""
        if self._raw.get(key) is None:
            raise TaskVecError(f"{self.where}: {key} is missing; the file is not complete")
        return self.get(key, kind, None)

    def need_size(self, key: str) -> int:
        """A whole number above 0 that must be there."""
        return self._size(key, self.need(key, int))

    def get_size(self, key: str, default: int, *, null: bool = False) -> int:
        """A whole number above 0, or the default."""
        return self._size(key, self.get(key, int, default, null=null))

    def _size(self, key: str, value: int) -> int:
        if value < 1:
            raise TaskVecError(f"{self.where}: {key} is {value}; it must be above 0")
        return value

    def require(self, key: str, default: Any, allowed: Iterable[Any]) -> Any:
        """The value of a key of which only some values are supported."""
        self._read.add(key)
        value = self._raw.get(key, default)
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            raise TaskVecError(
                f"{self.where}: {key} is {shown(value)}, which is not supported; allowed:"
                f" {', '.join(map(repr, allowed))}"
            )
        return value

    def agree(self, key: str, used: float) -> None:
        """Refuses a number that says something else than the one that is used.

        Raises:
          TaskVecError: it is another one.
        """
        if (value := self.get(key, float, used, null=True)) != used:
            raise TaskVecError(
                f"{self.where}: {key} is {value}, but {used} is what transformers computes with;"
                " remove the key, or correct it"
            )
