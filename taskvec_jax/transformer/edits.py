# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""Edits: what is written into a decoder while it runs.

    from taskvec_jax import edits
    decoder.apply(params, tokens, edits.replace(theta, layer=14, position=-1))
    decoder.apply(params, tokens, [edits.add(v, layer=9, position="all", scale=2.0),
                                   edits.ablate(layer=[3, 4], position="all", site="head", head=5)])

An edit says what is done (replace, add, scale, ablate), to which site of which layers, at which
positions. Several are applied in the order given. Edits are pytrees: jit, vmap and grad pass
through vector, scale, layer, position and head; the operation and the site are static.

Sites of layer l: "resid", the residual stream after the block; "attn_out" and "mlp_out", what the
attention or MLP module returns, before any norm or multiplier that follows; "head", the input of
the attention's output projection, one vector of size K for each head.
Shapes: B rows, T tokens, P positions, L layers, D width, H heads, K head size.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from taskvec_jax.errors import TaskVecError
from taskvec_jax.narrowing import is_series

SITES = ("resid", "attn_out", "mlp_out", "head")
OPERATIONS = ("replace", "add", "scale")
ALL = "all"


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


@flax.struct.dataclass
class Edit:
    """One edit; made by `replace`, `add`, `scale` or `ablate`, which say what the values mean.

    Indices are int of shape [] (one for all rows), [B] (one a row), [1, n] (several for all rows)
    or [B, n] (several a row).

    Attributes:
      operation: one of `OPERATIONS` (static).
      site: one of `SITES` (static).
      layer: indices of layers.
      position: indices of tokens, negative from the end of a row's text; None: all of them.
      head: indices of heads at the site "head", else None.
      vector: [], [D], [B, D] or [B, P, D], K in place of D at the site "head"; None for "scale".
      scale: [] or [B], what is multiplied with; None for "replace".
      from_end: whether negative positions count from the end (static), or are out of range.
    """

    operation: str = flax.struct.field(pytree_node=False)  # pyright: ignore[reportUnknownVariableType]
    site: str = flax.struct.field(pytree_node=False)  # pyright: ignore[reportUnknownVariableType]
    layer: Any
    position: Any
    head: Any
    vector: Any
    scale: Any
    from_end: bool = flax.struct.field(pytree_node=False, default=True)  # pyright: ignore[reportUnknownVariableType]


def replace(
    vector: Any, *, layer: Any, position: Any, site: str = "resid", head: Any = None
) -> Edit:
    """The value at a site becomes `vector`.

    Args:
      vector: [D], the same for all rows; [B, D], one a row; or [B, P, D], one for each of several
        positions. At the site "head", K in place of D.
      layer: an int, 0-based; a list: each of these layers; an int array [B]: one a row.
      position: an int, negative from the end of each row's text (-1 is its last token); a list:
        each of these; an int array [B]: one a row; an int array [B, P]: several a row; "all".
      site: one of `SITES`.
      head: at the site "head", an int, a list, or an int array [B]; else None.

    Raises:
      TaskVecError: an unknown site, an index that is no whole number, or a head without the site
        "head" and the other way round. What depends on the model is checked when it runs.
    """
    return _edit("replace", site, layer, position, head, vector=vector)


def add(
    vector: Any,
    *,
    layer: Any,
    position: Any,
    site: str = "resid",
    head: Any = None,
    scale: Any = 1.0,
) -> Edit:
    """`scale` times `vector` is added to the value at a site.

    Args:
      vector, layer, position, site, head: as of `replace`.
      scale: a number, or [B], one a row.

    Raises:
      TaskVecError: as `replace`.
    """
    return _edit("add", site, layer, position, head, vector=vector, scale=scale)


def scale(factor: Any, *, layer: Any, position: Any, site: str = "resid", head: Any = None) -> Edit:
    """The value at a site is multiplied by `factor`, a number or [B], one a row.

    Args:
      layer, position, site, head: as of `replace`.

    Raises:
      TaskVecError: as `replace`.
    """
    return _edit("scale", site, layer, position, head, scale=factor)


def ablate(
    *, layer: Any, position: Any, site: str = "resid", head: Any = None, mean: Any = None
) -> Edit:
    """The value at a site becomes zero, or `mean`: an edit that replaces it by that.

    Args:
      layer, position, site, head: as of `replace`.
      mean: what takes its place, shaped as the vector of `replace`; None: zero.

    Raises:
      TaskVecError: as `replace`.
    """
    return _edit("replace", site, layer, position, head, vector=0.0 if mean is None else mean)


def _edit(
    operation: str,
    site: str,
    layer: Any,
    position: Any,
    head: Any,
    *,
    vector: Any = None,
    scale: Any = None,
) -> Edit:
    if site not in SITES:
        raise TaskVecError(f"edit: site is {site!r}; allowed: {', '.join(SITES)}")
    if (site == "head") != (head is not None):
        raise TaskVecError(
            f"edit: site is {site!r} and head is {head!r}; the site 'head' takes head=, an index"
            " counted from 0, and no other site does"
        )
    return Edit(
        operation,
        site,
        as_index("edit: layer", layer),
        None
        if isinstance(position, str) and position == ALL
        else as_index("edit: position", position),
        None if head is None else as_index("edit: head", head),
        None if vector is None else _numbers("vector", vector),
        None if scale is None else _numbers("scale", scale),
    )


def as_index(name: str, value: Any) -> Any:
    """An index as an array: [] for an int, [1, n] for a list of n, an array as it is.

    Raises:
      TaskVecError: it holds something else than whole numbers, or nothing.
    """
    if not isinstance(value, Tracer):
        several = is_series(value) or isinstance(value, range)
        if several and any(isinstance(one, Tracer) for one in value):
            value = jnp.stack([jnp.asarray(one) for one in value])
        elif isinstance(value, bool | str) or value is None:
            raise TaskVecError(f"{name} is {value!r}; it must be a whole number")
        else:
            value = np.asarray(value)
        value = value[None] if several and value.ndim == 1 else value
    if value.size == 0:
        raise TaskVecError(f"{name} is empty; it must name at least one")
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TaskVecError(f"{name} is {value!r}; it must be a whole number")
    return cast(Any, value) if isinstance(value, Tracer) else np.asarray(value, np.int32)


def _numbers(name: str, value: Any) -> Any:
    if isinstance(value, Tracer | jax.Array):
        return cast(Any, value)
    try:
        value = np.asarray(value)
    except ValueError:
        raise TaskVecError(f"edit: {name} is not an array of numbers") from None
    if value.dtype.kind not in "fiu" and not jnp.issubdtype(value.dtype, jnp.floating):
        raise TaskVecError(f"edit: {name} is of type {value.dtype}; it must be numbers")
    return value


def as_edits(edits: Any) -> tuple[Any, ...]:
    """Edits in any of the forms that are welcome, as a tuple of `Edit`s and `Override`s.

    Args:
      edits: None, an `Edit`, an `Override`, a bare (layer, position, vector), anything whose method
        `edits()` gives a tuple of `Edit`s (a `TaskVector`), or a list or tuple of these.

    Raises:
      TaskVecError: anything else.
    """
    if edits is None:
        return ()
    if (one := _as_some(edits)) is not None:
        return one
    if is_series(edits):
        several = [
            (Override(*e),) if type(e) is tuple and len(cast(Any, e)) == 3 else _as_some(e)
            for e in edits
        ]
        if all(some is not None for some in several):
            return tuple(edit for some in several if some is not None for edit in some)
        if len(edits) == 3 and all(_as_some(e) is None for e in edits):
            return (Override(*edits),)
    raise TaskVecError(
        f"override is {str(edits)[:80]}; it must be an edit (taskvec_jax.transformer.edits), a"
        " TaskVector, a (layer, position, vector) triple, or a list of these"
    )


def _as_some(value: Any) -> tuple[Any, ...] | None:
    """What one `Edit`, `Override` or holder of edits stands for; None of anything else."""
    if isinstance(value, Edit | Override):
        return (value,)
    made: Any = getattr(value, "edits", None)
    found: Any = made() if callable(made) else None
    return None if found is None else tuple(found)


def of_override(override: Override) -> Edit:
    """An `Override` as the edit it stands for: its negative positions are out of range."""

    def index(name: str, value: Any) -> Any:  # here a list means one a row
        value = as_index(f"override {name}", value)
        return value[0] if getattr(value, "ndim", 0) == 2 else value

    layer, position, vector = override
    return Edit(
        "replace",
        "resid",
        index("layer", layer),
        index("position", position),
        None,
        _numbers("vector", vector),
        None,
        from_end=False,
    )


def canonical(edits: Any) -> tuple[Edit, ...]:
    """Edits in any of the forms that `as_edits` takes, all as `Edit`s."""
    return tuple(of_override(e) if isinstance(e, Override) else e for e in as_edits(edits))


def take_rows(edits: tuple[Edit, ...], rows: Any, count: int) -> tuple[Edit, ...]:
    """The edits of some of `count` rows: what holds for all rows is left as it is.

    Args:
      rows: int [n], row numbers.
    """

    def some(value: Any, first: int) -> Any:  # first: the rank from which there is an axis of rows
        if value is None or np.ndim(value) < first or len(value) != count:
            return value
        return value[rows]

    return tuple(
        dataclasses.replace(
            edit,
            layer=some(edit.layer, 1),
            position=some(edit.position, 1),
            head=some(edit.head, 1),
            vector=some(edit.vector, 2),
            scale=some(edit.scale, 1),
        )
        for edit in edits
    )
