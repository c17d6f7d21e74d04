"""Where the parts of a prompt stand among its tokens, found by characters: tokens may straddle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.prompting.tokenizer import Tokenizer

Span = tuple[int, int]  # first character, and the one after the last


class Places(NamedTuple):
    """Token indices in an in-context prompt, demonstrations in order.

    Attributes:
      arrows: the last token of each demonstration's arrow.
      outputs: the last token of each demonstration's output.
      query: first token of the query's line; a token that straddles the line break is the first.
      template: the tokens of the query's line that are the template's: its prefix and its arrow,
        the last token of the prompt.
    """

    arrows: list[int]
    outputs: list[int]
    query: int
    template: list[int]


def token_at(spans: Sequence[Span], character: int) -> int:
    """Index of the token that holds a character of the text.

    Raises:
      TaskVecError: none does.
    """
    for index, (first, stop) in enumerate(spans):
        if first <= character < stop:
            return index
    raise TaskVecError(f"no token holds character {character} of a prompt")


def find_places(tokenizer: Tokenizer, prompt: Prompt) -> Places:
    """The places of a prompt with its own query (`Prompt.icl`)."""
    spans = [span for _, _, span in tokenizer.pieces(prompt.icl())]
    template = prompt.template
    arrows, outputs, start = [], [], len(template.header)
    for pair in prompt.demonstrations:
        arrow = start + len(template.ask(pair.input)) - 1
        arrows.append(token_at(spans, arrow))
        outputs.append(token_at(spans, arrow + len(pair.output)))
        start += len(template.show(pair.input, pair.output)) + len(template.separator)
    query = next(i for i, (_, stop) in enumerate(spans) if stop > start)
    prefix = [i for i in range(query, len(spans)) if spans[i][1] <= start + len(template.before)]
    return Places(arrows, outputs, query, [*prefix, len(spans) - 1])
