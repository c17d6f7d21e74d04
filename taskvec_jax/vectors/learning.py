"""Learned task vectors: what a vector at (layer, last position) could do at best.

The decoder is frozen; one vector for each layer is trained by gradient through the override, all
layers in one program. A copy of the last token carries each layer's vector (`sweep.copy_states`),
and copies never see each other, so the gradient of the sum of their losses is every layer's own
gradient. The tokens before the last one do not depend on any vector. With vectors at the last P
tokens a copy is P tokens; all P vectors of a layer are written, and learned, together.

Vectors are trained in units of the root mean square of the initial theta at their layer, because
residual streams grow by orders of magnitude with depth and Adam's steps do not.

Over a mesh the rows of a step lie on `data`; a step whose rows `data` does not divide is filled up
with rows that do not count.

Shapes: N examples, B of them in a step, T tokens, C copies (one a trained layer), A answers, D
width, V vocabulary. Vectors are [C, D], or [C, P, D] at the last P tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.distributed.sharding import put_rows, rows_for
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.tokenizer import PAD
from taskvec_jax.transformer.checks import (
    check_answers,
    check_ids,
    check_length,
    check_range,
    check_vectors,
)
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params
from taskvec_jax.vectors.programs import copy_states, schedule_of, top
from taskvec_jax.vectors.sweep import check_positions

NO_ANSWER = -1  # fills up the answers of an example that has fewer than others
Births = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How vectors are trained.

    Attributes:
      steps: of Adam; the learning rate falls to zero over them along a cosine.
      batch_size: examples in a step.
      learning_rate: in units of the root mean square of theta at the layer.
      check_every: steps between two looks at dev.
      norm: the vector's norm is held at this multiple of theta's at the layer; free when None.
      seed: of the order of examples.
    """

    steps: int = 30
    batch_size: int = 16
    learning_rate: float = 0.1
    check_every: int = 10
    norm: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "check_every", "steps"):
            if (got := getattr(self, name)) < 1:
                raise TaskVecError(f"{name} is {got}; it must be at least 1")
        for name in ("learning_rate", "norm"):
            got = getattr(self, name)
            if got is not None and not 0 < got < float("inf"):
                raise TaskVecError(f"{name} is {got}; it must be above 0 and finite")


class Examples(NamedTuple):
    """Zero-shot queries and what should come next.

    Attributes:
      tokens: int32 [N, T], right-padded.
      last: int32 [N], index of the last token.
      answers: int32 [N, A], tokens of which any is right; `NO_ANSWER` where there are fewer.
      wanted: float32 [N, V], log-probabilities to come close to instead of the answers; [N, 0]
        when the answers count.
    """

    tokens: np.ndarray
    last: np.ndarray
    answers: np.ndarray
    wanted: np.ndarray


def make_examples(
    queries: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    wanted: np.ndarray | None = None,
) -> Examples:
    """Pads token ids to `Examples`.

    Raises:
      TaskVecError: no example, or one without an answer.
    """
    if not queries or not all(answers):
        raise TaskVecError("there is nothing to learn from; every example needs an answer")
    last = np.array([len(query) - 1 for query in queries], np.int32)
    # To an even length only: padding is paid for at every step, forwards and backwards.
    tokens = np.full((len(queries), last.max() // 2 * 2 + 2), PAD, np.int32)
    for row, query in zip(tokens, queries, strict=True):
        row[: len(query)] = query
    padded = np.full((len(answers), max(map(len, answers))), NO_ANSWER, np.int32)
    for row, ids in zip(padded, answers, strict=True):
        row[: len(ids)] = ids
    if wanted is None:
        wanted = np.zeros((len(queries), 0), np.float32)
    return Examples(tokens, last, padded, wanted)


def losses_of(
    config: DecoderConfig,
    params: Params,
    examples: Examples,
    vectors: jax.Array,
    layers: jax.Array,
    schedule: Births,
) -> tuple[jax.Array, jax.Array]:
    """Loss of every example under every vector, in nats, and what the model says.

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
    whole = jax.nn.logsumexp(logits, axis=-1)
    if examples.wanted.shape[-1]:
        wanted = jnp.asarray(examples.wanted, logits.dtype)
        share = jnp.exp(wanted)  # [B, V]
        entropy = jnp.sum(share * wanted, axis=-1)[:, None]
        losses = entropy + whole - jnp.einsum("bv,bcv->bc", share, logits)
    else:
        answers = jnp.asarray(examples.answers)[:, None]  # [B, 1, A]
        picked = jnp.take_along_axis(logits, jnp.maximum(answers, 0), axis=-1)
        right = jnp.where(answers == NO_ANSWER, -jnp.inf, picked)
        losses = whole - jax.nn.logsumexp(right, axis=-1)
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
    schedule: Births,
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


@dataclasses.dataclass(frozen=True)
class Learned:
    """Vectors as they did best on dev.

    Attributes:
      vectors: float32 [C, D] or [C, P, D].
      step: int [C], after how many steps each was taken; 0 is the initial value.
      dev_accuracy: float [C].
      losses: float32 [steps, C], mean training loss of each vector at each step.
      checks: the steps dev was looked at, and dev loss and accuracy [checks, C] there.
    """

    vectors: np.ndarray
    step: np.ndarray
    dev_accuracy: np.ndarray
    losses: np.ndarray
    checks: list[int]
    dev_losses: np.ndarray
    dev_accuracies: np.ndarray


def learn(
    model: Model,
    train: Examples,
    dev: Examples,
    is_right: Callable[[np.ndarray], np.ndarray],
    initial: np.ndarray,
    norms: np.ndarray,
    layers: Sequence[int],
    recipe: Recipe,
    progress: Callable[[int], None] = lambda step: None,
) -> Learned:
    """Trains one vector for each layer; each is kept as it did best on dev.

    Args:
      train, dev: examples.
      is_right: what the model says to the dev examples, int [N, C] -> bool [N, C].
      initial: [C, D], or [C, P, D] for vectors at the last P tokens.
      norms: [C] or [C, P], of theta at each layer; above 0.
      layers: C layers in rising order.
      recipe: how.
      progress: called with the steps done.

    Returns:
      The best vectors by dev accuracy, ties to the lower dev loss; the initial ones count.

    Raises:
      TaskVecError: layers out of range or order, shapes that do not fit, a query of fewer than P
        tokens, or a loss that is not finite; the message names its layer.
    """
    config = model.config
    check_layers(layers, config.num_layers)
    for part in (train, dev):
        check_examples(config, part)
    shape = (len(layers), *initial.shape[1:-1], config.width)
    if initial.ndim not in (2, 3) or initial.shape != shape or norms.shape != shape[:-1]:
        raise TaskVecError(
            f"initial vectors have shape {initial.shape} and norms {norms.shape}; allowed:"
            f" {shape} and {shape[:-1]}, one vector for each layer trained, or one for each of its"
            " positions"
        )
    check_vectors(initial, np.asarray(layers))
    check_norms(norms, layers)
    shortest = 1 + min(int(part.last.min()) for part in (train, dev))
    check_positions(shortest, initial.shape[1] if initial.ndim == 3 else 1)
    schedule = schedule_of(layers, config.num_layers)
    place = np.asarray(layers, np.int32)
    held: Any = None if recipe.norm is None else (recipe.norm * norms).astype(np.float32)
    units = (norms / config.width**0.5).astype(np.float32)
    rates = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
    # Kept on the host between steps: what a step gives stands on the devices of the parameters,
    # what it is first given stands nowhere yet, and that alone would compile it twice.
    vectors = np.asarray(hold_norm(jnp.asarray(initial, jnp.float32), held))
    state = jax.device_get(ADAM.init(vectors))
    order = _order(len(train.tokens), recipe)
    fill = rows_for(model.mesh, recipe.batch_size) - recipe.batch_size
    best = vectors
    best_score = np.full((2, len(layers)), -np.inf)  # accuracy, minus the loss
    best_step = np.zeros(len(layers), int)
    losses, checks, dev_losses, dev_accuracies = [], [], [], []
    for step in range(recipe.steps + 1):
        if step % recipe.check_every == 0 or step == recipe.steps:
            loss, said = _scores(model, dev, vectors, layers, recipe.batch_size)
            accuracy = is_right(said).mean(axis=0)
            _check_finite(loss.mean(axis=0), layers, step, recipe)
            score = np.stack([accuracy, -loss.mean(axis=0)])
            better = (score[0] > best_score[0]) | (
                (score[0] == best_score[0]) & (score[1] > best_score[1])
            )
            best = np.where(better.reshape(-1, *[1] * (initial.ndim - 1)), vectors, best)
            best_score, best_step = (
                np.where(better, score, best_score),
                np.where(better, step, best_step),
            )
            checks.append(step)
            dev_losses.append(loss.mean(axis=0))
            dev_accuracies.append(accuracy)
        if step == recipe.steps:
            break
        rows = np.pad(order[step], (0, fill), mode="edge")
        batch = put_rows(model.mesh, Examples(*(leaf[rows] for leaf in train)))
        vectors, state, loss = jax.tree.map(
            to_host,
            train_step(
                config,
                model.params,
                batch,
                vectors,
                state,
                place,
                schedule,
                units,
                np.asarray(rates(step), np.float32),
                held,
                recipe.batch_size,
            ),
        )
        losses.append(loss)
        _check_finite(loss, layers, step, recipe)
        progress(step + 1)
    return Learned(
        best,
        best_step,
        best_score[0],
        np.array(losses),
        checks,
        np.array(dev_losses),
        np.array(dev_accuracies),
    )


def score_examples(
    model: Model,
    examples: Examples,
    vectors: jax.typing.ArrayLike,
    layers: Sequence[int],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [N, C] and the most likely tokens int [N, C] of any number of examples.

    Raises:
      TaskVecError: layers or examples that do not fit the model, or a vector or a loss that is not
        finite; the message names its layer.
    """
    check_layers(layers, model.config.num_layers)
    check_examples(model.config, examples)
    check_vectors(np.asarray(vectors), np.asarray(layers))
    losses, said = _scores(model, examples, vectors, layers, batch_size)
    check_answers(losses, np.broadcast_to(np.asarray(layers), losses.shape))
    return losses, said


def _scores(
    model: Model,
    examples: Examples,
    vectors: jax.typing.ArrayLike,
    layers: Sequence[int],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`score_examples` without its checks."""
    schedule = schedule_of(layers, model.config.num_layers)
    losses, said = [], []
    count, batch_size = len(examples.tokens), rows_for(model.mesh, batch_size)
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)  # one shape
        batch = put_rows(model.mesh, Examples(*(leaf[rows] for leaf in examples)))
        loss, tokens = score_vectors(
            model.config,
            model.params,
            batch,
            np.asarray(vectors),
            np.asarray(layers, np.int32),
            schedule,
        )
        losses.append(to_host(loss)[: count - start])
        said.append(to_host(tokens)[: count - start])
    return np.concatenate(losses), np.concatenate(said)


def check_examples(config: DecoderConfig, examples: Examples) -> None:
    """Refuses examples that a model cannot read or answer.

    Raises:
      TaskVecError: a query beyond the context, or a token id or an index out of range.
    """
    check_range("last token", examples.last, examples.tokens.shape[1])
    check_length(config, int(examples.last.max()) + 1)
    check_ids(config, examples.tokens)
    check_ids(config, examples.answers[examples.answers != NO_ANSWER], "answer's token id")


def check_norms(norms: np.ndarray, layers: Sequence[int]) -> None:
    """Refuses norms [C] or [C, P] of theta that nothing can be measured in.

    Raises:
      TaskVecError: one is not above 0 and finite; the message names its layer.
    """
    good = (np.isfinite(norms) & (norms > 0)).reshape(len(layers), -1).all(axis=1)
    if not good.all():
        raise TaskVecError(
            f"the norm of theta after layer {layers[int(np.argmin(good))]} is not above 0 and"
            " finite; no vector can be learned in units of it"
        )


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Refuses layers that cannot be trained together.

    Raises:
      TaskVecError: none, out of range, or not in rising order.
    """
    if not layers or list(layers) != sorted(set(layers)):
        raise TaskVecError(f"layers are {list(layers)}; allowed: one or more, in rising order")
    if layers[0] < 0 or layers[-1] >= num_layers:
        raise TaskVecError(
            f"layers run from {layers[0]} to {layers[-1]}; allowed: 0 to {num_layers - 1},"
            " counted from 0"
        )


def _order(count: int, recipe: Recipe) -> np.ndarray:
    """Which examples each step sees, int [steps, batch_size]: all of them, round after round."""
    rng = np.random.RandomState(recipe.seed)  # its stream is frozen for good
    need = recipe.steps * recipe.batch_size
    rounds = [rng.permutation(count) for _ in range(-(-need // count))]
    return np.concatenate(rounds)[:need].reshape(recipe.steps, recipe.batch_size)


def _check_finite(losses: np.ndarray, layers: Sequence[int], step: int, recipe: Recipe) -> None:
    if not np.isfinite(losses).all():
        layer = layers[int(np.argmin(np.isfinite(losses)))]
        raise TaskVecError(
            f"the loss of the vector after layer {layer} is not finite at step {step};"
            f" learning_rate is {recipe.learning_rate:g}: take a smaller one, or --dtype=float32"
        )
