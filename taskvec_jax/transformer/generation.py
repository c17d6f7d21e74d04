"""Generation: a prompt's forward pass, then a compiled loop of one token at a time.

Keys and values of the tokens so far are kept: a row of the cache has T slots for its prompt,
padding included, and N for new tokens. Every slot has a position and a branch (see
`layers.Layout`), so what a new token attends to follows from the one rule of `layers.visible`:
padding is never seen, and a sliding window holds.

On a CPU, XLA copies the parameters of a layer out of the stack whenever it uses them, which
doubles the time of a token. There the layers can be given one by one (`split_layers`).

Shapes: B rows, T prompt tokens, N new tokens, S = T + N slots, L layers, G key/value heads, K head
size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.batches import batches
from taskvec_jax.transformer.checks import DAMAGED, check_texts
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Params, at_positions
from taskvec_jax.transformer.edits import Edit, canonical
from taskvec_jax.transformer.layers import (
    PADDING,
    TRUNK,
    AttentionContext,
    Layout,
    attention_context,
)
from taskvec_jax.transformer.writes import Write, apply_at, check_edits

ROOM_STEP = 32  # N is rounded up to a multiple of this
WATCHED_STEP = 16  # new tokens between two looks of the host at what was generated
EDITED = ("prompt", "always")  # which tokens are edited: the prompt's, or each new one too
CACHED = ("key", "value")

Layers = tuple[Params, ...]  # the parameters of each layer
Watch = Callable[[int, list[int]], bool]  # (number of the text, new ids) -> is it done?


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


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    edits: Any = (),
    edit: str = "prompt",
    temperature: float = 0.0,
    rng: Any = None,
    eos: Sequence[int] = (),
    watch: Watch | None = None,
    mesh: Mesh | None = None,
    layers: Layers | None = None,
) -> list[list[int]]:
    """Continues prompts.

    Args:
      prompts: token ids of N texts.
      max_new_tokens: how many tokens are added at most.
      edits: written while the prompts are read, in any form that `edits.as_edits` takes.
      edit: "prompt": nothing else is edited. "always": each new token is edited too as it is read,
        whatever the position of an edit in the prompt.
      temperature: 0 takes the most likely token; above, tokens are drawn after logits are divided
        by it. What is drawn depends on `rng` and the number of the text alone.
      rng: a seed or a key of jax.random; needed if temperature is above 0.
      eos: tokens that end a text; they are left out of it.
      watch: called now and then with the number of each text that goes on and its new ids; a text
        ends where it gives True.
      mesh: what prompts and parameters are split over.
      layers: of `split_layers`, to be used in place of the stack in `params`.

    Returns:
      The new ids of each text.

    Raises:
      TaskVecError: prompts that the model cannot read, or that leave no room for the new tokens
        within its context length; edits that do not fit; logits that are not finite.
    """
    edits = canonical(edits)
    check_texts(config, prompts)
    _check(config, prompts, max_new_tokens, edits, edit, temperature, rng)
    every = None
    if temperature > 0:
        every = jax.vmap(jax.random.fold_in, (None, 0))(_key(rng), np.arange(len(prompts)))
    ends = np.asarray(eos, np.int32).reshape(-1)
    room = -(-max_new_tokens // ROOM_STEP) * ROOM_STEP
    out: list[list[int]] = [[] for _ in prompts]
    for batch in batches(config, prompts, edits, mesh):
        keys = None if every is None else every[batch.filled]
        choice = Choice(keys, np.float32(temperature), ends)
        state = _start(
            config,
            params,
            batch.tokens,
            batch.lengths,
            batch.edits,
            choice,
            room=room,
            split=layers is not None,
        )
        always = _of_new_tokens(batch.edits) if edit == "always" else ()
        step = max_new_tokens if watch is None else WATCHED_STEP
        for until in (*range(step, max_new_tokens, step), max_new_tokens):
            state = _continue(config, params, layers, state, always, choice, np.int32(until))
            made, sizes, ended = to_host(state.made), to_host(state.sizes), to_host(state.ended)
            for row, number in enumerate(batch.numbers):
                out[number] = made[row, : sizes[row]].tolist()
            if watch is not None:
                ended = ended | [watch(number, out[number]) for number in batch.filled.tolist()]
                state = state._replace(ended=ended)
            if ended.all():
                break
        if not to_host(state.finite):
            raise TaskVecError(f"the logits, after the last layer, are not finite; {DAMAGED}")
    return out


def _key(rng: Any) -> jax.Array:
    """A key of jax.random: of a seed, or a key in its new or old form."""
    if not isinstance(rng, jax.Array):
        return jax.random.key(rng)
    is_key = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    return rng if is_key else jax.random.wrap_key_data(rng)


def _check(
    config: DecoderConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    edits: tuple[Edit, ...],
    edit: str,
    temperature: float,
    rng: Any,
) -> None:
    """Refuses what `generate` cannot do.

    Raises:
      TaskVecError: it says what, and what is allowed.
    """
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise TaskVecError(f"max_new_tokens is {max_new_tokens!r}; allowed: 1 or more")
    longest = max(map(len, prompts))
    if longest + max_new_tokens > config.max_length:
        raise TaskVecError(
            f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens} are more than the"
            f" context length of this model, {config.max_length}: shorten the prompt or lower"
            " max_new_tokens"
        )
    if edit not in EDITED:
        raise TaskVecError(f"edit is {edit!r}; allowed: {', '.join(EDITED)}")
    if edit == "always" and any(np.ndim(one.vector) == 3 for one in edits):
        raise TaskVecError(
            "edit='always' writes one vector a row at each new token, and an edit has one for each"
            " position; give it [D] or [B, D], or use edit='prompt'"
        )
    if not np.isfinite(temperature) or temperature < 0:
        raise TaskVecError(f"temperature is {temperature}; allowed: 0 or more")
    if temperature > 0 and rng is None:
        raise TaskVecError(
            "temperature is above 0 and there is no rng; give a seed (rng=0) or a jax.random key"
        )


def _of_new_tokens(edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """The edits as they are written at a single new token."""
    return tuple(
        one if one.position is None else dataclasses.replace(one, position=np.zeros((), np.int32))
        for one in edits
    )


@functools.partial(jax.jit, static_argnames=("config", "room", "split"))
def _start(
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
def _continue(
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
        context = attention_context(
            config, Layout(place[:, None], jnp.full((rows, 1), TRUNK, jnp.int32)), state.slots
        )
        x = decoder.apply(params, state.tokens[:, None], method="embed")
        slot = num_tokens + state.given - 1
        x, cache = _run_layers(config, params, layers, x, state.cache, slot, context, writes)
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


def _run_layers(
    config: DecoderConfig,
    params: Params,
    layers: Layers | None,
    x: jax.Array,
    cache: Any,
    slot: jax.Array,
    context: AttentionContext,
    writes: tuple[Write, ...],
) -> tuple[jax.Array, Any]:
    """New tokens through all layers: the residual stream [B, 1, D], and the cache with them."""
    seen = (context.mask, context.cos, context.sin)
    if layers is not None:
        caches = []
        for index, (layer, of_layer) in enumerate(zip(layers, cache, strict=True)):
            place = jnp.int32(index)  # an array: the layers share one trace
            x, of_layer = _run_layer(config, layer, x, of_layer, place, slot, seen, writes, False)
            caches.append(of_layer)
        return x, tuple(caches)

    def step(carry: tuple[jax.Array, Any], layer: tuple[Params, jax.Array]) -> tuple[Any, None]:
        x, cache = carry
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
    """`_run_layers` of one; its cache is [B, S, G, K], or `stacked` with those of all layers."""
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
