"""What a block needs to know of its tokens: which see which, and how far each has turned.

Shapes: B rows, T tokens that are run, S tokens they may attend to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.rope import BY_LENGTH, RopeScaling, frequencies

TRUNK = 0  # branch id of tokens that every branch of their row may attend to
PADDING = -1  # branch id of tokens that no other token may attend to

# (site, value there) -> the value to go on with. Modules call it at the sites of a layer, whose
# values are shaped as in `site_shapes`: "key" (rotated) and "value"; "pattern", the weights of
# attention; "head", the input of the output projection; "attn_out" and "mlp_out", what the modules
# return. The decoder adds "resid", the residual stream after the block.
Visit = Callable[[str, jax.Array], jax.Array]


def unvisited(site: str, value: jax.Array) -> jax.Array:
    """The visit of a layer that nobody edits or reads: the value itself."""
    del site
    return value


class Layout(NamedTuple):
    """Where the tokens of a row stand, and which of them see which.

    A row is a tree: a trunk, and branches that each continue the trunk as if the other branches
    did not exist. A plain prompt is a trunk and nothing else.

    Attributes:
      positions: int [B, T], 0-based place of each token in its own prompt.
      branches: int [B, T], `TRUNK`, `PADDING`, or a branch id above 0.
    """

    positions: jax.Array
    branches: jax.Array


class AttentionContext(NamedTuple):
    """What a block needs to know of a layout.

    Attributes:
      mask: bool [B, T, S], query token x key token, True where attention is allowed; the S keys are
        those of the T tokens themselves, or of a cache. With `own`, those of the text alone.
      cos, sin: [B, T, rope_dim / 2], rotary angles.
      visit: is shown the value at each site of a layer, and gives the one to go on with.
      own: of a row that is a text and then n copies of P tokens, which see the text and themselves
        and never each other: bool [B or 1, n, P, P], which of its own tokens each token of a copy
        may attend to. None: `mask` says it all.
    """

    mask: jax.Array
    cos: jax.Array
    sin: jax.Array
    visit: Visit = unvisited
    own: jax.Array | None = None


def apart(context: AttentionContext, length: int, size: int) -> AttentionContext:
    """The context of a text of `length` tokens and copies of `size`, without the scores that copies
    would have with each other."""
    rows, tokens, _ = context.mask.shape
    copies = (tokens - length) // size
    among = context.mask[:, length:, length:].reshape(rows, copies, size, copies, size)
    each = jnp.arange(copies)
    own = jnp.moveaxis(among[:, each, :, each], 0, 1)
    return context._replace(mask=context.mask[:, :, :length], own=own)


class ContextByLayer(NamedTuple):
    """The attention contexts of all layers, of which there are at most two kinds.

    Attributes:
      plain: of the layers without a window of their own.
      windowed: of those with one; None: all layers are alike.
      window_layers: which are which; see `DecoderConfig`.
    """

    plain: AttentionContext
    windowed: AttentionContext | None
    window_layers: tuple[bool, ...]

    def of_layer(self, index: jax.Array | int, visit: Visit = unvisited) -> AttentionContext:
        """The context of one layer, whose index may be traced."""
        if self.windowed is None:
            return self.plain._replace(visit=visit)
        if isinstance(index, int):
            context = self.windowed if self.window_layers[index] else self.plain
            return context._replace(visit=visit)
        is_windowed = jnp.asarray(self.window_layers)[index]
        mask, cos, sin = (
            jnp.where(is_windowed, a, b)
            for a, b in zip(self.windowed[:3], self.plain[:3], strict=True)
        )
        return AttentionContext(mask, cos, sin, visit)


def plain_layout(num_tokens: int) -> Layout:
    """Layout [1, T] of ordinary left-to-right text.

    Right padding needs no mention: under a causal mask nothing real can see it.
    """
    positions = jnp.arange(num_tokens, dtype=jnp.int32)[None]
    return Layout(positions, jnp.full_like(positions, TRUNK))


def text_layout(config: DecoderConfig, num_tokens: int, lengths: jax.Array | None) -> Layout:
    """`plain_layout`; [B, T] with padding marked where a text's own length decides its rotation.

    Args:
      lengths: int [B], tokens of each text; None: all T.
    """
    layout, scaling = plain_layout(num_tokens), config.rope_scaling
    if lengths is None or scaling is None or scaling.kind not in BY_LENGTH:
        return layout
    positions = jnp.broadcast_to(layout.positions, (lengths.shape[0], num_tokens))
    return Layout(positions, jnp.where(positions < lengths[:, None], TRUNK, PADDING))


def visible(queries: Layout, keys: Layout, window: int | None = None) -> jax.Array:
    """Which key tokens each query token may attend to.

    A token sees a token at its own or an earlier position, in the trunk or in its own branch; with
    a window, only the last `window` positions, its own included.

    Args:
      queries: layout of the tokens that attend, [B, T].
      keys: layout of the tokens they may attend to, [B, S]; the same tokens, or cached ones too.

    Returns:
      bool [B, T, S].
    """
    back = queries.positions[:, :, None] - keys.positions[:, None, :]
    same = keys.branches[:, None, :] == queries.branches[:, :, None]
    near = back >= 0
    if window is not None:
        near &= back < window
    return near & (same | (keys.branches[:, None, :] == TRUNK))


def attention_context(
    config: DecoderConfig, layout: Layout, keys: Layout | None = None
) -> ContextByLayer:
    """The attention masks and the rotary angles of a layout.

    Where the length of a text decides how it rotates (`rope.BY_LENGTH`), a row has one length, that
    of its longest text; NaN for tokens of branches that would rotate otherwise.

    Args:
      layout: of the tokens that are run, [B, T].
      keys: of the tokens they may attend to, [B, S]; None: the same tokens.
    """
    keys = layout if keys is None else keys

    def context(window: int | None, base: float, scaling: RopeScaling | None) -> AttentionContext:
        cos, sin = _rotation(config, layout, base, scaling)
        return AttentionContext(visible(layout, keys, window), cos, sin)

    base, scaling = config.rope_base, config.rope_scaling
    if not config.window_layers:
        return ContextByLayer(context(config.sliding_window, base, scaling), None, ())
    of_windows = (
        (base, scaling)
        if config.window_rope_base is None
        else (
            config.window_rope_base,
            None,
        )
    )
    return ContextByLayer(
        context(None, base, scaling),
        context(config.sliding_window, *of_windows),
        config.window_layers,
    )


def _rotation(
    config: DecoderConfig, layout: Layout, base: float, scaling: RopeScaling | None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, [B, T, rope_dim / 2]."""
    dtype = jnp.dtype(config.stream_dtype)
    by_length = scaling is not None and scaling.kind in BY_LENGTH
    real = layout.branches != PADDING
    lengths = jnp.max(jnp.where(real, layout.positions + 1, 1), axis=1) if by_length else None
    turns = frequencies(base, config.rope_dim, scaling, lengths, dtype)
    angles = layout.positions[..., None].astype(dtype) * turns  # [B, T, half]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scaling is None:
        return cos, sin
    if scaling.attention_factor != 1:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    if lengths is not None:
        own = jnp.where(
            layout.branches[:, :, None] == layout.branches[:, None, :], layout.positions[:, None], 0
        ).max(axis=-1)
        limit = scaling.original_max_length
        differs = jnp.maximum(own + 1, limit) != jnp.maximum(lengths, limit)[:, None]
        if scaling.kind == "longrope":
            differs = (own + 1 > limit) != (lengths > limit)[:, None]
        cos = jnp.where((differs & (layout.branches > TRUNK))[..., None], jnp.nan, cos)
    return cos, sin
