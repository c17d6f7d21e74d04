"""Where a continuation ends, as text: what new ids add to a prompt, and where a stop string is."""

from __future__ import annotations

from collections.abc import Sequence

from taskvec_jax.prompting.tokenizer import Tokenizer


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text that new ids add. Decoded behind the prompt: some tokenizers drop the space before
    the first word of what they decode."""
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode([*prompt, *ids])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids)


def end_of(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string of a text begins."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


def before_stop(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: list[int], stops: Sequence[str]
) -> list[int]:
    """The longest beginning of new ids whose text has no stop string."""
    if end_of(continuation(tokenizer, prompt, ids), stops) is None:
        return ids
    return next(
        ids[: n - 1]
        for n in range(1, len(ids) + 1)
        if end_of(continuation(tokenizer, prompt, ids[:n]), stops) is not None
    )
