# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""The decoder: embed -> blocks -> unembed, with one place to write and one place to read.

`Decoder(config).apply(params, tokens, edits)` is a pure function of its arguments: jit, vmap and
grad pass through it, the edits included (see edits.py; an `Override` is one of them).

Shapes: B rows, T tokens, L layers, D width, V vocabulary. Layer l means the output of block l,
0-based, embedding excluded, everywhere in this project.
"""

# Long because: the methods of one class share its submodules, and the compiled programs that
# `apply` runs are told apart by those methods.

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.core import Tracer
from jax.extend import core
from jaxtyping import Float, Int

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer import blocks
from taskvec_jax.transformer.attention import capped
from taskvec_jax.transformer.checks import check_ids, check_tokens
from taskvec_jax.transformer.config import FAMILIES, DecoderConfig
from taskvec_jax.transformer.context import attention_context, text_layout
from taskvec_jax.transformer.edits import Override, canonical
from taskvec_jax.transformer.layers import site_shapes
from taskvec_jax.transformer.linear import kernel_precision, project
from taskvec_jax.transformer.writes import apply_at, check_edits, check_lengths, poison

__all__ = ["Decoder", "Override", "Params"]  # Override: where it has always been found

Params = Any  # {"params": {...}}, a plain nested dict of arrays

FAMILY_MODULES: dict[str, Any] = {name: getattr(blocks, name) for name in FAMILIES}


def check_index(name: str, value: Any, size: int, rows: int) -> jax.Array:
    """Broadcasts an index to [rows] after refusing what a JAX gather or scatter would hide.

    Traced values cannot be looked at and pass; their shape is still checked.

    Raises:
      TaskVecError: a concrete index that is not whole, out of range, or neither scalar nor [rows].
    """
    if not isinstance(value, Tracer):
        value = np.asarray(value)
    if value.shape not in ((), (rows,)):
        raise TaskVecError(
            f"{name} has shape {value.shape}; allowed: a scalar, or one a row, ({rows},)"
        )
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TaskVecError(f"{name} is {value!r}; it must be a whole number")
    outside: Any = () if isinstance(value, Tracer) else value[(value < 0) | (value >= size)]
    if len(outside):
        raise TaskVecError(
            f"{name} {outside.flat[0]} is out of range; allowed: 0 to {size - 1}, counted from 0"
        )
    return jnp.broadcast_to(jnp.asarray(value), (rows,))


def at_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x [B, T, D] at one position a row, int [B]: [B, D], NaN where a position is out of range."""
    inside = (positions >= 0) & (positions < x.shape[1])
    return jnp.where(inside[:, None], x[jnp.arange(x.shape[0]), positions], jnp.nan)


class Decoder(nn.Module):
    """A decoder-only transformer over tokens [B, T].

    Rows shorter than T are padded on the right with any token id: under the causal mask padding
    is invisible. All layers share one stacked parameter tree and one compiled block.
    """

    config: DecoderConfig

    @nn.nowrap
    def apply(self, variables: Params, *args: Any, method: str = "__call__", **options: Any) -> Any:
        """Flax's apply; gives what the method gives.

        Outside of any transformation, `__call__` and `read` are checked on the host and
        then run as one compiled program, which later calls with the same shapes use again.
        """
        if method in _PROGRAMS and core.get_opaque_trace_state(convention="flax") == _NO_TRACE:
            try:
                given = _PROGRAMS[method].bind(self, *args, **options)
            except TypeError:  # options of Flax's own, or a mistake that Flax reports
                return super().apply(variables, *args, method=method, **options)
            checked = _on_host(self.config, **given.arguments)
            return cast(Any, _compiled(self, method, variables, checked))
        return super().apply(variables, *args, method=method, **options)

    def __call__(
        self, tokens: Int[jax.Array, "B T"], override: Any = None, *, lengths: Any = None
    ) -> Float[jax.Array, "B T V"]:
        """Logits after every token.

        Args:
          tokens: int [B, T].
          override: None, an `Override`, a bare (layer, position, vector), an edit of edits.py, or
            a list of these, which are applied in this order.
          lengths: int [B], how many tokens of each row are its text: where positions counted from
            the end begin, and beyond which nothing may be written. None: all T.

        Returns:
          [B, T, V] float32 (float64 for float64 parameters).

        Raises:
          TaskVecError: tokens of another shape or beyond the context length; a concrete token id
            or override that is out of range, or an override of the wrong shape. Traced ones cannot
            be looked at: out of range they turn the row into NaN, so that a missed write can never
            pass for an unchanged model.
        """
        tokens = check_tokens(self.config, tokens)
        parts = self._parts()
        x, _ = self._run(parts, tokens, override, lengths=lengths)
        return self._logits(parts, x)

    def read(
        self,
        tokens: Int[jax.Array, "B T"],
        positions: Any,
        override: Any = None,
        *,
        lengths: Any = None,
    ) -> tuple[Float[jax.Array, "L B D"], Float[jax.Array, "B V"]]:
        """The residual stream after every layer at one position a row, and the logits there.

        The position is gathered inside the scan over layers: [L, B, T, D] never exists.

        Args:
          tokens: int [B, T].
          positions: int, 0-based token index in the row: scalar or [B] (one a row).
          override, lengths: as in `__call__`; what is written is visible in what is read.

        Returns:
          residuals [L, B, D] and logits [B, V]; NaN for a traced position out of range.

        Raises:
          TaskVecError: as of `__call__`, or a concrete position out of range.
        """
        tokens = check_tokens(self.config, tokens)
        rows, num_tokens = tokens.shape
        positions = check_index("read position", positions, num_tokens, rows)
        parts = self._parts()

        def at_position(x: jax.Array) -> jax.Array:
            return at_positions(x, positions)

        kept = {"resid": at_position}
        x, states = self._run(parts, tokens, override, kept, lengths=lengths)
        return states["resid"], self._logits(parts, at_positions(x, positions))

    def keep(
        self,
        tokens: jax.Array,
        keep: Mapping[str, Callable[[jax.Array], jax.Array]],
        edits: Any = None,
        *,
        lengths: Any = None,
        layers: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What is kept of some sites, layer by layer. For calls inside a compiled program.

        Args:
          tokens: int [B, T].
          keep: site (see `context.Visit`; or "resid") -> what is kept of the value there, after the
            edits.
          edits, lengths: as in `__call__`.
          layers: int [n], which layers; NaN for one that is out of range. None: all L, in order.

        Returns:
          The residual stream after the last block [B, T, D], and site -> [n, ...] or [L, ...].
        """
        tokens = check_tokens(self.config, tokens)
        return self._run(self._parts(), tokens, edits, keep, lengths=lengths, layers=layers)

    def embed(
        self, tokens: Int[jax.Array, "*N"], positions: Any = None
    ) -> Float[jax.Array, "*N D"]:
        """Tokens int [...] -> the residual stream before block 0, [..., D].

        Args:
          positions: int, of each token in its text; needed where positions are learned (GPT-2).

        Raises:
          TaskVecError: no positions, where they are learned. NaN for those out of range.
        """
        return self._embed(self._parts(), check_ids(self.config, tokens), positions)

    def unembed(self, x: Float[jax.Array, "*N D"]) -> Float[jax.Array, "*N V"]:
        """Final norm and unembedding: the residual stream [..., D] -> logits [..., V]."""
        return self._logits(self._parts(), x)

    @nn.compact
    def _parts(self) -> _Parts:
        """The submodules; a method of Linen may name them only once, so they are named here."""
        c = self.config
        family = FAMILY_MODULES[c.family]
        table = functools.partial(
            nn.Embed, features=c.width, dtype=c.dtype, param_dtype=jnp.dtype(c.dtype)
        )
        return _Parts(
            embed=table(c.vocab_size, name="embed"),
            positions=table(c.max_length, name="positions") if c.learned_positions else None,
            layers=family.Block(c, name="layers"),
            final_norm=family.Norm(c, name="final_norm"),
            unembed=(
                None if c.tied_unembed else project(c, c.vocab_size, c.unembed_bias)(name="unembed")
            ),
        )

    def _run(
        self,
        parts: _Parts,
        tokens: jax.Array,
        edits: Any,
        keep: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
        *,
        lengths: Any = None,
        layers: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `keep`: the value of a site is edited, then what is kept of it is taken, inside the
        scan over layers."""
        c, keep = self.config, keep or {}
        rows, num_tokens = tokens.shape
        lengths = check_lengths(lengths, rows, num_tokens)
        writes = check_edits(c, edits, rows, num_tokens, lengths)
        layout = text_layout(c, num_tokens, lengths)
        contexts = attention_context(c, layout)
        x = poison(writes, self._embed(parts, tokens, layout.positions))
        visited = {"resid"}

        def step(block: nn.Module, carry: Any, index: jax.Array) -> Any:
            x, buffers = carry
            kept: dict[str, jax.Array] = {}

            def visit(site: str, value: jax.Array) -> jax.Array:
                visited.add(site)
                value = apply_at(writes, site, index, value)
                if site in keep:
                    kept[site] = keep[site](value)
                return value

            x = visit("resid", block(x, contexts.of_layer(index, visit)))  # [B, T, D]
            if layers is None:
                return (x, buffers), kept
            wanted = layers == index
            slot = jnp.where(wanted.any(), jnp.argmax(wanted), len(layers))  # len: dropped
            buffers = {
                site: buffers[site].at[slot].set(value, mode="drop") for site, value in kept.items()
            }
            return (x, buffers), {}

        buffers: dict[str, jax.Array] = {}
        if layers is not None:
            shapes = site_shapes(c, rows, num_tokens)
            for site, take in keep.items():
                value = jax.ShapeDtypeStruct(shapes[site], x.dtype)
                kept_as = jax.eval_shape(take, value)
                buffers[site] = jnp.full((len(layers), *kept_as.shape), jnp.nan, kept_as.dtype)
        (x, buffers), kept = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.num_layers,
        )(parts.layers, (x, buffers), jnp.arange(c.num_layers))
        if missing := ({write.edit.site for write in writes} | set(keep)) - visited:
            raise TaskVecError(
                f"the blocks of {c.family} have no site {', '.join(sorted(missing))}"
            )
        if layers is not None:
            first = jnp.argmax(layers[:, None] == layers, axis=1)  # of layers that are named twice
            kept = {site: buffer[first] for site, buffer in buffers.items()}
        return x, kept

    def _embed(self, parts: _Parts, tokens: Any, positions: Any) -> jax.Array:
        """Residual stream before block 0; NaN for a traced id out of range, where -1 would wrap."""
        c = self.config
        x = parts.embed(jnp.asarray(tokens)).astype(c.stream_dtype)
        if c.embed_scale != 1:
            x = x * c.embed_scale
        if parts.positions is not None:
            if positions is None:
                raise TaskVecError(
                    f"the positions of {c.family} are learned: give those of the tokens to embed"
                )
            inside = (positions >= 0) & (positions < c.max_length)
            added = parts.positions(jnp.asarray(positions)).astype(c.stream_dtype)
            x = x + jnp.where(inside[..., None], added, jnp.nan)
        if not isinstance(tokens, Tracer):
            return x  # checked on the host
        inside = (tokens >= 0) & (tokens < c.vocab_size)
        return jnp.where(inside[..., None], x, jnp.nan)

    def _logits(self, parts: _Parts, x: jax.Array) -> jax.Array:
        c, x = self.config, parts.final_norm(x)
        if parts.unembed is not None:
            logits = parts.unembed(x)
        else:
            logits = jnp.einsum(
                "...d,vd->...v",
                x.astype(c.dtype),
                parts.embed.embedding,
                precision=kernel_precision(c),
                preferred_element_type=jnp.dtype(c.stream_dtype),
            )
        if c.logit_divisor != 1:
            logits = logits / c.logit_divisor
        return capped(logits, c.logit_softcap)


class _Parts(NamedTuple):
    embed: nn.Embed
    positions: nn.Embed | None
    layers: nn.Module
    final_norm: nn.Module
    unembed: nn.Module | None


_PROGRAMS = {name: inspect.signature(getattr(Decoder, name)) for name in ("__call__", "read")}
_NO_TRACE = core.get_opaque_trace_state(convention="flax")  # outside of jit, vmap, grad


def _on_host(config: DecoderConfig, **given: Any) -> dict[str, Any]:
    """The arguments of a call, checked and in the form in which they enter a compiled program."""
    del given["self"]
    tokens = given["tokens"] = check_tokens(config, given["tokens"])
    rows, num_tokens = tokens.shape
    if "positions" in given:
        given["positions"] = check_index("read position", given["positions"], num_tokens, rows)
    if "lengths" in given:
        given["lengths"] = check_lengths(given["lengths"], rows, num_tokens)
    if "override" in given:
        check_edits(config, given["override"], rows, num_tokens, given.get("lengths"))
        given["override"] = canonical(given["override"])
    return given


@functools.partial(jax.jit, static_argnames=("decoder", "method"))
def _compiled(decoder: Decoder, method: str, params: Params, given: dict[str, Any]) -> Any:
    return decoder.apply(params, method=method, **given)


def leaf_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter, from the decoder itself.

    Paths leave out the leading "params/": "layers/attn/query/kernel" and so on.
    """
    return {path: leaf.shape for path, leaf in leaf_types(config).items()}


def leaf_types(config: DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and dtype of every parameter; paths as in `leaf_shapes`."""
    return flatten(_initial.eval_shape(config, jax.ShapeDtypeStruct((1, 1), jnp.int32)))


@functools.partial(jax.jit, static_argnums=0)  # jit remembers the shapes of a config
def _initial(config: DecoderConfig, tokens: jax.Array) -> Any:
    """Random parameters."""
    return Decoder(config).init(jax.random.key(0), tokens)


def flatten(params: Params) -> dict[str, Any]:
    """Path -> leaf of a parameter tree, in sorted order of paths."""
    leaves = cast(dict[str, Any], traverse_util.flatten_dict(params["params"], sep="/"))
    return dict(sorted(leaves.items()))


def unflatten(leaves: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return {"params": cast(dict[str, Any], traverse_util.unflatten_dict(leaves, sep="/"))}
