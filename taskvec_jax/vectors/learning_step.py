"""The compiled programs of learning: the loss of examples under vectors, and a step of Adam.

Shapes: B examples of a step, C vectors (one a trained layer), P positions of each, D width, V
vocabulary, A answers. Vectors are [C, D], or [C, P, D] at the last P tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params
from taskvec_jax.vectors.examples import Examples
from taskvec_jax.vectors.graded import log_probability
from taskvec_jax.vectors.programs import copy_states, top

Schedule = tuple[tuple[int, int], ...]  # see `programs.copy_states`


def losses_of(
    config: DecoderConfig,
    params: Params,
    examples: Examples,
    vectors: jax.Array,
    layers: jax.Array,
    schedule: Schedule,
) -> tuple[jax.Array, jax.Array]:
    """Loss of every example under every vector, in nats, and the predicted tokens.

    Args:
      examples: B of them.
      vectors: [C, D] or [C, P, D], the same for all examples.
      layers: int [C], the layer after which each replaces the residual stream at the last token.
      schedule: see `sweep.copy_states`.

    Returns:
      losses [B, C]: minus the log-probability that the next token is an answer, or the KL of the
        wanted distribution from the model's; tokens int32 [B, C], the most likely next ones.
    """
    rows, copies = examples.tokens.shape[0], vectors.shape[0]
    states = copy_states(
        config,
        params,
        jnp.asarray(examples.tokens),
        jnp.asarray(examples.last),
        jnp.broadcast_to(vectors, (rows, *vectors.shape)),
        jnp.broadcast_to(layers, (rows, copies)),
        schedule,
        # Otherwise a backward pass keeps a copy of all weights: the slices the loop takes of them.
        functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
    )
    logits = Decoder(config).apply(params, states[:, 1:], method="unembed")  # [B, C, V]
    if examples.wanted.shape[-1]:
        whole = jax.nn.logsumexp(logits, axis=-1)
        wanted = jnp.asarray(examples.wanted, logits.dtype)
        share = jnp.exp(wanted)  # [B, V]
        entropy = jnp.sum(share * wanted, axis=-1)[:, None]
        losses = entropy + whole - jnp.einsum("bv,bcv->bc", share, logits, precision="highest")
    else:
        losses = -log_probability(logits, jnp.asarray(examples.answers))
    return losses, top(jax.lax.stop_gradient(logits))[0]


score_vectors = functools.partial(jax.jit, static_argnames=("config", "schedule"))(losses_of)
ADAM = optax.scale_by_adam()


def hold_norm(vectors: jax.Array, norms: jax.Array | None) -> jax.Array:
    """Vectors [..., D] scaled to these norms [...]; untouched when None."""
    if norms is None:
        return vectors
    return vectors * (norms / jnp.linalg.norm(vectors, axis=-1))[..., None]


@functools.partial(jax.jit, static_argnames=("config", "schedule", "count"))
def train_step(
    config: DecoderConfig,
    params: Params,
    examples: Examples,
    vectors: jax.Array,
    state: optax.OptState,
    layers: jax.Array,
    schedule: Schedule,
    units: jax.Array,
    rate: jax.Array,
    held: jax.Array | None,
    count: int,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    """One step of Adam on every vector.

    Args:
      examples, vectors, layers, schedule: as of `losses_of`.
      state: of `ADAM`.
      units: [C] or [C, P], what vectors are measured in at each layer.
      rate: learning rate, in those units.
      held: [C] or [C, P], norms the vectors are held at; None leaves them free.
      count: the examples that count, the first ones.

    Returns:
      vectors, the optimiser's state, and the mean loss of each vector before the step [C].
    """

    def total(scaled: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses, _ = losses_of(config, params, examples, scaled * units[..., None], layers, schedule)
        losses = losses[:count].mean(axis=0)
        return losses.sum(), losses

    scaled = vectors / units[..., None]
    gradient, losses = jax.grad(total, has_aux=True)(scaled)
    updates, state = ADAM.update(gradient, state)
    update = jnp.asarray(updates)
    return hold_norm((scaled - rate * update) * units[..., None], held), state, losses
