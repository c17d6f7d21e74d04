"""The look every model gets when it is loaded: does it compute, and does an override bite?

A port that differs silently, and an intervention that hits nothing, are what users of other tools
lose weeks to. One compiled call, two rows of a few tokens: it costs a fraction of a second.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.distributed.backend import check_sums
from taskvec_jax.distributed.processes import to_host
from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Override, Params

NUM_TOKENS = 4
# Logits of two runs that should agree, as a share of their own size.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 5e-2, "float16": 2e-2}


def _read(
    decoder: Decoder, params: Params, tokens: jax.Array, position: int, override: Override
) -> tuple[jax.Array, jax.Array]:
    residuals, logits = cast(
        tuple[jax.Array, jax.Array],
        decoder.apply(params, tokens, position, override, method="read"),
    )
    return residuals, logits


@functools.partial(jax.jit, static_argnames="config")
def _look(
    config: DecoderConfig, params: Params, tokens: jax.Array, layer: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Finite [L + 1] (last: the logits), their size, and how far two overrides move them."""
    decoder = Decoder(config)
    last = tokens.shape[1] - 1

    # The decoder is compiled once: a loop of two turns, the first with an override that writes
    # to a token after the one that is read, which the causal mask hides.
    zeros = jnp.zeros((2, config.width), config.stream_dtype)
    hidden = jnp.concatenate([tokens, tokens[:, :1]], axis=1)

    def turn(written: tuple[jax.Array, jax.Array], _: None):
        vector, position = written
        override = Override(layer, position, vector)
        read, logits = _read(decoder, params, hidden, last, override)
        own = read[layer]  # [2, D]
        return (own * jnp.array([[1.0], [-1.0]], own.dtype), jnp.full(2, last)), (read, logits)

    _, (reads, logits) = jax.lax.scan(turn, (zeros, jnp.full(2, last + 1)), None, length=2)
    finite = jnp.isfinite(reads[0]).all(axis=(1, 2))
    finite = jnp.concatenate([finite, jnp.isfinite(logits[0]).all()[None]])
    moved = jnp.abs(logits[1] - logits[0]).max(axis=-1)
    return finite, jnp.abs(logits[0]).max(), moved[0], moved[1]


def check_model(name: str, decoder: Decoder, params: Params) -> None:
    """Runs a few tokens and refuses a model that does not compute or cannot be intervened on.

    After the middle layer, row 0 is given its own residual stream back, which must change
    nothing, and row 1 the negative of it, which must change its logits.

    Raises:
      TaskVecError: activations that are not finite (it names the first such layer), or an
        override that does what it should not, or nothing; or a machine that sums wrongly.
    """
    check_sums()
    config = decoder.config
    length = min(NUM_TOKENS, max(1, config.max_length - 1))
    tokens = np.arange(1, 1 + length, dtype=np.int32) * 7919 % config.vocab_size
    layer = config.num_layers // 2
    finite, size, own, other = map(
        to_host, _look(config, params, np.stack([tokens, tokens]), np.int32(layer))
    )
    if not finite.all():
        first = int(np.argmin(finite))
        place = f"after layer {first}" if first < config.num_layers else "at the logits"
        raise TaskVecError(
            f"{name}: activations are not finite {place}; the weights are damaged, or overflow in"
            f" {config.dtype}: try --dtype=float32"
        )
    allowed = TOLERANCE[config.dtype] * max(float(size), 1e-30)
    if not own <= allowed:
        raise TaskVecError(
            f"{name}: writing its own residual stream back after layer {layer} moves its logits by"
            f" {own:.3g} (allowed {allowed:.3g}); reading and writing do not agree on this machine"
        )
    if not other > 0:
        raise TaskVecError(
            f"{name}: an override after layer {layer} changes nothing; its later layers or its"
            " unembedding ignore the residual stream, so the weights are damaged"
        )
