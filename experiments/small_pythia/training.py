"""The optax loop: a decoder trained from scratch, with checkpoints, resume and a stop at NaN.

Nothing here knows words: rows come as arrays from a function of the step, so that a run that goes
on after a kill meets the rows it would have met. Over a mesh, rows lie on `data` and parameters,
with their moments, as `sharding.placement` says; a state on disk knows of no mesh.

Shapes: B rows, T tokens, Q tokens of a zero-shot query, V vocabulary, D width.
"""

# Long because: state, step and loop of one training run are read together.

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.distributed.sharding import placement, put_rows, shape_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.arrays import restore_arrays, save_arrays
from taskvec_jax.transformer.checks import check_ids, check_range, check_tokens
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import (
    Decoder,
    Override,
    Params,
    at_positions,
    flatten,
    leaf_shapes,
    unflatten,
)


class Batch(NamedTuple):
    """Rows of demonstrations, and a zero-shot query of the same task for each.

    Attributes:
      tokens: int32 [B, T], right-padded.
      answers: int32 [B, T], the token that should follow, where `weights` is not 0.
      weights: float32 [B, T], 1 at the arrows whose answer counts.
      last: int32 [B], the row's last arrow, where theta is read.
      query: int32 [B, Q], right-padded, ending in the arrow.
      query_last, query_answer: int32 [B].
    """

    tokens: np.ndarray
    answers: np.ndarray
    weights: np.ndarray
    last: np.ndarray
    query: np.ndarray
    query_last: np.ndarray
    query_answer: np.ndarray


@dataclasses.dataclass(frozen=True)
class Training:
    """What decides the weights that come out, data aside.

    Attributes:
      steps: of the optimiser.
      learning_rate: at its height, after the warm-up; a cosine takes it down to a tenth.
      warmup: steps over which it rises.
      weight_decay: of AdamW, on kernels and embeddings only.
      clip: largest norm of a gradient.
      vector_loss: weight of the vector-prompting loss (arXiv 2501.09240); 0: none.
      vector_layer: where theta is read and written in it.
      seed: of the initial weights.
    """

    steps: int
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    vector_loss: float = 0.0
    vector_layer: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = dataclasses.asdict(self)
        for name in ("steps", "learning_rate", "clip"):
            if not (math.isfinite(numbers[name]) and numbers[name] > 0):
                raise TaskVecError(f"{name} is {numbers[name]}; it must be above 0")
        for name in ("warmup", "weight_decay", "vector_loss"):
            if not (math.isfinite(numbers[name]) and numbers[name] >= 0):
                raise TaskVecError(f"{name} is {numbers[name]}; it must be 0 or more")
        if self.warmup >= self.steps:
            raise TaskVecError(
                f"warmup is {self.warmup}; it must be below the {self.steps} steps of the run"
            )


class State(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
      step: steps done.
      params: {"params": ...}, float32.
      optimiser: what optax keeps.
    """

    step: int
    params: Params
    optimiser: Any


class Measures(NamedTuple):
    """What a step says of the rows it was given, before it learned from them.

    Attributes:
      loss: the whole of it.
      answer_loss: cross-entropy of the answers, in nats.
      accuracy: share of them that are the most likely token.
      vector_accuracy: the same for zero-shot queries with theta injected; 0 without that loss.
      gradient_norm: before clipping.
    """

    loss: jax.Array
    answer_loss: jax.Array
    accuracy: jax.Array
    vector_accuracy: jax.Array
    gradient_norm: jax.Array


def schedule(training: Training) -> optax.Schedule:
    """Learning rate by step: linear warm-up, cosine down to a tenth."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=training.learning_rate,
        warmup_steps=training.warmup,
        decay_steps=training.steps,
        end_value=0.1 * training.learning_rate,
    )


def learning_rate(training: Training, step: int) -> float:
    """Of one step (0-based), as a number."""
    return float(np.asarray(schedule(training)(step)))


def optimiser(training: Training) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; norms and biases do not decay."""

    def decays(params: Params) -> Params:
        leaves = flatten(params)
        return unflatten({path: path.endswith(("kernel", "embedding")) for path in leaves})

    return optax.chain(
        optax.clip_by_global_norm(training.clip),
        optax.adamw(schedule(training), b2=0.98, weight_decay=training.weight_decay, mask=decays),
    )


def initial_state(config: DecoderConfig, training: Training) -> State:
    """Fresh weights, drawn as GPT-NeoX draws them (Pythia's own way): normal, of deviation
    sqrt(2 / 5D), and 2 / (L sqrt(D)) where a block writes to the residual stream.

    Raises:
      TaskVecError: parameters that are not float32, or a vector layer out of range.
    """
    if config.dtype != "float32":
        raise TaskVecError(f"training is in float32; the config says {config.dtype}")
    if not 0 <= training.vector_layer < config.num_layers:
        raise TaskVecError(
            f"vector_layer is {training.vector_layer}; allowed: 0 to {config.num_layers - 1},"
            " counted from 0"
        )
    shapes = leaf_shapes(config)
    leaves: dict[str, jax.Array] = {}
    keys = jax.random.split(jax.random.key(training.seed + 1), len(shapes))
    for key, (path, shape) in zip(keys, shapes.items(), strict=True):
        if path.endswith(("kernel", "embedding")):
            writes = "/out/" in path or "/down/" in path
            deviation = 2 / config.num_layers if writes else math.sqrt(0.4)
            noise = jax.random.normal(key, shape, jnp.float32)
            leaves[path] = deviation / math.sqrt(config.width) * noise
        else:
            # Of a dtype that is given: what JAX infers compiles the first step twice.
            leaves[path] = jnp.full(shape, float(path.endswith("scale")), jnp.float32)
    params = unflatten(leaves)
    return State(0, params, optimiser(training).init(params))


def _losses(
    decoder: Decoder, training: Training, params: Params, batch: Batch
) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]]:
    """The loss, (answer loss, accuracy, accuracy of injected queries), and whether the residual
    stream after each layer is finite where theta is read, bool [L]."""
    vector = training.vector_loss > 0
    keep = {"resid": lambda x: at_positions(x, jnp.asarray(batch.last))}
    x, kept = decoder.apply(params, batch.tokens, keep, method="keep")
    residuals, logits = kept["resid"], decoder.apply(params, x, method="unembed")
    weights = batch.weights / batch.weights.sum()
    wrong = optax.softmax_cross_entropy_with_integer_labels(logits, batch.answers)
    loss = answer_loss = (weights * wrong).sum()
    accuracy = (weights * (logits.argmax(-1) == batch.answers)).sum()
    vector_accuracy = jnp.zeros(())
    if vector:
        theta = residuals[training.vector_layer]  # [B, D]
        override = Override(training.vector_layer, batch.query_last, theta)
        _, told = decoder.apply(params, batch.query, batch.query_last, override, method="read")
        wrong = optax.softmax_cross_entropy_with_integer_labels(told, batch.query_answer)
        loss = loss + training.vector_loss * wrong.mean()
        vector_accuracy = (told.argmax(-1) == batch.query_answer).mean()
    finite = jnp.isfinite(residuals).all(axis=(1, 2))
    return loss, ((answer_loss, accuracy, vector_accuracy), finite)


@functools.partial(
    jax.jit, static_argnames=("config", "training"), donate_argnames=("params", "kept")
)
def train_step(
    config: DecoderConfig, training: Training, params: Params, kept: Any, batch: Batch
) -> tuple[Params, Any, Measures, jax.Array]:
    """One step of the optimiser; `kept` is its state.

    Returns:
      parameters and state after it, and what was measured before it: `Measures`, and bool [L],
      whether the residual stream after each layer was finite.
    """
    losses = functools.partial(_losses, Decoder(config), training, batch=batch)
    (loss, (rest, finite)), gradient = jax.value_and_grad(losses, has_aux=True)(params)
    updates, kept = optimiser(training).update(gradient, kept, params)
    measures = Measures(loss, *rest, gradient_norm=optax.tree.norm(gradient))
    return optax.apply_updates(params, updates), kept, measures, finite


def run(
    config: DecoderConfig,
    training: Training,
    state: State,
    batches: Callable[[int], Batch],
    done: Callable[[State, Measures], None],
    mesh: Mesh | None = None,
) -> State:
    """Trains from `state` to the last step.

    Args:
      state: wherever it lies; it is moved to the mesh.
      batches: step (0-based) -> its rows.
      done: called after every step, with the state it led to and what it measured.
      mesh: what rows and parameters are split over; None: all is on one device.

    Raises:
      TaskVecError: `data` does not divide the rows of a step; a row beyond the context, or a
        token id or an index out of range; or the loss or the gradient is not finite, and then the
        message names the first such layer and `done` is not called for that step.
    """
    state = place(config, training, state, mesh)
    while state.step < training.steps:
        batch = batches(state.step)
        check_rows(mesh, len(batch.tokens))
        check_batch(config, batch)
        params, kept, measures, finite = train_step(
            config, training, state.params, state.optimiser, put_rows(mesh, batch)
        )
        if not np.isfinite([measures.loss, measures.gradient_norm]).all():
            finite = to_host(finite)
            began = "" if finite.all() else f", beginning after layer {finite.argmin()}"
            raise TaskVecError(
                f"the loss of step {state.step} is {float(measures.loss):g} and its gradient"
                f" {float(measures.gradient_norm):g}{began}; they must be finite: take a lower"
                " learning rate or a longer warm-up"
            )
        state = State(state.step + 1, params, kept)
        done(state, measures)
    return state


def check_batch(config: DecoderConfig, batch: Batch) -> None:
    """Refuses rows that would train on something else than they say.

    Raises:
      TaskVecError: a row beyond the context, or a token id or an index out of range.
    """
    for name, tokens, last in (
        ("last arrow", batch.tokens, batch.last),
        ("last query token", batch.query, batch.query_last),
    ):
        check_tokens(config, tokens)
        check_range(name, last, tokens.shape[1])
    for answers in (batch.answers, batch.query_answer):
        check_ids(config, answers, "answer's token id")


def check_rows(mesh: Mesh | None, rows: int) -> None:
    """Refuses rows that the devices of `data` cannot share evenly.

    Filled up with others, the step would be another one.

    Raises:
      TaskVecError: they cannot.
    """
    if rows % (data := shape_of(mesh).data):
        raise TaskVecError(
            f"{rows} rows a step over data:{data}; allowed: a batch_size that is a multiple of"
            f" {data}, or fewer devices on data"
        )


def place(config: DecoderConfig, training: Training, state: State, mesh: Mesh | None) -> State:
    """A state on the devices of a mesh; left where it is without one."""
    if mesh is None:
        return state
    shapes = {path: leaf.shape for path, leaf in flatten(state.params).items()}
    shardings = unflatten(placement(config, shapes, mesh))
    whole = NamedSharding(mesh, PartitionSpec())
    params, kept = jax.device_put(
        (state.params, state.optimiser),
        (
            shardings,
            optax.tree.map_params(
                optimiser(training),
                lambda _, sharding: sharding,
                state.optimiser,
                shardings,
                transform_non_params=lambda _: whole,
            ),
        ),
    )
    return State(state.step, params, kept)


def save_state(path: Path, state: State) -> None:
    """Writes a state, whole or not at all.

    Raises:
      TaskVecError: no room, or no leave to write.
    """
    save_arrays(path, _named(state), {"step": state.step})


def restore_state(path: Path, like: State) -> State:
    """Reads a state of the same shapes as `like`.

    Raises:
      TaskVecError: nothing whole there, or a state of another shape.
    """
    arrays, about = restore_arrays(path, _named(like))
    leaves = [arrays[name] for name in _named(like)]
    _, params, kept = jax.tree.unflatten(jax.tree.structure(like._replace(step=0)), [0, *leaves])
    return State(int(about["step"]), params, kept)


def _named(state: State) -> dict[str, Any]:
    """The arrays of a state by the path of each, in the order of its tree."""
    leaves, _ = jax.tree.flatten_with_path((state.params, state.optimiser))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
