"""The programs of generation: a prompt's forward pass, then a loop of one token at a time.

Keys and values of the tokens so far are kept: a row of the cache has T slots for its prompt,
padding included, and N for new tokens. Every slot has a position and a branch (see
`context.Layout`), so what a new token attends to follows from the one rule of `context.visible`:
padding is never seen, and a sliding window holds.

On a CPU, XLA copies the parameters of a layer out of the stack whenever it uses them, which
doubles the time of a token. There the layers can be given one by one (`split_layers`).

Shapes: B rows, T prompt tokens, N new tokens, S = T + N slots, L layers, G key/value heads, K head
size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.context import (
    PADDING,
    TRUNK,
    AttentionContext,
    ContextByLayer,
    Layout,
    attention_context,
)
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params, at_positions
from taskvec_jax.transformer.edits import Edit
from taskvec_jax.transformer.writes import Write, apply_at, check_edits

CACHED = ("key", "value")

Layers = tuple[Params, ...]  # the parameters of each layer


class State(NamedTuple):
    """What the loop carries.

    Attributes:
      cache: "key", "value" -> [L, B, S, G, K]; or a tuple of L such without L.
      slots: layout of the cache, [B, S].
      lengths: int [B], tokens of each prompt.
      tokens: int [B], the newest ones.
      made: int [B, N], all new ones.
      given: int, how many each row has been given; those after its end mean nothing.
      sizes: int [B], how many of them count, the end-of-text token left out.
      ended: bool [B].
      finite: bool, whether all logits were.
    """

    cache: Any
    slots: Layout
    lengths: jax.Array
    tokens: jax.Array
    made: jax.Array
    given: jax.Array
    sizes: jax.Array
    ended: jax.Array
    finite: jax.Array


class Choice(NamedTuple):
    """How the next token is chosen.

    Attributes:
      keys: a random key for each row, [B]; None: the most likely token is taken, ties to the
        lowest id.
      temperature: what logits are divided by before a token is drawn.
      eos: int [E], tokens that end a row.
    """

    keys: jax.Array | None
    temperature: Any
    eos: Any


@functools.partial(jax.jit, static_argnames="count")
def split_layers(params: Params, count: int) -> Layers:
    """The parameters of each of `count` layers, copied out of the stack."""

    def one(index: int) -> Params:
        return jax.tree.map(lambda leaf: leaf[index], params["params"]["layers"])

    return tuple(map(one, range(count)))


def of_new_tokens(edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """The edits as they are written at a single new token."""
    return tuple(
        one if one.position is None else dataclasses.replace(one, position=np.zeros((), np.int32))
        for one in edits
    )


@functools.partial(jax.jit, static_argnames=("config", "room", "split"))
def start(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    edits: tuple[Edit, ...],
    choice: Choice,
    *,
    room: int,
    split: bool,
) -> State:
    """Reads the prompts [B, T] and chooses the first new token of each."""
    rows, num_tokens = tokens.shape
    decoder = Decoder(config)
    keep = {site: lambda value: value for site in CACHED}
    x, cache = decoder.apply(params, tokens, keep, edits, lengths=lengths, method="keep")
    logits = decoder.apply(params, at_positions(x, lengths - 1), method="unembed")
    cache = {
        site: jnp.pad(kept, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0)))
        for site, kept in cache.items()
    }
    place = jnp.arange(num_tokens + room, dtype=jnp.int32)
    new = place >= num_tokens
    ends = lengths[:, None]
    state = State(
        cache=cache,
        slots=Layout(
            jnp.where(new, ends + place - num_tokens, place),
            jnp.where(new | (place < ends), TRUNK, PADDING),
        ),
        lengths=lengths,
        tokens=jnp.zeros(rows, jnp.int32),
        made=jnp.zeros((rows, room), jnp.int32),
        given=jnp.int32(0),
        sizes=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
        finite=jnp.bool_(True),
    )
    if split:
        of_layer = [{s: kept[i] for s, kept in cache.items()} for i in range(config.num_layers)]
        state = state._replace(cache=tuple(of_layer))
    return _choose(state, logits, choice)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def extend(
    config: DecoderConfig,
    params: Params,
    layers: Layers | None,
    state: State,
    edits: tuple[Edit, ...],
    choice: Choice,
    until: jax.Array,
) -> State:
    """Adds tokens until each row has `until`, or all have ended."""
    decoder = Decoder(config)
    rows, room = state.made.shape
    num_tokens = state.slots.positions.shape[1] - room
    writes = check_edits(config, edits, rows, 1)

    def step(state: State) -> State:
        place = state.lengths + state.given - 1  # [B], of the newest tokens
        contexts = attention_context(
            config, Layout(place[:, None], jnp.full((rows, 1), TRUNK, jnp.int32)), state.slots
        )
        x = decoder.apply(params, state.tokens[:, None], place[:, None], method="embed")
        slot = num_tokens + state.given - 1
        x, cache = run_layers(config, params, layers, x, state.cache, slot, contexts, writes)
        logits = decoder.apply(params, x[:, 0], method="unembed")
        return _choose(state._replace(cache=cache), logits, choice)

    return jax.lax.while_loop(lambda state: (state.given < until) & ~state.ended.all(), step, state)


def _choose(state: State, logits: jax.Array, choice: Choice) -> State:
    """The state with the next token of each row, chosen by its logits [B, V]."""
    if choice.keys is None:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        keys = jax.vmap(jax.random.fold_in, (0, None))(choice.keys, state.given)
        drawn = jax.vmap(jax.random.categorical)(keys, logits / choice.temperature)
        tokens = drawn.astype(jnp.int32)
    ended = state.ended | (tokens[:, None] == choice.eos).any(axis=1)
    return state._replace(
        tokens=tokens,
        made=jax.lax.dynamic_update_slice(state.made, tokens[:, None], (0, state.given)),
        given=state.given + 1,
        sizes=state.sizes + ~ended,
        ended=ended,
        finite=state.finite & jnp.isfinite(logits).all(),
    )


def run_layers(
    config: DecoderConfig,
    params: Params,
    layers: Layers | None,
    x: jax.Array,
    cache: Any,
    slot: jax.Array,
    contexts: ContextByLayer,
    writes: tuple[Write, ...],
) -> tuple[jax.Array, Any]:
    """New tokens through all layers: the residual stream [B, n, D], and the cache with them.

    Args:
      layers: of `split_layers`, in place of the stack in `params`.
      x: the residual stream before block 0, [B, n, D].
      cache: as in `State`.
      slot: where in the cache the first of the new tokens stands.
    """
    if layers is not None:
        caches = []
        for index, (layer, of_layer) in enumerate(zip(layers, cache, strict=True)):
            seen = contexts.of_layer(index)[:3]
            place = jnp.int32(index)  # an array: the layers share one trace
            x, of_layer = _run_layer(config, layer, x, of_layer, place, slot, seen, writes, False)
            caches.append(of_layer)
        return x, tuple(caches)

    def step(carry: tuple[jax.Array, Any], layer: tuple[Params, jax.Array]) -> tuple[Any, None]:
        x, cache = carry
        seen = contexts.of_layer(layer[1])[:3]
        return _run_layer(config, layer[0], x, cache, layer[1], slot, seen, writes, True), None

    stacked = (params["params"]["layers"], jnp.arange(config.num_layers))
    return jax.lax.scan(step, (x, cache), stacked)[0]


@functools.partial(jax.jit, static_argnames=("config", "stacked"))
def _run_layer(
    config: DecoderConfig,
    layer: Params,
    x: jax.Array,
    cache: dict[str, jax.Array],
    index: jax.Array,
    slot: jax.Array,
    seen: tuple[jax.Array, jax.Array, jax.Array],
    writes: tuple[Write, ...],
    stacked: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`run_layers` of one; its cache is [B, S, G, K], or `stacked` with those of all layers."""
    cache = dict(cache)

    def visit(site: str, value: jax.Array) -> jax.Array:
        if site not in CACHED:
            return apply_at(writes, site, index, value)
        start = (index, 0, slot, 0, 0) if stacked else (0, slot, 0, 0)
        value = value[None] if stacked else value
        cache[site] = jax.lax.dynamic_update_slice(cache[site], value, start)
        return cache[site][index] if stacked else cache[site]

    block = FAMILY_MODULES[config.family].Block(config)
    x = block.apply({"params": layer}, x, AttentionContext(*seen, visit))
    return apply_at(writes, "resid", index, x), cache
