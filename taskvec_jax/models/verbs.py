# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""What one does with a model in a notebook: read, edit, generate, sweep.

>>> texts = ["example:d->", "example:h->"]
>>> model.read(texts).shape, model.read(texts, site="head", layers=[1, 4]).shape
((2, 6, 128), (2, 2, 4, 32))
>>> [(token, round(share, 2)) for token, share in model.top("example:d->", 2)[0]]
[('e', 0.87), ('10', 0.13)]
>>> model.sweep(texts, model.read("example:t->")[0], answers=["e", "i"]).logprob.shape
(2, 6)

A text is a string, which is tokenized with the model's own BOS, or a list of token ids, which is
taken as it is; a single text is as welcome as a list of them. Texts are grouped into batches of
few shapes: a call compiles once for each, and then costs what the arithmetic costs.
Shapes: N texts, P positions, n layers read, L layers, D width, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.batches import Batch, batches, resized
from taskvec_jax.models.endings import before_stop, continuation, end_of
from taskvec_jax.models.generating import generate
from taskvec_jax.models.sweeping import Sweep, first_tokens, sweep
from taskvec_jax.narrowing import is_series
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.checks import check_texts
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params
from taskvec_jax.transformer.edits import ALL, as_index
from taskvec_jax.transformer.generation import Layers, split_layers
from taskvec_jax.transformer.reading import read_sites
from taskvec_jax.transformer.writes import resolve

SPLIT_BYTES = 4_000_000_000  # the largest layers that are held twice to generate faster
Text = str | Sequence[int]
Texts = Text | Sequence[Text]


class Verbs:
    """The methods of a `Model`, on what its attributes hold."""

    name: str
    decoder: Decoder
    params: Params
    tokenizer: Tokenizer
    config: DecoderConfig
    weights_sha256: str
    mesh: Mesh | None

    def __repr__(self) -> str:
        c = self.config
        where = "one device" if self.mesh is None else f"mesh {dict(self.mesh.shape)}"
        return (
            f"Model({self.name!r}: {c.family}, {c.num_layers} layers, width {c.width},"
            f" {c.num_heads} heads, {c.vocab_size} tokens, {c.dtype} on {where})\n"
            f"  verbs: read, logits, top, generate, sweep, lens; weights {self.weights_sha256[:12]}"
        )

    def read(
        self,
        texts: Texts,
        *,
        site: str = "resid",
        layers: Any = None,
        positions: Any = -1,
        edits: Any = (),
    ) -> Float[np.ndarray, "N ..."]:
        """What stands at a site of the model while it reads texts.

        Args:
          texts: N of them.
          site: "resid", "attn_out", "mlp_out", "head" or "pattern" (see reading.py).
          layers: an int or a list, 0-based; None: all L.
          positions: an int, negative from the end of each text, or an int array [N]: one a text; a
            list or an array [N, P]: several; "all": all, with NaN beyond the end of a text.
          edits: what is written meanwhile (see edits.py).

        Returns:
          float32 [N, n, D] for one position a text, [N, P, n, D] for several; H x K in place of D
          at the site "head", and H x T at the site "pattern", where T is the longest text's.

        Raises:
          TaskVecError: an unknown site, indices out of range, or texts that cannot be read.
        """
        rows = self._ids(texts)
        check_texts(self.config, rows)
        lengths = np.array([len(row) for row in rows], np.int32)
        longest = int(lengths.max())
        everywhere = positions is None or (isinstance(positions, str) and positions == ALL)
        where = None if everywhere else as_index("positions", positions)
        of_texts = False
        if where is not None:
            of_texts = where.ndim >= 1 and len(where) == len(rows)
            resolve("positions", where, longest, len(rows), lengths)

        def call(batch: Batch) -> jax.Array:
            return read_sites(
                self.config,
                self.params,
                batch.tokens,
                batch.lengths,
                site=site,
                layers=layers,
                positions=where[batch.filled] if where is not None and of_texts else where,
                edits=batch.edits,
            )

        parts = dict(self._each(rows, edits, call))
        width = longest if site == "pattern" else None
        return np.stack(
            [resized(parts[i], longest if everywhere else None, width) for i in range(len(rows))]
        )

    def logits(self, texts: Texts, *, edits: Any = ()) -> Float[np.ndarray, "N V"]:
        """Logits at the last token of each text, float32 [N, V].

        Raises:
          TaskVecError: edits that do not fit, or texts that cannot be read.
        """
        return self._at_the_end(_last_logits, texts, edits)

    def top(self, texts: Texts, k: int = 10, *, edits: Any = ()) -> list[list[tuple[str, float]]]:
        """The k most likely next tokens of each text: (text of the token, probability).

        Raises:
          TaskVecError: as `logits`, or a k that is not from 1 to V.
        """
        if not 1 <= k <= self.config.vocab_size:
            raise TaskVecError(f"k is {k}; allowed: 1 to {self.config.vocab_size}")
        out: list[list[tuple[str, float]]] = []
        for row in self.logits(texts, edits=edits).astype(np.float64):
            best = np.argsort(-row, kind="stable")[:k]
            weights = np.exp(row - row.max())
            shares = weights[best] / weights.sum()
            pieces = [self.tokenizer.piece(token) for token in best.tolist()]
            out.append(list(zip(pieces, shares.tolist(), strict=True)))
        return out

    def lens(self, texts: Texts, *, edits: Any = ()) -> Float[np.ndarray, "N L V"]:
        """The logit lens: the residual stream after every layer at the last token of each text,
        through the final norm and the unembedding. Logits, float32 [N, L, V].

        Raises:
          TaskVecError: edits that do not fit, or texts that cannot be read.
        """
        return self._at_the_end(_lens, texts, edits)

    def generate(
        self,
        texts: Texts,
        *,
        max_new_tokens: int = 20,
        edits: Any = (),
        edit: str = "prompt",
        temperature: float = 0.0,
        rng: Any = None,
        stop: str | Sequence[str] | None = None,
        return_ids: bool = False,
    ) -> list[Any]:
        """Continuations of texts, without the texts themselves.

        A text ends at a token that ends texts (`Tokenizer.ends`), which is left out, before a
        string of `stop`, or after `max_new_tokens`. Special tokens are left out of strings.

        Args:
          edits, edit, temperature, rng: see `generating.generate`.
          stop: a string or several.
          return_ids: give lists of token ids; with `stop`, as many as spell no stop string.

        Raises:
          TaskVecError: as `generating.generate`.
        """
        rows = self._ids(texts)
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if not all(isinstance(one, str) and one for one in stops):
            raise TaskVecError(
                f"stop is {stop!r}; allowed: a string or several, none of them empty"
            )

        def done(number: int, ids: list[int]) -> bool:
            return end_of(continuation(self.tokenizer, rows[number], ids), stops) is not None

        made = generate(
            self.config,
            self.params,
            rows,
            max_new_tokens=max_new_tokens,
            edits=self._own(edits),
            edit=edit,
            temperature=temperature,
            rng=rng,
            eos=self.tokenizer.ends,
            watch=done if stops else None,
            mesh=self.mesh,
            layers=self._split,
        )
        if return_ids:
            both = zip(rows, made, strict=True)
            return [before_stop(self.tokenizer, row, ids, stops) for row, ids in both]
        written = map(functools.partial(continuation, self.tokenizer), rows, made)
        return [text[: end_of(text, stops)] for text in written]

    def sweep(self, queries: Texts, theta: Any, *, answers: Any = None) -> Sweep:
        """What the model says when a vector is written over the last token of each query after
        each of its layers, all layers in one pass (see vectors/sweep.py).

        Args:
          queries: N texts.
          theta: [L, D], one vector for each layer, or [N, L, D], one for each query too, as `read`
            gives them; or a `TaskVector` of all layers.
          answers: for each query a string as it would be written right after it (its first token
            counts), a token id, or a list of these of which any is right; None: not scored.

        Returns:
          `tokens` [N, L], `untouched` [N] and, with answers, `logprob` [N, L] (see `Sweep`).

        Raises:
          TaskVecError: theta of another shape or not finite, answers that do not fit, or queries
            that cannot be read.
        """
        texts, rows = self._texts(queries), self._ids(queries)
        if answers is not None:
            answers = first_tokens(self.tokenizer, texts, rows, answers)
        return sweep(self, rows, self._own(theta), answers)

    def _own(self, edits: Any) -> Any:
        """Edits as they are; refuses a `TaskVector` that was read from another model."""
        for one in edits if is_series(edits) else (edits,):
            if check := getattr(one, "check_model", None):
                check(self)
        return edits

    @staticmethod
    def _texts(texts: Texts) -> list[Any]:
        """One text or several as a list of strings and lists of token ids."""
        if isinstance(texts, str):
            return [texts]
        given: list[Any] = [t if isinstance(t, str) else np.asarray(t).tolist() for t in texts]
        one_as_ids = bool(given) and all(isinstance(one, int) for one in given)
        return [given] if one_as_ids else given

    def _ids(self, texts: Texts) -> list[list[int]]:
        """Token ids of one text or several."""
        encode = self.tokenizer.encode
        return [encode(one) if isinstance(one, str) else one for one in self._texts(texts)]

    def _at_the_end(self, program: Any, texts: Texts, edits: Any) -> np.ndarray:
        """What a program gives for each text, [N, ...]."""
        rows = self._ids(texts)

        def call(batch: Batch) -> jax.Array:
            return program(self.config, self.params, batch.tokens, batch.lengths, batch.edits)

        parts = dict(self._each(rows, edits, call))
        return np.stack([parts[i] for i in range(len(rows))])

    def _each(
        self, rows: list[list[int]], edits: Any, call: Callable[[Batch], jax.Array]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(number of a text, what `call` gives for its row)."""
        for batch in batches(self.config, rows, self._own(edits), self.mesh):
            values = to_host(call(batch))
            yield from zip(batch.numbers.tolist(), values, strict=False)

    @functools.cached_property
    def _split(self) -> Layers | None:
        """The layers one by one where that makes generation faster (see generation.py): on one CPU,
        if there is room to hold them a second time."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params["params"]["layers"]))
        if self.mesh is not None or jax.default_backend() != "cpu" or size > SPLIT_BYTES:
            return None
        return cast(Layers, split_layers(self.params, self.config.num_layers))


@functools.partial(jax.jit, static_argnames="config")
def _last_logits(
    config: DecoderConfig, params: Params, tokens: jax.Array, lengths: jax.Array, edits: Any
) -> jax.Array:
    decoder = Decoder(config)
    return decoder.apply(params, tokens, lengths - 1, edits, lengths=lengths, method="read")[1]


@functools.partial(jax.jit, static_argnames="config")
def _lens(
    config: DecoderConfig, params: Params, tokens: jax.Array, lengths: jax.Array, edits: Any
) -> jax.Array:
    states = read_sites(config, params, tokens, lengths, edits=edits)  # [B, L, D]
    return cast(jax.Array, Decoder(config).apply(params, states, method="unembed"))
