"""How edits are carried out: held against the decoder and its tokens, then applied site by site.

On the host an index that is out of range is refused. Inside a compiled program it cannot be looked
at, and JAX would clamp it or drop the write: there it turns its row into NaN.

Shapes: B rows, T tokens, P positions, L layers, D width, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.checks import is_concrete
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.edits import Edit, canonical


class Write(NamedTuple):
    """An edit that was held against a decoder and its tokens.

    Attributes:
      edit: it.
      layers: int [B, n].
      positions: int [B, P], counted from the start; None: all.
      heads: bool [B, H]; None at other sites.
      inside: bool [B], whether all indices of a row are in range; None: they are known to be.
    """

    edit: Edit
    layers: jax.Array
    positions: jax.Array | None
    heads: jax.Array | None
    inside: jax.Array | None


def check_lengths(lengths: Any, rows: int, num_tokens: int) -> Any:
    """Lengths of the rows' texts as int [B], or None.

    Raises:
      TaskVecError: concrete ones that are not from 1 to T, one a row.
    """
    if lengths is None or not is_concrete(lengths):
        return lengths
    lengths = np.asarray(lengths)
    whole = np.issubdtype(lengths.dtype, np.integer) and lengths.shape in ((), (rows,))
    if not whole or not ((lengths >= 1) & (lengths <= num_tokens)).all():
        raise TaskVecError(
            f"lengths are {lengths}; allowed: whole numbers from 1 to {num_tokens}, one for each of"
            f" {rows} rows"
        )
    return np.broadcast_to(lengths.astype(np.int32), (rows,))


def check_edits(
    config: DecoderConfig, edits: Any, rows: int, num_tokens: int, lengths: Any = None
) -> tuple[Write, ...]:
    """Holds edits against the decoder and the tokens they are meant for.

    Args:
      edits: in any form that `as_edits` takes.
      rows, num_tokens: B, T.
      lengths: int [B], how many tokens of each row are its text; None: all T.

    Raises:
      TaskVecError: a concrete index out of range, or shapes that do not fit. Traced indices cannot
        be looked at: see `Write.inside`.
    """
    return tuple(
        _check("edit" if edit.from_end else "override", edit, config, rows, num_tokens, lengths)
        for edit in canonical(edits)
    )


def _check(
    name: str, edit: Edit, config: DecoderConfig, rows: int, num_tokens: int, lengths: Any
) -> Write:
    """`check_edits` of one; `name` is what messages call it."""
    layers, found = in_range(f"{name} layer", edit.layer, config.num_layers, rows)
    inside = [found]
    positions = heads = None
    if edit.position is not None:
        positions, found = resolve(
            f"{name} position", edit.position, num_tokens, rows, lengths, edit.from_end
        )
        inside.append(found)
    if edit.head is not None:
        index, found = in_range(f"{name} head", edit.head, config.num_heads, rows)
        heads = (index[..., None] == jnp.arange(config.num_heads)).any(axis=1)
        inside.append(found)
    width = config.head_dim if edit.site == "head" else config.width
    count = num_tokens if positions is None else positions.shape[1]
    if edit.vector is not None:
        shape = np.shape(edit.vector)
        allowed = {(width,), (rows, width), (rows, count, width), (1, count, width)}
        if shape not in allowed | ({()} if name == "edit" else set()):
            some = f"({width},), ({rows}, {width}) or ({rows}, {count}, {width})"
            what = "the size of a head" if edit.site == "head" else "the width"
            raise TaskVecError(
                f"{name} vector has shape {shape}; allowed: {some}, {what} of this model"
            )
    if edit.scale is not None and np.shape(edit.scale) not in ((), (rows,)):
        raise TaskVecError(
            f"{name} scale has shape {np.shape(edit.scale)}; allowed: a number, or one a row,"
            f" ({rows},)"
        )
    known = [found for found in inside if found is not None]
    return Write(edit, layers, positions, heads, jnp.stack(known).all(axis=0) if known else None)


def in_range(name: str, value: Any, size: int, rows: int) -> tuple[jax.Array, jax.Array | None]:
    """An index from 0 to size - 1 as int [B, n], and whether a row's are in range, bool [B], if
    that cannot be known yet.

    Raises:
      TaskVecError: a concrete one is out of range, or its shape does not fit.
    """
    _check_shape(name, value, rows)
    if not is_concrete(value):
        value = _in_rows(value, rows)
        return value, ((value >= 0) & (value < size)).all(axis=1)
    value = np.asarray(value)
    if (outside := value[(value < 0) | (value >= size)]).size:
        raise TaskVecError(
            f"{name} {outside.flat[0]} is out of range; allowed: 0 to {size - 1}, counted from 0"
        )
    return _in_rows(value, rows), None


def resolve(
    name: str, value: Any, num_tokens: int, rows: int, lengths: Any = None, from_end: bool = True
) -> tuple[jax.Array, jax.Array | None]:
    """Positions counted from the start, int [B, P], and whether a row's are in range, bool [B], if
    that cannot be known yet.

    Args:
      value: positions, an index as `as_index` gives it.
      lengths: int [B], how many tokens of each row are its text; None: all.
      from_end: whether negative ones count from the end of a row's text.

    Raises:
      TaskVecError: a concrete one is out of range, or its shape does not fit.
    """
    _check_shape(name, value, rows)
    ends = np.int32(num_tokens) if lengths is None else lengths
    concrete = is_concrete(value) and is_concrete(ends)
    count = np if concrete else jnp
    ends = count.broadcast_to(count.asarray(ends), (rows,))[:, None]
    if not concrete and is_concrete(value):  # at least against the longest text
        resolve(name, value, num_tokens, rows, None, from_end)
    value = count.asarray(value)
    value = value[:, None] if value.ndim == 1 else value
    value = count.broadcast_to(value, (rows, value.shape[1] if value.ndim == 2 else 1))
    first = -ends if from_end else 0 * ends
    inside = (value >= first) & (value < ends)
    if concrete and not inside.all():
        row, column = np.argwhere(~np.asarray(inside))[0]
        which = "" if lengths is None else f" in row {row}, which has {ends[row, 0]} tokens"
        raise TaskVecError(
            f"{name} {value[row, column]} is out of range{which}; allowed:"
            f" {first[row, 0]} to {ends[row, 0] - 1}, counted from 0"
            + (", negative from the end" if from_end else "")
        )
    if from_end:
        value = count.where(value < 0, value + ends, value)
    return jnp.asarray(value), None if concrete else jnp.asarray(inside).all(axis=1)


def _check_shape(name: str, value: Any, rows: int) -> None:
    shape = value.shape
    if shape not in ((), (rows,)) and not (len(shape) == 2 and shape[0] in (1, rows)):
        raise TaskVecError(
            f"{name} has shape {shape}; allowed: a scalar, or one a row, ({rows},), or a list"
        )


def _in_rows(value: Any, rows: int) -> jax.Array:
    """An index [], [B], [1, n] or [B, n] as [B, n]."""
    value = jnp.asarray(value)
    value = value[:, None] if value.ndim == 1 else value
    return jnp.broadcast_to(value, (rows, value.shape[1] if value.ndim == 2 else 1))


def poison(writes: Sequence[Write], x: jax.Array) -> jax.Array:
    """x [B, T, D] with NaN in the rows that have an index out of range, so that a missed write can
    never pass for an unchanged model."""
    for write in writes:
        if write.inside is not None:
            x = jnp.where(write.inside[:, None, None], x, jnp.nan)
    return x


def apply_at(writes: Sequence[Write], site: str, layer: Any, x: jax.Array) -> jax.Array:
    """The value of a site, [B, T, D] or [B, T, H, K], after the edits that are meant for it.

    Args:
      layer: int, the layer that is running; traced inside a scan over layers.
    """
    for write in writes:
        if write.edit.site == site:
            x = _apply(write, layer, x)
    return x


def _apply(write: Write, layer: Any, x: jax.Array) -> jax.Array:
    chosen = (write.layers == layer).any(axis=1)[:, None, None]  # [B, 1, 1]
    if write.heads is not None:
        chosen = chosen[..., None] & write.heads[:, None, :, None]  # [B, 1, H, 1]
    if write.positions is None:
        return jnp.where(chosen, _operate(write.edit, x), x)
    row = jnp.arange(x.shape[0])[:, None]
    old = x[row, write.positions]  # [B, P, D] or [B, P, H, K]
    return x.at[row, write.positions].set(jnp.where(chosen, _operate(write.edit, old), old))


def _operate(edit: Edit, x: jax.Array) -> jax.Array:
    """The edited value of x, [B, P, D] or [B, P, H, K]."""

    def against(value: Any) -> jax.Array:  # [], [B], [D], [B, D] or [B, P, D] against x
        value = jnp.asarray(value, x.dtype)
        if value.ndim == 2:
            value = value[:, None]
        return value[:, :, None] if value.ndim == 3 and x.ndim == 4 else value

    if edit.operation == "replace":
        return jnp.broadcast_to(against(edit.vector), x.shape)
    factor = jnp.asarray(edit.scale, x.dtype)
    if factor.ndim:
        factor = factor.reshape(-1, *[1] * (x.ndim - 1))
    return x * factor if edit.operation == "scale" else x + factor * against(edit.vector)
