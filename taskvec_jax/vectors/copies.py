"""Copies of a text's last tokens beside the text itself, each changed in a way of its own.

Interventions at the last tokens of one text share everything before those tokens, so one row runs
all of them: the text, and one branch for each copy (see `context.Layout`).

    tokens     example : Plum     ->         ->      ->      ->     ...
    branch     0       0 0        1          2       3       4
               +---- trunk ---+-- untouched
                              +-- copy 0, changed from its layer on
                              +-- copy 1, changed from its layer on
                              +-- ...

Until its layer a copy is what it was copied from, so it joins the row late: copies join in groups
as the layers go by (a wavefront), with the state of the untouched tokens. A copy whose residual
stream is changed after layer l need not run block l: it may join after it, and is changed then.

Shapes: B rows, T tokens, C copies, n copies alive, P tokens of a copy, S = T + n P tokens of a row,
L layers, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import (
    PADDING,
    TRUNK,
    ContextByLayer,
    Layout,
    apart,
    attention_context,
)
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params
from taskvec_jax.transformer.edits import SITES

OF_HEADS = [[name, "kernel"] for name in ("query", "key", "value")]  # [L, D, H, K], of attention
HALF = (jnp.bfloat16, jnp.float16)
Step = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]  # of a scan over layers
Schedule = tuple[tuple[int, int], ...]  # (layers done, copies alive) at the end of each group
# (site, values of the copies alive [B, n, P, ...], layer) -> the values to go on with
Change = Callable[[str, jax.Array, jax.Array], jax.Array]
# (layer, n) -> bool [B or 1, n], the copies that may not see the text before them in this layer
Hidden = Callable[[jax.Array, int], jax.Array]


def take_layer(params: Params, index: jax.Array) -> Params:
    """The parameters of one layer, taken from the stack inside a loop over layers."""

    def take(leaf: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

    def take_bits(leaf: jax.Array, index: jax.Array) -> jax.Array:
        # XLA's CPU compiler widens 16-bit floats before it slices them: the whole stack, at every
        # call, for a tenth of the time. As whole numbers they are left alone; and the barrier
        # keeps it from making whole numbers of the whole stack before the loop.
        leaf, here = jax.lax.optimization_barrier((leaf, index))
        bits = take(jax.lax.bitcast_convert_type(leaf, jnp.uint16), here)
        return jax.lax.bitcast_convert_type(bits, leaf.dtype)

    def take_one(leaf: jax.Array) -> jax.Array:
        # By the platform a program is compiled for, which need not be the one that compiles it.
        cpu = take_bits if leaf.dtype in HALF else take
        return jax.lax.platform_dependent(leaf, index, cpu=cpu, default=take)

    return jax.tree.map(take_one, params["params"]["layers"])


def kernels_of_group(params: Params, x: jax.Array) -> Params:
    """The same parameters, for one of several loops over layers that begins with a state x.

    A TPU's compiler wants kernels [D, H, K] in another order than they are kept in. It brings one
    layer after another into that order if a single loop uses them; where several share them it
    copies their whole stacks before the first (.71 GB a chip for Pythia 12B on eight). Behind a
    barrier each loop has kernels of its own, and nothing is copied before it.
    """

    def of_this_loop(leaf: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier((leaf, x))[0]

    def shared(leaf: jax.Array, x: jax.Array) -> jax.Array:
        return leaf

    def kernel(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if [key.key for key in path[1:]] not in OF_HEADS:
            return leaf
        return jax.lax.platform_dependent(leaf, x, tpu=of_this_loop, default=shared)

    layers = jax.tree_util.tree_map_with_path(kernel, params["params"]["layers"])
    return {"params": {**params["params"], "layers": layers}}


def run_copies(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    last: jax.Array,
    *,
    change: Change,
    schedule: Schedule,
    size: int = 1,
    begins: jax.Array | None = None,
    hidden: Hidden | None = None,
    separate: bool = False,
    wrap: Callable[[Step], Step] = lambda step: step,
) -> jax.Array:
    """The residual stream after the last block at the last token of a text and of its copies.

    Args:
      tokens: int [B, T], texts, right-padded.
      last: int [B], index of the last token of each text.
      change: called for the sites "head", "attn_out", "mlp_out" and "resid" of every layer (see
        `context.Visit`); what it returns unchanged costs nothing.
      schedule: copy c must not be changed before the group in which it is first alive, but for its
        residual stream after the layer before that group. A last group may have no layers.
      size: P, how many of the last tokens are copied.
      begins: int [B], the first token that is copied, where some texts copy fewer than P; the
        tokens of their copies before it are padding. None: P tokens before the end.
      hidden: which copies may not attend to the tokens before them, in a layer. The first token of
        a text stays visible: it attends to itself alone, so it carries nothing of the text after
        it, and models use it as a place to attend to when there is nothing to attend to. None:
        every copy attends to all of them.
      separate: no scores between copies are computed; worth it where there are hundreds of tokens
        of copies.
      wrap: put round the step over one layer (a gradient wants `jax.checkpoint` there).

    Returns:
      [B, 1 + C, D]; the first is the untouched text's.
    """
    rows, length = tokens.shape
    block = FAMILY_MODULES[config.family].Block(config)
    place = jnp.arange(length, dtype=jnp.int32)[None]
    copied = last[:, None] - (size - 1) + jnp.arange(size, dtype=jnp.int32)  # [B, P]
    first = copied[:, 0] if begins is None else begins
    real = copied >= first[:, None]
    before = place < first[:, None]  # [B, T]
    own = jnp.where(before, TRUNK, jnp.where(place <= last[:, None], 1, PADDING))
    x = Decoder(config).apply(params, tokens, place, method="embed")
    start = 0
    for stop, alive in schedule:
        joined = (x.shape[1] - length) // size
        fresh = jnp.take_along_axis(x, jnp.maximum(copied, 0)[..., None], axis=1)  # [B, P, D]
        x = jnp.concatenate([x, jnp.tile(fresh, (1, alive - joined, 1))], axis=1)
        if start and alive > joined:
            copies = x[:, length:].reshape(rows, alive, size, -1)
            changed = change("resid", copies, jnp.int32(start - 1)).astype(x.dtype)
            changed = changed[:, joined:].reshape(rows, -1, x.shape[-1])
            x = jnp.concatenate([x[:, : length + joined * size], changed], axis=1)
        if stop == start:
            continue
        branch = jnp.arange(alive, dtype=jnp.int32)[:, None] + 2  # [n, 1]
        branches = jnp.where(real[:, None], branch, PADDING).reshape(rows, alive * size)
        layout = Layout(
            jnp.concatenate(
                [jnp.broadcast_to(place, (rows, length)), jnp.tile(copied, (1, alive))], axis=1
            ),
            jnp.concatenate([own, branches], axis=1),
        )
        contexts, held = attention_context(config, layout), kernels_of_group(params, x)

        def step(
            x: jax.Array,
            index: jax.Array,
            contexts: ContextByLayer = contexts,
            alive: int = alive,
            held: Params = held,
        ) -> tuple[jax.Array, None]:
            def visit(site: str, value: jax.Array) -> jax.Array:
                if site not in SITES:
                    return value
                copies = value[:, length:].reshape(rows, alive, size, *value.shape[2:])
                changed = change(site, copies, index)
                if changed is copies:
                    return value
                changed = changed.astype(value.dtype).reshape(rows, -1, *value.shape[2:])
                return jnp.concatenate([value[:, :length], changed], axis=1)

            context = contexts.of_layer(index)
            mask = context.mask
            if hidden is not None:
                unseeing = jnp.repeat(hidden(index, alive), size, axis=1)  # [B or 1, n P]
                unseen = jnp.pad(before & (place > 0), ((0, 0), (0, alive * size)))  # [B, S]
                seen = mask[:, length:] & ~(unseeing[:, :, None] & unseen[:, None])
                mask = jnp.concatenate([mask[:, :length], seen], axis=1)
            here = context._replace(mask=mask, visit=visit)
            if separate and alive:
                here = apart(here, length, size)
            x = block.apply({"params": take_layer(held, index)}, x, here)
            return visit("resid", x), None

        x, _ = jax.lax.scan(wrap(step), x, jnp.arange(start, stop))
        start = stop
    plain = jnp.take_along_axis(x, last[:, None, None], axis=1)
    return jnp.concatenate([plain, x[:, length + size - 1 :: size]], axis=1)
