"""Text -> (tokens [B, T], last [B]); the one place that decides BOS, padding and the arrow.

BOS is put where the model's own tokenizer puts it by default: its tokenizer.json says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from taskvec_jax.errors import TaskVecError

ARROW = "->"
# Tokens with which models end a text or a turn, as their tokenizers spell them.
ENDS = (
    *("</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>"),
    *("<eos>", "<end_of_turn>", "<|end|>", "<|END_OF_TURN_TOKEN|>"),
)
PAD = 0  # any id does: right padding is invisible under the causal mask


class Tokenizer:
    """A model's tokenizer.

    Attributes:
      sha256: hash of the tokenizer's definition.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.sha256 = hashlib.sha256(backend.to_str().encode()).hexdigest()

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a tokenizer.json.

        Raises:
          TaskVecError: the file is missing or not a tokenizer.
        """
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise TaskVecError(f"{path}: not a tokenizer.json ({error})") from None

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json that `from_file` reads."""
        self._backend.save(str(path))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; at most V of the decoder."""
        return self._backend.get_vocab_size()

    @property
    def ends(self) -> list[int]:
        """Ids of the special tokens that end a text, found by their names (`ENDS`): a
        tokenizer.json does not say which they are."""
        special = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        found = [self._backend.token_to_id(name) for name in ENDS if name in special]
        return [token for token in found if token is not None]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the model's own BOS."""
        return self._backend.encode(text).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, with the model's own BOS."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """The text of one token inside a text, its leading space kept; a special token's name."""
        name = self._backend.id_to_token(token)
        if name is None:
            return ""
        plain = self.decode([token])
        if not plain:
            return name if not self.decode([token, token]) else " "
        twice = self.decode([token, token])
        return twice[len(plain) :] if twice.startswith(plain) else plain

    def decode_answer(self, token: int) -> str:
        """One predicted token as an answer: decoded, cut at a newline, stripped (paper's code)."""
        return self.decode([token]).split("\n")[0].strip()

    def pieces(self, text: str) -> list[tuple[int, str, tuple[int, int]]]:
        """(id, token, (start, end) characters of the text) of every token, to show a prompt."""
        encoding = self._backend.encode(text)
        return list(zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True))

    def ends_in_arrow(self, text: str) -> bool:
        """Whether the last token holds the end of the arrow and nothing from before it.

        Theta is read and written at that token: one that straddles the arrow and the query would
        carry the query too.
        """
        start, end = self.pieces(text)[-1][2]
        return text.endswith(ARROW) and end == len(text) and start >= len(text) - len(ARROW)

    def continuation(self, prompt: str, answer: str) -> list[int]:
        """The tokens that `answer` adds after `prompt`; empty if the prompt's own tokens change."""
        before, after = self.encode_all([prompt, prompt + answer])
        return after[len(before) :] if after[: len(before)] == before else []

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Right-pads token rows.

        Returns:
          tokens int32 [B, T] and last int32 [B], the index of each row's last token.

        Raises:
          TaskVecError: no rows, or an empty one.
        """
        if not rows or not all(rows):
            raise TaskVecError("there is no text to tokenize; every prompt needs a token")
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.full((len(rows), lengths.max()), PAD, np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths - 1
