# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
# pyright: reportMissingTypeStubs=false
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
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.distributed.sharding import put_rows, rows_for
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.checks import (
    check_answers,
    check_vectors,
)
from taskvec_jax.vectors.examples import Examples, check_examples
from taskvec_jax.vectors.learning_step import ADAM, hold_norm, score_vectors, train_step
from taskvec_jax.vectors.programs import schedule_of
from taskvec_jax.vectors.sweep import check_positions


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


@dataclasses.dataclass(frozen=True)
class Learned:
    """Vectors as they did best on dev.

    Attributes:
      vectors: float32 [C, D] or [C, P, D].
      step: int [C], after how many steps each was taken; 0 is the initial value.
      dev_accuracy: float [C].
      losses: float32 [steps, C], mean training loss of each vector at each step.
      checks: the steps at which dev was scored; dev loss and accuracy there, [checks, C].
    """

    vectors: np.ndarray
    step: np.ndarray
    dev_accuracy: np.ndarray
    losses: np.ndarray
    checks: list[int]
    dev_losses: np.ndarray
    dev_accuracies: np.ndarray


def learn_vector(
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
      is_right: predicted tokens of the dev examples, int [N, C] -> whether each is right, bool
        [N, C].
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
    # NumPy inputs and arrays committed to devices have different keys in jit's cache: keeping NumPy
    # between steps avoids a second compilation.
    vectors = np.asarray(hold_norm(jnp.asarray(initial, jnp.float32), held))
    state = jax.device_get(ADAM.init(vectors))
    order = _order(len(train.tokens), recipe)
    fill = rows_for(model.mesh, recipe.batch_size) - recipe.batch_size
    best = vectors
    best_score = np.full((2, len(layers)), -np.inf)  # accuracy, minus the loss
    best_step = np.zeros(len(layers), int)
    checks: list[int] = []
    losses: list[np.ndarray] = []
    dev_losses: list[np.ndarray] = []
    dev_accuracies: list[np.ndarray] = []
    for step in range(recipe.steps + 1):
        if step % recipe.check_every == 0 or step == recipe.steps:
            loss, predictions = _scores(model, dev, vectors, layers, recipe.batch_size)
            accuracy = is_right(predictions).mean(axis=0)
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
    losses, predictions = _scores(model, examples, vectors, layers, batch_size)
    check_answers(losses, np.broadcast_to(np.asarray(layers), losses.shape))
    return losses, predictions


def _scores(
    model: Model,
    examples: Examples,
    vectors: jax.typing.ArrayLike,
    layers: Sequence[int],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`score_examples` without its checks."""
    schedule = schedule_of(layers, model.config.num_layers)
    losses: list[np.ndarray] = []
    predictions: list[np.ndarray] = []
    count, batch_size = len(examples.tokens), rows_for(model.mesh, batch_size)
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)  # one shape
        batch = put_rows(model.mesh, Examples(*(leaf[rows] for leaf in examples)))
        given = (np.asarray(vectors), np.asarray(layers, np.int32), schedule)
        loss, tokens = cast(
            tuple[jax.Array, jax.Array],
            score_vectors(model.config, model.params, batch, *given),
        )
        losses.append(to_host(loss)[: count - start])
        predictions.append(to_host(tokens)[: count - start])
    return np.concatenate(losses), np.concatenate(predictions)


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
