# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""Questions about a value of any type whose answer a type checker understands.

`isinstance(value, dict)` leaves the types of keys and values unknown; these say `Any`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard


def is_mapping(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a mapping, such as an object of a JSON file."""
    return isinstance(value, Mapping)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether a value is a list."""
    return isinstance(value, list)


def is_series(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether a value is a list or a tuple."""
    return isinstance(value, list | tuple)
