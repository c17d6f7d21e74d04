"""Generation for texts of any number and length: checks, batches and the end of each text.

The compiled programs are in `transformer/generation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.batches import batches
from taskvec_jax.transformer.checks import DAMAGED, check_texts
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params
from taskvec_jax.transformer.edits import Edit, canonical
from taskvec_jax.transformer.generation import Choice, Layers, extend, of_new_tokens, start

ROOM_STEP = 32  # the room for new tokens is rounded up to a multiple of this
WATCHED_STEP = 16  # new tokens between two calls of `watch`
EDITED = ("prompt", "always")  # which tokens are edited: the prompt's, or each new one too

Watch = Callable[[int, list[int]], bool]  # (number of the text, new ids) -> is it done?


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
        state = start(
            config,
            params,
            batch.tokens,
            batch.lengths,
            batch.edits,
            choice,
            room=room,
            split=layers is not None,
        )
        always = of_new_tokens(batch.edits) if edit == "always" else ()
        step = max_new_tokens if watch is None else WATCHED_STEP
        for until in (*range(step, max_new_tokens, step), max_new_tokens):
            if until > 1:  # `start` gave the first
                state = extend(config, params, layers, state, always, choice, np.int32(until))
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
