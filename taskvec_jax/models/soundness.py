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
from taskvec_jax.transformer.linear import attention_precision

NUM_TOKENS = 4
KNOWN = 128  # rows, columns and summands of the known product
# A product of float32 numbers is off by this share of its largest element at most, by precision:
# rounding to 24 bits, to 11 (TF32), to 8 (bfloat16); a sum of 128 products adds little to it.
PRODUCT_TOLERANCE = {"highest": 3e-6, "high": 2e-3, "default": 2e-2}
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
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    layer: jax.Array,
    known: tuple[np.ndarray, np.ndarray],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Finite [L + 1] (last: the logits), their size, how far two overrides move them, and the
    product of the known matrices as attention computes it."""
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
    product = jnp.matmul(*known, precision=attention_precision(config))
    return finite, jnp.abs(logits[0]).max(), moved[0], moved[1], product


def known_matrices() -> tuple[np.ndarray, np.ndarray]:
    """Two float32 matrices whose elements need all of their 24 bits."""
    places = np.arange(KNOWN * KNOWN, dtype=np.float64).reshape(KNOWN, KNOWN)
    return np.sin(places).astype(np.float32), np.cos(3 * places).astype(np.float32)


def check_product(name: str, config: DecoderConfig, product: np.ndarray) -> None:
    """Refuses a device that computes float32 products with fewer digits than it was asked for.

    Args:
      product: of `known_matrices`, as the device computes it.

    Raises:
      TaskVecError: it is further from the product in float64 than its precision allows.
    """
    a, b = (matrix.astype(np.float64) for matrix in known_matrices())
    right, precision = a @ b, attention_precision(config)
    off = float(np.abs(product - right).max() / np.abs(right).max())
    if not off <= PRODUCT_TOLERANCE[precision]:
        raise TaskVecError(
            f"{name}: a known product of float32 matrices is off by {off:.1e} of its size on this"
            f" device; precision {precision} allows {PRODUCT_TOLERANCE[precision]:.0e}. Numbers"
            " would not be those of float32: unset what lowers the precision (XLA_FLAGS,"
            " NVIDIA_TF32_OVERRIDE), or ask for it with --matmul_precision=default"
        )


def check_model(name: str, decoder: Decoder, params: Params) -> None:
    """Runs a few tokens and refuses a model that does not compute or cannot be intervened on.

    After the middle layer, row 0 is given its own residual stream back, which must change
    nothing, and row 1 the negative of it, which must change its logits.

    Raises:
      TaskVecError: activations that are not finite (it names the first such layer), or an
        override that does what it should not, or nothing; or a machine that sums wrongly, or
        computes products with fewer digits than the config asks for.
    """
    check_sums()
    config = decoder.config
    length = min(NUM_TOKENS, max(1, config.max_length - 1))
    tokens = np.arange(1, 1 + length, dtype=np.int32) * 7919 % config.vocab_size
    layer = config.num_layers // 2
    finite, size, own, other, product = map(
        to_host,
        _look(config, params, np.stack([tokens, tokens]), np.int32(layer), known_matrices()),
    )
    check_product(name, config, product)
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
