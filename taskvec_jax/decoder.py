"""The decoder: embed -> blocks -> unembed, with one place to write and one place to read.

`Decoder(config).apply(params, tokens, override)` is a pure function of its arguments: jit, vmap
and grad pass through it, the override included.

Shapes: B rows, T tokens, L layers, D width, V vocabulary. Layer l means the output of block l,
0-based, embedding excluded, everywhere in this project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer

from taskvec_jax import gptj, llama, pythia
from taskvec_jax.checks import check_ids, check_tokens
from taskvec_jax.config import DecoderConfig
from taskvec_jax.errors import TaskVecError
from taskvec_jax.layers import look, plain_layout, project

Params = Any  # {"params": {...}}, a plain nested dict of arrays

FAMILY_MODULES = {"llama": llama, "pythia": pythia, "gptj": gptj}


class Override(NamedTuple):
    """A write into the residual stream: after block `layer` (0-based), the vector REPLACES the
    residual stream at `position`; blocks layer+1, layer+2, ... run on from it.

    A bare tuple of the same three values works wherever an Override does.

    Attributes:
      layer: int, scalar or [B] (one a row).
      position: int, scalar or [B], 0-based token index in the row.
      vector: [D] (the same for all rows) or [B, D].
    """

    layer: Any
    position: Any
    vector: Any


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
    if isinstance(value, np.ndarray) and (outside := value[(value < 0) | (value >= size)]).size:
        raise TaskVecError(
            f"{name} {outside.flat[0]} is out of range; allowed: 0 to {size - 1}, counted from 0"
        )
    return jnp.broadcast_to(jnp.asarray(value), (rows,))


def check_override(config: DecoderConfig, override: Any, rows: int, num_tokens: int) -> Override:
    """Holds an override against the decoder and the tokens it is meant for.

    Returns:
      The override as arrays: layer [rows], position [rows], vector [rows, D].

    Raises:
      TaskVecError: a concrete layer or position out of range, or shapes that do not fit.
    """
    try:
        layer, position, vector = override
    except (TypeError, ValueError):
        raise TaskVecError(
            f"override is {override!r}; it must be a (layer, position, vector) triple"
        ) from None
    layer = check_index("override layer", layer, config.num_layers, rows)
    position = check_index("override position", position, num_tokens, rows)
    vector = jnp.asarray(vector, config.stream_dtype)
    shape = vector.shape
    if shape not in ((config.width,), (rows, config.width)):
        raise TaskVecError(
            f"override vector has shape {shape}; allowed: ({config.width},) or"
            f" ({rows}, {config.width}), the width of this model"
        )
    return Override(layer, position, jnp.broadcast_to(vector, (rows, config.width)))


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

    if TYPE_CHECKING:

        def apply(self, variables: Params, *args: Any, method: str = "__call__") -> Any:
            """Flax's apply; gives what the method gives."""

    def __call__(self, tokens: jax.Array, override: Any = None) -> jax.Array:
        """Logits after every token.

        Args:
          tokens: int [B, T].
          override: None, an `Override`, or a bare (layer, position, vector).

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
        x, _ = self._run(parts, tokens, override, None)
        return self._logits(parts, x)

    def read(
        self, tokens: jax.Array, positions: Any, override: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """The residual stream after every layer at one position a row, and the logits there.

        The position is gathered inside the scan over layers: [L, B, T, D] never exists.

        Args:
          tokens: int [B, T].
          positions: int, 0-based token index in the row: scalar or [B] (one a row).
          override: as in `__call__`; its write is visible in what is read.

        Returns:
          residuals [L, B, D] and logits [B, V]; NaN for a traced position out of range.

        Raises:
          TaskVecError: as of `__call__`, or a concrete position out of range.
        """
        tokens = check_tokens(self.config, tokens)
        rows, num_tokens = tokens.shape
        positions = check_index("read position", positions, num_tokens, rows)
        parts = self._parts()
        x, residuals = self._run(parts, tokens, override, positions)
        assert residuals is not None  # positions were given
        return residuals, self._logits(parts, at_positions(x, positions))

    def trace(self, tokens: jax.Array, positions: Any) -> tuple[jax.Array, jax.Array]:
        """As `read`, with the logits after every token: residuals [L, B, D], logits [B, T, V]."""
        tokens = check_tokens(self.config, tokens)
        positions = check_index("read position", positions, tokens.shape[1], tokens.shape[0])
        parts = self._parts()
        x, residuals = self._run(parts, tokens, None, positions)
        assert residuals is not None  # positions were given
        return residuals, self._logits(parts, x)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Tokens int [...] -> the residual stream before block 0, [..., D]."""
        return self._embed(self._parts(), check_ids(self.config, tokens))

    def unembed(self, x: jax.Array) -> jax.Array:
        """Final norm and unembedding: the residual stream [..., D] -> logits [..., V]."""
        return self._logits(self._parts(), x)

    @nn.compact
    def _parts(self) -> _Parts:
        """The submodules; a method of Linen may name them only once, so they are named here."""
        c = self.config
        family = FAMILY_MODULES[c.family]
        return _Parts(
            embed=nn.Embed(
                c.vocab_size, c.width, dtype=c.dtype, param_dtype=jnp.dtype(c.dtype), name="embed"
            ),
            layers=family.Block(c, name="layers"),
            final_norm=family.Norm(c, name="final_norm"),
            unembed=(
                None if c.tied_unembed else project(c, c.vocab_size, c.unembed_bias)(name="unembed")
            ),
        )

    def _run(
        self, parts: _Parts, tokens: jax.Array, override: Any, positions: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Residual stream after the last block [B, T, D], and what was read [L, B, D]."""
        c = self.config
        rows, num_tokens = tokens.shape
        sight = look(c, plain_layout(num_tokens))
        x = self._embed(parts, tokens)
        row = jnp.arange(rows)
        if override is not None:
            override = check_override(c, override, rows, num_tokens)
            layer, position, _ = override
            inside = (layer >= 0) & (layer < c.num_layers) & (position >= 0)
            inside &= position < num_tokens
            x = jnp.where(inside[:, None, None], x, jnp.nan)

        def step(block: nn.Module, x: jax.Array, index: jax.Array):
            x = block(x, sight)  # [B, T, D]
            if override is not None:
                layer, position, vector = override
                written = jnp.where((layer == index)[:, None], vector, x[row, position])
                x = x.at[row, position].set(written)
            return x, None if positions is None else at_positions(x, positions)

        return nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.num_layers,
        )(parts.layers, x, jnp.arange(c.num_layers))

    def _embed(self, parts: _Parts, tokens: Any) -> jax.Array:
        """Residual stream before block 0; NaN for a traced id out of range, where -1 would wrap."""
        x = parts.embed(jnp.asarray(tokens)).astype(self.config.stream_dtype)
        if not isinstance(tokens, Tracer):
            return x  # checked on the host
        inside = (tokens >= 0) & (tokens < self.config.vocab_size)
        return jnp.where(inside[..., None], x, jnp.nan)

    def _logits(self, parts: _Parts, x: jax.Array) -> jax.Array:
        x = parts.final_norm(x)
        if parts.unembed is not None:
            return parts.unembed(x)
        return jnp.einsum(
            "...d,vd->...v",
            x.astype(self.config.dtype),
            parts.embed.embedding,
            preferred_element_type=jnp.dtype(self.config.stream_dtype),
        )


class _Parts(NamedTuple):
    embed: nn.Embed
    layers: nn.Module
    final_norm: nn.Module
    unembed: nn.Module | None


def leaf_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter, from the decoder itself.

    Paths leave out the leading "params/": "layers/attn/query/kernel" and so on.
    """
    return {path: leaf.shape for path, leaf in leaf_types(config).items()}


def leaf_types(config: DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and dtype of every parameter; paths as in `leaf_shapes`."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(lambda t: Decoder(config).init(jax.random.key(0), t), tokens)
    return flatten(abstract)


def flatten(params: Params) -> dict[str, Any]:
    """Path -> leaf of a parameter tree, in sorted order of paths."""
    return dict(sorted(flatten_dict(params["params"], sep="/").items()))


def unflatten(leaves: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return {"params": unflatten_dict(leaves, sep="/")}
