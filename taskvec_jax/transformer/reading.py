"""Reading a decoder while it runs: any site, any layers, any positions.

What is read is gathered inside the scan over layers, so that [L, B, T, D] never exists unless all
positions of all layers are asked for.

Sites are those of edits.py, and "pattern", the weights of attention: for each head, how much the
token at a position attends to each token of the row.

Shapes: B rows, T tokens, P positions, n layers read, D width, H heads, K head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.checks import check_tokens
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params
from taskvec_jax.transformer.edits import ALL, SITES, as_index, canonical
from taskvec_jax.transformer.writes import check_edits, check_lengths, in_range, resolve

READABLE = (*SITES, "pattern")


def read_sites(
    config: DecoderConfig,
    params: Params,
    tokens: Any,
    lengths: Any = None,
    *,
    site: str = "resid",
    layers: Any = None,
    positions: Any = -1,
    edits: Any = (),
) -> jax.Array:
    """What stands at a site, after the edits.

    jit, vmap and grad pass through everything but the site; without them it is compiled once for
    each shape of the arguments.

    Args:
      tokens: int [B, T], rows padded on the right.
      lengths: int [B], how many tokens of each row are its text; None: all T.
      site: one of `READABLE`.
      layers: an int or a list, 0-based; None: all of them.
      positions: as `position` of an edit: an int or an array [B] reads one a row; a list or an
        array [B, P] several; "all" or None all T, with NaN beyond a row's text.
      edits: what is written meanwhile, in any form that `edits.as_edits` takes.

    Returns:
      [B, n, ...] for one position a row, [B, P, n, ...] for several, where ... is D, H x K at the
      site "head", and H x T at the site "pattern". Traced indices that are out of range give NaN.

    Raises:
      TaskVecError: an unknown site; a concrete index out of range, or shapes that do not fit.
    """
    if site not in READABLE:
        raise TaskVecError(f"site is {site!r}; allowed: {', '.join(READABLE)}")
    tokens = check_tokens(config, tokens)
    rows, num_tokens = tokens.shape
    lengths = check_lengths(lengths, rows, num_tokens)
    edits = canonical(edits)
    check_edits(config, edits, rows, num_tokens, lengths)
    if layers is not None:
        layers = as_index("layers", layers).reshape(-1)
        in_range("layers", layers[None], config.num_layers, rows)
    if positions is None or (isinstance(positions, str) and positions == ALL):
        positions = None
    else:
        positions = as_index("positions", positions)
        resolve("positions", positions, num_tokens, rows, lengths)
    return _read(config, params, tokens, lengths, site, layers, positions, edits)


@functools.partial(jax.jit, static_argnames=("config", "site"))
def _read(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array | None,
    site: str,
    layers: jax.Array | None,
    positions: jax.Array | None,
    edits: Any,
) -> jax.Array:
    take = gather(tokens.shape, lengths, positions)

    def keep(value: jax.Array) -> jax.Array:
        if site == "pattern":  # [B, G, H / G, T, S] -> [B, T, H, S]
            B, _, _, T, S = value.shape
            value = value.reshape(B, -1, T, S).swapaxes(1, 2)
        return take(value)

    _, kept = Decoder(config).apply(
        params, tokens, {site: keep}, edits, lengths=lengths, layers=layers, method="keep"
    )
    return jnp.moveaxis(kept[site], 0, 1 if positions is not None and positions.ndim < 2 else 2)


def gather(
    shape: tuple[int, ...], lengths: Any, positions: Any
) -> Callable[[jax.Array], jax.Array]:
    """Takes positions out of [B, T, ...]: [B, ...] for one a row, else [B, P, ...].

    Args:
      shape: (B, T).
      lengths: int [B] or None.
      positions: an index as `edits.as_index` gives it; None: all, with NaN beyond a row's text.
    """
    rows, num_tokens = shape
    if positions is None:
        if lengths is None:
            return lambda x: x
        inside = jnp.arange(num_tokens) < lengths[:, None]
        return lambda x: jnp.where(_against(inside, x), x, jnp.nan)
    where, inside = resolve("positions", positions, num_tokens, rows, lengths)
    row = jnp.arange(rows)[:, None]

    def take(x: jax.Array) -> jax.Array:
        x = x[row, where]  # [B, P, ...]
        if inside is not None:
            x = jnp.where(_against(inside[:, None], x), x, jnp.nan)
        return x[:, 0] if positions.ndim < 2 else x

    return take


def _against(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask [B, T] with as many axes as x [B, T, ...]."""
    return mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
