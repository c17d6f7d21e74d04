"""Tokenizers that come as a sentencepiece model (tokenizer.model), read by sentencepiece itself.

So everything in the file (user-defined pieces, where the dummy prefix goes, the compiled
normaliser, unigram or BPE, ties between scores) has the meaning that its authors gave it. Whether a
text begins with BOS or ends in EOS is not in the file, but in tokenizer_config.json beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
from tokenizers import AddedToken

from taskvec_jax.errors import TaskVecError, first_line

MODEL, CONFIG = "tokenizer.model", "tokenizer_config.json"
MAX_BYTES = 64 << 20


class Encoded(NamedTuple):
    """One text; the fields have the names that the tokenizers library gives them.

    Attributes:
      ids: of the tokens, BOS and EOS included.
      tokens: their pieces.
      offsets: (start, end) characters of the text that each token stands for.
      special_tokens_mask: 1 for the BOS and EOS that were put around the text, else 0.
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


class SentencePieces:
    """A sentencepiece model, with the methods of `tokenizers.Tokenizer` that this project calls."""

    def __init__(self, model: bytes, bos: int | None, eos: int | None, where: str) -> None:
        """Reads a model.

        Args:
          model: the bytes of a tokenizer.model.
          bos, eos: ids that are put before and after every text; None: nothing is.
          where: the file's name, for messages.

        Raises:
          TaskVecError: it is not a sentencepiece model, or has no such BOS or EOS.
        """
        self.model, self.bos, self.eos = model, bos, eos
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except Exception as error:  # RuntimeError, whatever is wrong
            raise TaskVecError(
                f"{where}: not a whole sentencepiece model ({first_line(error)}); fetch it again,"
                " or put a tokenizer.json beside it"
            ) from None
        for name, token in (("BOS", bos), ("EOS", eos)):
            if token is not None and not (type(token) is int and 0 <= token < self._size):
                raise TaskVecError(
                    f"{where}: its {name} token is {token!r}, not one of {self._size} tokens"
                )

    @property
    def _size(self) -> int:
        return self._processor.piece_size()

    @property
    def unknown(self) -> int:
        """Id of the piece that stands for what the vocabulary cannot spell."""
        return self._processor.unk_id()

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        """A text's tokens, between BOS and EOS where those are wanted."""
        found: Any = self._processor.encode(text, return_type="offset_mapping")
        before = [self.bos] if add_special_tokens and self.bos is not None else []
        after = [self.eos] if add_special_tokens and self.eos is not None else []
        piece, count = self._processor.id_to_piece, len(found["ids"])
        return Encoded(
            [*before, *found["ids"], *after],
            [*map(piece, before), *found["pieces"], *map(piece, after)],
            [*[(0, 0)] * len(before), *map(tuple, found["offsets"]), *[(0, 0)] * len(after)],
            [1] * len(before) + [0] * count + [1] * len(after),
        )

    def encode_batch_fast(self, texts: Sequence[str]) -> list[Encoded]:
        """Many texts' tokens."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids without a piece are left out, as special tokens are."""
        known, size = self._processor, self._size
        kept = [int(i) for i in ids if 0 <= i < size]
        if skip_special_tokens:
            kept = [i for i in kept if not (known.is_control(i) or known.is_unknown(i))]
        return str(known.decode(kept))

    def get_vocab(self) -> dict[str, int]:
        """Piece -> id."""
        return {self._processor.id_to_piece(i): i for i in range(self._size)}

    def get_vocab_size(self) -> int:
        """Number of pieces."""
        return self._size

    def token_to_id(self, token: str) -> int | None:
        """Id of a piece; None: there is no such piece."""
        found = self._processor.piece_to_id(token)
        return found if self.id_to_token(found) == token else None  # unknown ones get `unknown`

    def id_to_token(self, token: int) -> str | None:
        """The piece of an id; None: there is no such id."""
        return self._processor.id_to_piece(token) if 0 <= token < self._size else None

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> piece of those that no text becomes: control pieces, such as EOS, and unused ones.

        The tokenizers library calls such tokens special.
        """
        known = self._processor
        return {
            token: AddedToken(known.id_to_piece(token), special=True)
            for token in range(self._size)
            if known.is_control(token) or known.is_unused(token)
        }

    def settings(self) -> dict[str, Any]:
        """What tokenizer_config.json has to say beside the model, for `read_sentencepieces`."""
        out: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.bos is not None,
            "add_eos_token": self.eos is not None,
        }
        for name, token in (("bos_token", self.bos), ("eos_token", self.eos)):
            if token is not None:
                out[name] = self._processor.id_to_piece(token)
        return out

    def special(self, name: str) -> int | None:
        """Id of the model's own "bos" or "eos" piece; None: it has none."""
        token = self._processor.bos_id() if name == "bos" else self._processor.eos_id()
        return token if token >= 0 else None


def read_sentencepieces(path: Path, add_bos: bool = True) -> SentencePieces:
    """Reads a tokenizer.model and what the tokenizer_config.json beside it adds.

    `add_bos_token` and `add_eos_token` there say what is put around every text, `bos_token` and
    `eos_token` which pieces these are; left out, they are the model's own.

    Args:
      path: the tokenizer.model.
      add_bos: whether BOS is put before a text where tokenizer_config.json says nothing, as
        LLaMA's is.

    Raises:
      TaskVecError: a file is missing or damaged, or the token that is to be added is no piece.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TaskVecError(
                f"{path}: not a whole sentencepiece model ({path.stat().st_size} bytes; allowed:"
                f" {MAX_BYTES}); fetch it again, or put a tokenizer.json beside it"
            )
        data = path.read_bytes()
    except OSError as error:
        raise TaskVecError(f"{path}: cannot be read ({error.strerror})") from None
    config = path.with_name(CONFIG)
    settings = read_settings(config)
    plain = SentencePieces(data, None, None, str(path))
    added: dict[str, int | None] = {}
    for name, default in (("bos", add_bos), ("eos", False)):
        wanted = flag(settings, f"add_{name}_token", config)
        added[name] = None
        if wanted or (wanted is None and default):
            added[name] = _piece(plain, settings, name, config)
            if wanted and added[name] is None:
                raise TaskVecError(
                    f"{config}: add_{name}_token is true, but neither it nor {path.name} names a"
                    f" {name.upper()} token; name it as {name}_token there"
                )
    return SentencePieces(data, added["bos"], added["eos"], str(path))


def _piece(model: SentencePieces, settings: dict[str, Any], name: str, config: Path) -> int | None:
    """Id of the piece that tokenizer_config.json calls BOS or EOS, else of the model's own."""
    text = token_text(settings.get(f"{name}_token"))
    if text is None:
        return model.special(name)
    found = model.get_vocab().get(text)
    if found is None:
        raise TaskVecError(
            f"{config}: {name}_token is {text[:80]!r}, not one of the {model.get_vocab_size()}"
            f" pieces of {MODEL}; name one of them, or set add_{name}_token to false"
        )
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """The tokenizer_config.json at a path; nothing where there is none.

    Raises:
      TaskVecError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise TaskVecError(
            f"{path}: cannot be read ({first_line(error)}); fetch it again"
        ) from None
    return found


def flag(settings: dict[str, Any], name: str, path: Path) -> bool | None:
    """A setting that is true or false; None where it is absent.

    Raises:
      TaskVecError: it is something else.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise TaskVecError(f"{path}: {name} is {str(value)[:80]!r}; allowed: true, false")
    return value


def token_text(value: Any) -> str | None:
    """The text of a token of tokenizer_config.json: a string, or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
