"""Text -> tokens [B, T] and last [B]; the one place that decides BOS, padding and the arrow.

BOS is put where the model's own tokenizer puts it by default: its tokenizer.json says so, or the
tokenizer_config.json beside its tokenizer.model.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from taskvec_jax.errors import TaskVecError, short_repr
from taskvec_jax.prompting.backend import (
    FILE,
    Backend,
    one_line_errors,
    read_tokenizer_json,
    unknown_token,
)
from taskvec_jax.prompting.checks import check_row, check_texts, is_row
from taskvec_jax.prompting.sentencepieces import (
    CONFIG,
    MODEL,
    Encoded,
    SentencePieces,
    read_sentencepieces,
)

ARROW = "->"
# Tokens with which models end a text or a turn, as their tokenizers spell them.
ENDS = (
    *("</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>"),
    *("<eos>", "<end_of_turn>", "<|end|>", "<|END_OF_TURN_TOKEN|>"),
)
PAD = 0  # any id does: right padding is invisible under the causal mask
FEW = 8  # below this many texts, reading them one by one is faster than by several threads


class Tokenizer:
    """A model's tokenizer.

    Attributes:
      sha256: hash of the tokenizer's definition.
      num_rows: rows of the model's embedding; None: not known, and no id is refused.
      unknown: id of the token that stands for text the vocabulary cannot spell; None: it has none.
    """

    def __init__(self, backend: Backend, num_rows: int | None = None) -> None:
        if isinstance(backend, SentencePieces):
            says = json.dumps(backend.settings(), sort_keys=True).encode()
            definition = backend.model + says
        else:
            backend.no_padding()
            backend.no_truncation()
            definition = backend.to_str().encode()
        self._backend, self.num_rows = backend, num_rows
        self.sha256 = hashlib.sha256(definition).hexdigest()
        self.unknown = unknown_token(backend)

    @classmethod
    def from_file(cls, path: Path, num_rows: int | None = None) -> Tokenizer:
        """Reads a tokenizer.json.

        Raises:
          TaskVecError: the file is missing or not a tokenizer.
        """
        return cls(read_tokenizer_json(path), num_rows)

    @classmethod
    def from_directory(cls, directory: Path, num_rows: int | None = None) -> Tokenizer:
        """Reads what `save` wrote.

        Raises:
          TaskVecError: there is no tokenizer, or it is damaged.
        """
        if (directory / MODEL).is_file() and not (directory / FILE).is_file():
            return cls(read_sentencepieces(directory / MODEL), num_rows)
        return cls.from_file(directory / FILE, num_rows)

    def save(self, directory: Path) -> None:
        """Writes the tokenizer in the form it came in, as transformers names the files.

        A tokenizer.json, or a tokenizer.model; and a tokenizer_config.json beside it.
        """
        if isinstance(self._backend, SentencePieces):
            (directory / MODEL).write_bytes(self._backend.model)
            settings, other = self._backend.settings(), FILE
        else:
            self._backend.save(str(directory / FILE))
            settings, other = {"tokenizer_class": "PreTrainedTokenizerFast"}, MODEL
        (directory / other).unlink(missing_ok=True)  # of an older model
        (directory / CONFIG).write_text(json.dumps(settings) + "\n")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size()

    @property
    def ends(self) -> list[int]:
        """Ids of the special tokens that end a text, found by their names (`ENDS`): a
        tokenizer.json does not say which they are."""
        special = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        found = [self._backend.token_to_id(name) for name in ENDS if name in special]
        return [token for token in found if token is not None]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the model's own BOS.

        Raises:
          TaskVecError: the tokenizer cannot read the text, or the model has no row for a token.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids of many texts, with the model's own BOS.

        Raises:
          TaskVecError: the tokenizer cannot read a text, or the model has no row for a token.
        """
        texts = check_texts(texts)
        if len(texts) < FEW:
            rows = [self._encoding(text).ids for text in texts]
        else:
            try:
                with one_line_errors(f"the tokenizer cannot read one of {len(texts)} texts"):
                    encodings = self._backend.encode_batch_fast(texts)
            except TaskVecError:
                encodings = [self._encoding(text) for text in texts]  # which names the text
            rows = [encoding.ids for encoding in encodings]
        if self.num_rows is not None:
            for text, ids in zip(texts, rows, strict=True):
                if ids and max(ids) >= self.num_rows:
                    raise self._beyond(text, next(i for i in ids if i >= self.num_rows))
        return rows

    def _beyond(self, text: str, token: int) -> TaskVecError:
        name = next((t for t, i in self._backend.get_vocab().items() if i == token), "")
        return TaskVecError(
            f"the text {short_repr(text)} holds the token {name!r} (id {token}), for which this"
            f" model has no embedding: it has rows 0 to {(self.num_rows or 0) - 1}; leave it out"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out.

        Raises:
          TaskVecError: not a list of ids; a single id, for example.
        """
        check_row(ids)
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

    def spells(self, text: str, ids: Sequence[int] | None = None) -> bool:
        """Whether a text comes back from its tokens as it was, the unknown token not among them.

        A tokenizer.json without a decoder does not say how tokens become text; they are joined.

        Args:
          ids: what `encode` gives for the text, where that is known.

        Raises:
          TaskVecError: the tokenizer cannot read the text, or the model has no row for a token.
        """
        ids = self.encode(text) if ids is None else ids
        before, after = self._around
        plain = list(ids)[before : len(ids) - after]
        if self.unknown in plain:
            return False
        if isinstance(self._backend, SentencePieces):
            return self.decode(plain) == text
        if self._backend.decoder is not None:
            whole = self._backend.decode(plain, skip_special_tokens=False)  # typed special tokens
            return text in (self.decode(plain), whole)
        return "".join(self._backend.id_to_token(i) or "" for i in plain) == text

    @functools.cached_property
    def _around(self) -> tuple[int, int]:
        """How many tokens, such as BOS and EOS, are put before and after every text."""
        mask = self._encoding(ARROW).special_tokens_mask
        inner = [i for i, special in enumerate(mask) if not special]
        return (inner[0], len(mask) - 1 - inner[-1]) if inner else (len(mask), 0)

    def appended(self) -> str:
        """The token that is put after every text, such as EOS; empty if none is."""
        return self._encoding(ARROW).tokens[-1] if self._around[1] else ""

    def _encoding(self, text: str) -> tokenizers.Encoding | Encoded:
        with one_line_errors(f"the tokenizer cannot read the text {short_repr(text)}"):
            return self._backend.encode(text)

    def pieces(self, text: str) -> list[tuple[int, str, tuple[int, int]]]:
        """(id, token, (start, end) characters of the text) of every token, to show a prompt."""
        encoding = self._encoding(text)
        return list(zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True))

    def ends_in(self, text: str, cue: str) -> bool:
        """Whether a text ends in `cue`, and its last token holds nothing from before the cue.

        Theta is read and written at that token: one that straddles the cue (the arrow) and the
        query would carry the query too.
        """
        start, end = (self.pieces(text) or [(0, "", (0, 0))])[-1][2]
        first = len(text) - len(cue)
        return text.endswith(cue) and first <= start < end == len(text)

    def continuation(self, prompt: str, answer: str) -> list[int]:
        """The tokens that `answer` adds after `prompt`; empty if the prompt's own tokens change."""
        before, after = self.encode_all([prompt, prompt + answer])
        return after[len(before) :] if after[: len(before)] == before else []

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Right-pads token rows.

        Returns:
          tokens int32 [B, T] and last int32 [B], the index of each row's last token.

        Raises:
          TaskVecError: no rows, an empty one, or something that is no row of ids; a flat list of
            ids, for example.
        """
        if not is_row(rows):
            raise TaskVecError(
                f"rows is {short_repr(rows)}; it must be a list of rows of token ids"
            )
        for row in rows:
            check_row(row)
        if not len(rows) or not all(len(row) for row in rows):
            raise TaskVecError("there is no text to tokenize; every prompt needs a token")
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.full((len(rows), lengths.max()), PAD, np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths - 1
