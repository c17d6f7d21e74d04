# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""`extract_vector`: the task vector of a task, or of prompts, as something to keep and to use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from taskvec_jax.errors import TaskVecError, short_repr
from taskvec_jax.evaluation.measuring import choose_layer
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.results import Settings, check_arguments
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import fit
from taskvec_jax.tasks.task import Task
from taskvec_jax.vectors.vector import Origin, TaskVector

EVERY = "all"


def extract_vector(
    model: Model,
    source: Task | str | Sequence[str],
    *,
    layer: int | str | None = None,
    settings: Settings | None = None,
    zero_shot: str | Sequence[str] = (),
) -> TaskVector:
    """The mean theta of a task, or of prompts: a vector that replaces the residual stream at the
    last token of a query after `layer`.

    Args:
      source: a Task, whose test prompts are drawn and whose dummy queries theta is read at; or one
        prompt or several, each ending where theta is to be read (`example:up->`).
      layer: 0-based; "all" gives a vector of all layers; None chooses the one of highest dev
        accuracy, ties to the lowest, which takes a Task.
      settings: how the prompts of a Task are drawn; the paper's when left out.
      zero_shot: of prompts, queries without demonstrations: their mean state is kept beside, which
        `as_addition` needs. A Task has its own.

    Raises:
      TaskVecError: no task and no prompts, a layer out of range or, of prompts, none, a task that
        does not suit the tokenizer or the settings, or states that are not finite.
    """
    settings = settings or Settings()
    layers = _layers(model, layer)
    if isinstance(source, Task):
        check_arguments(model, source, settings)
        if layer is None:
            layers = choose_layer(model, source, settings)
        fitted = fit(source, model.tokenizer, settings.template, settings.filter)
        prompts = draw_prompts(fitted, settings, "test")
        theta = read_theta(model, prompts, settings.batch_size).mean(axis=0)  # [L, D]
        texts = [text for prompt in prompts for text in prompt.dummies()]
        queries = [prompt.zero_shot() for prompt in prompts]
        said = {k: v for k, v in dataclasses.asdict(settings).items() if k != "batch_size"}
        origin = Origin.of(
            model,
            task=source.name,
            prompts=texts,
            settings=said,
            made=f"mean theta of {source.name} over {len(prompts)} prompts",
        )
    else:
        texts = _strings("source", source)
        if not texts:
            raise TaskVecError("source is empty; it must be a Task, or one prompt or several")
        if layers is None:
            raise TaskVecError(
                "layer is None, and prompts do not say which layer is best; give one (0 to"
                f" {model.config.num_layers - 1}), or a Task, which is scored on its dev prompts"
            )
        theta = model.read(texts).mean(axis=0)
        queries = _strings("zero_shot", zero_shot)
        origin = Origin.of(model, prompts=texts, made=f"mean theta of {len(texts)} prompts")
    mean = model.read(queries).mean(axis=0) if queries else None
    if not np.isfinite(theta).all():
        raise TaskVecError(
            "the states at the ends of the prompts are not finite; the weights are"
            " damaged, or overflow in this dtype"
        )
    assert layers is not None
    rows = list(layers) if isinstance(layers, tuple) else layers
    return TaskVector(
        theta[rows], layers, origin=origin, zero_shot=None if mean is None else mean[rows]
    )


def _layers(model: Model, layer: int | str | None) -> int | tuple[int, ...] | None:
    """An int, the tuple of all layers, or None where it is to be chosen.

    Raises:
      TaskVecError: something else, or out of range.
    """
    last = model.config.num_layers - 1
    if layer is None:
        return None
    if layer == EVERY:
        return tuple(range(last + 1))
    if not isinstance(layer, int | np.integer) or not 0 <= layer <= last:
        raise TaskVecError(
            f"layer is {short_repr(layer)}; allowed: 0 to {last}, counted from 0; {EVERY!r}; None"
        )
    return int(layer)


def _strings(name: str, given: str | Sequence[str]) -> list[str]:
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, Sequence) or not all(isinstance(one, str) for one in several):
        raise TaskVecError(f"{name} is {short_repr(given)}; it must be a string or several")
    return list(several)
