"""How values are shown in messages."""

from __future__ import annotations

from typing import Any

MOST_CHARACTERS = 60


def short_repr(value: Any) -> str:
    """The beginning of a value's repr, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
