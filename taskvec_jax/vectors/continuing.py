"""Next tokens of many texts that begin alike; each beginning is run once and kept on the host.

Shapes: N texts, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from taskvec_jax.distributed.sharding import put_rows
from taskvec_jax.transformer.checks import check_logits, check_range, check_texts
from taskvec_jax.vectors.account import Work
from taskvec_jax.vectors.batching import Loaded, fill_up, round_up, run_in_chunks
from taskvec_jax.vectors.beginnings import NOWHERE, Kept, after_beginnings, read_beginnings
from taskvec_jax.vectors.flops import following_flops, row_flops, text_flops
from taskvec_jax.vectors.rows import pad_rows

MOST_ROWS, MOST_TOKENS = 64, 2048  # of a call
SHORT, SHORT_STEP, STEP = 16, 4, 16  # beginnings are padded to 4, 8, 12, 16, 32, 48 ... tokens
NEW_STEP, LONG_NEW_STEP = 2, 8  # what follows them to 2, 4 ... 16, 24, 32 ...
MOST_KEPT = 64 * 2**20  # bytes of beginnings that are kept between calls

Beginning = tuple[int, ...]


class Beginnings:
    """The keys and values of beginnings of texts, for one model."""

    def __init__(self, model: Loaded) -> None:
        """Starts with the empty one, which nothing has to be run for."""
        self._model = model
        one = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
        shapes = jax.eval_shape(
            functools.partial(read_beginnings, model.config), model.params, *one
        )
        empty = {
            site: np.zeros((leaf.shape[1], 0, *leaf.shape[3:]), leaf.dtype)
            for site, leaf in shapes.items()
        }
        self._kept: dict[Beginning, Kept] = {(): empty}

    def next_tokens(
        self,
        beginnings: Sequence[Sequence[int]],
        rest: Sequence[Sequence[int]],
        vectors: np.ndarray,
        layers: Sequence[int] | np.ndarray,
    ) -> np.ndarray:
        """The most likely next token of each text.

        Args:
          beginnings: token ids of N beginnings, which may repeat and may be empty.
          rest: the tokens that follow them, at least one each.
          vectors: [N, D], written over the first token of the rest.
          layers: int [N], the layer after which each vector replaces the residual stream; or
            `NOWHERE`: nothing is written.

        Returns:
          int32 [N], ties to the lowest id.

        Raises:
          TaskVecError: texts that the model cannot read, a layer out of range, or logits that are
            not finite.
        """
        config = self._model.config
        texts = [[*begin, *more] for begin, more in zip(beginnings, rest, strict=True)]
        check_texts(config, texts)
        at = np.asarray(layers, np.int32)
        check_range("layer", at[at != NOWHERE], config.num_layers)
        vectors = np.asarray(vectors)
        asked = [tuple(begin) for begin in beginnings]
        lengths = [len(begin) for begin in asked]
        self.read(asked)
        longest = max(map(len, rest))
        count = round_up(longest, NEW_STEP if longest <= SHORT else LONG_NEW_STEP)
        tokens, logits = np.empty(len(texts), np.int32), np.empty(len(texts), np.float32)

        def call(chunk: list[int], size: int) -> tuple[jax.Array, ...]:
            filled = fill_up(chunk, size)
            new, last = pad_rows([rest[i] for i in filled], count)
            padded = self._padded(max(lengths[i] for i in chunk))
            kept = _together([self._kept[asked[i]] for i in filled], padded)
            of_rows = np.array([lengths[i] for i in filled], np.int32)
            inputs = put_rows(
                self._model.mesh, (kept, of_rows, new, last, vectors[filled], at[filled])
            )
            return after_beginnings(config, self._model.params, *inputs)

        def keep(chunk: list[int], found: tuple[Any, ...]) -> None:
            tokens[chunk], logits[chunk] = (values[: len(chunk)] for values in found)

        work = Work(
            lambda i: following_flops(config, lengths[i], len(rest[i])),
            lambda i: (texts[i], lengths[i], vectors[i], at[i]),
            lambda longest: following_flops(config, self._padded(longest), count, masked=True),
        )
        rows = _rows(len(texts), self._padded(max(lengths)) + count)
        run_in_chunks("continuing answers", self._model, lengths, rows, call, keep, work)
        check_logits(logits)
        self._forget(set(asked))
        return tokens

    def read(self, texts: Sequence[Sequence[int]]) -> None:
        """Reads the beginnings that are not kept; long ones together with those of their length."""
        by_length: dict[int, list[Beginning]] = {}
        for text in dict.fromkeys(map(tuple, texts)):
            if text not in self._kept:
                by_length.setdefault(max(SHORT, self._padded(len(text))), []).append(text)
        for _, several in sorted(by_length.items()):
            self._read_alike(several)

    def _read_alike(self, texts: list[Beginning]) -> None:
        config, lengths = self._model.config, [len(text) for text in texts]

        def call(chunk: list[int], size: int) -> Kept:
            filled = fill_up(chunk, size)
            length = self._padded(max(lengths[i] for i in chunk))
            tokens, last = pad_rows([texts[i] for i in filled], length)
            inputs = put_rows(self._model.mesh, (tokens, last + np.int32(1)))
            return read_beginnings(config, self._model.params, *inputs)

        def keep(chunk: list[int], kept: dict[str, np.ndarray]) -> None:
            for row, i in enumerate(chunk):
                self._kept[texts[i]] = {
                    site: np.array(values[row, :, : lengths[i]]) for site, values in kept.items()
                }

        work = Work(
            lambda i: text_flops(config, lengths[i]),
            lambda i: (texts[i],),
            lambda longest: row_flops(config, self._padded(longest), config.num_layers, 0),
        )
        rows = _rows(len(texts), self._padded(max(lengths)))
        run_in_chunks("reading beginnings", self._model, lengths, rows, call, keep, work)

    def _padded(self, tokens: int) -> int:
        """What a beginning of so many tokens is padded to."""
        step = SHORT_STEP if tokens <= SHORT else STEP
        return min(max(step, round_up(tokens, step)), self._model.config.max_length)

    def _forget(self, used: set[Beginning]) -> None:
        """Lets go of beginnings, the longest unused ones first, until few bytes are kept."""
        sizes = {text: sum(v.nbytes for v in kept.values()) for text, kept in self._kept.items()}
        left = sum(sizes.values())
        for text in sorted(self._kept, key=lambda text: (not text, text in used, -len(text))):
            if left <= MOST_KEPT or not text:
                break
            left -= sizes[text]
            del self._kept[text]


def _rows(count: int, tokens: int) -> int:
    """The rows of a call for `count` texts of up to `tokens` tokens; few sizes are compiled."""
    fitting = max(1, MOST_TOKENS // tokens)
    return min(MOST_ROWS, 1 << (fitting.bit_length() - 1), max(4, 1 << (count - 1).bit_length()))


def _together(several: Sequence[Kept], length: int) -> Kept:
    """Beginnings padded to one length: [B, L, T, G, K] each."""

    def stacked(site: str) -> np.ndarray:
        first = several[0][site]
        out = np.zeros((len(several), first.shape[0], length, *first.shape[2:]), first.dtype)
        for row, kept in zip(out, several, strict=True):
            row[:, : kept[site].shape[1]] = kept[site]
        return out

    return {site: stacked(site) for site in several[0]}
