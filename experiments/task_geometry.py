"""Where the task vectors lie (paper, Section 5.1, Figures 5 and 8).

    python -m experiments.task_geometry
    python -m experiments.task_geometry --layer=14

Theta of every test prompt of every task, ALL AT ONE LAYER. (The paper's code takes each task at
its own layer, which adds the distance between layers to the distance between tasks.) The layer is
--layer, else the best one for all tasks together, for which the main results are used. t-SNE and
PCA, cosine distances within and between tasks, and by layer the share of thetas whose nearest
neighbour is of their own task. Beside it stands what the words alone give: nearest neighbours of
the prompts by their character 1- to 3-grams, without any model; both again among tasks of the
same inputs only, where the kind of word tells nothing; and the thetas of the same prompts with
wrong labels, which hold the words of the task and not its mapping.

Writes task_geometry.json and the figures task_geometry_map, task_geometry_tasks,
task_geometry_distances, task_geometry_matrix and task_geometry_layers (.png/.svg) under --out.
Expected on the default model at the paper's settings: 92 % of nearest neighbours are of the same
task at layer 20.

Time: 2 minutes (2 cores, after main_results).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.commands.options import option
from experiments.commands.runner import main
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.control_prompts import all_wrong_labels
from taskvec_jax.evaluation.geometry import (
    cosine_distances,
    principal_components,
    separability,
    surface_distances,
    tsne,
    within_and_between,
)
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.config import DecoderConfig

NAME = "task_geometry"
NUM_BINS = 40


@dataclasses.dataclass(frozen=True)
class Options:
    """What this experiment alone can be asked for."""

    layer: int | None = option(
        None, "Geometry: the layer at which all thetas are taken; chosen on dev when left out."
    )


def check_options(options: Options, config: DecoderConfig) -> None:
    """Refuses a layer that the model does not have.

    Raises:
      TaskVecError: it has no such layer.
    """
    layer, layers = options.layer, config.num_layers
    if layer is not None and not 0 <= layer < layers:
        raise TaskVecError(f"--layer={layer} is out of range; allowed: 0 to {layers - 1}")


def run(study: Study, options: Options) -> dict[str, Any]:
    """Reads the thetas and describes them."""
    settings = study.short_settings
    check_options(options, study.model.config)
    if len(study.tasks) * settings.num_prompts < 4:
        raise TaskVecError("geometry needs at least 4 thetas; ask for more prompts or tasks")
    thetas, wrong, texts, inputs = [], [], [], {}
    with study.bar("thetas", len(study.tasks)) as begin:
        for task in study.tasks:
            begin(task.name)
            thetas.append(study.theta(task, settings))
            wrong.append(
                study.journal.array(
                    study.what("theta from wrong labels", task, settings, read_wrong_theta),
                    functools.partial(read_wrong_theta, study.model, task, settings),
                )
            )
            fitted = scorer_of(study.model, task, settings).fitted
            texts += [p.dummies()[0] for p in draw_prompts(fitted, settings, "test")]
            inputs[task.name] = {pair.input.strip() for pair in fitted.pairs}
    layer = study.common_layer() if options.layer is None else options.layer
    names = {task.name: task.category for task in study.tasks}
    payload = study.unit(
        NAME,
        None,
        settings,
        functools.partial(
            describe, names, thetas, layer, settings.seed, texts, same_inputs(inputs), wrong
        ),
        layer=layer,
        tasks=[[task.name, studies.task_sha256(task)] for task in study.tasks],
    )
    return study.result(NAME, settings, payload)


def read_wrong_theta(model: Model, task: Task, settings: Settings) -> np.ndarray:
    """Theta of every test prompt with labels that are wrong: float32 [N, L, D]."""
    scorer = scorer_of(model, task, settings)
    prompts = draw_prompts(scorer.fitted, settings, "test")
    relabelled = all_wrong_labels(scorer, prompts, settings.seed, task.name, "geometry")
    return read_theta(model, relabelled, settings.batch_size)


def describe(
    tasks: Mapping[str, str],
    thetas: Sequence[np.ndarray],
    layer: int,
    seed: int,
    texts: Sequence[str] = (),
    alike: Sequence[Sequence[str]] = (),
    wrong: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """Maps, distances and separability of thetas. One layer's distances are in memory at a time.

    Args:
      tasks: name -> category.
      thetas: [N, L, D] of each task, in the same order.
      layer: whose maps and distances are shown.
      texts: the prompts that the thetas are of, in the same order; none: no surface baseline.
      alike: names of tasks that have the same inputs, group by group.
      wrong: [N, L, D] of each task, from the same prompts with wrong labels; or nothing.
    """
    count, (prompts, layers, _) = len(tasks), thetas[0].shape
    labels = np.repeat(np.arange(count), prompts)
    categories = np.array(list(tasks.values()))[labels]

    def at(layer: int) -> np.ndarray:
        return np.concatenate([theta[:, layer] for theta in thetas])  # [count * N, D]

    own_task, own_category = [], []
    for i in range(layers):
        distances = cosine_distances(at(i))
        own_task.append(separability(distances, labels))
        own_category.append(separability(distances, categories))
        del distances  # before those of the next layer are made
    here = at(layer)
    pca, variance = principal_components(here)
    return {
        "tasks": list(tasks),
        "layer": layer,
        "num_layers": layers,
        "thetas_of_each_task": prompts,
        "labels": labels.tolist(),
        "tsne": np.round(tsne(here, seed), 4).tolist(),
        "pca": np.round(pca, 4).tolist(),
        "pca_variance": variance.tolist(),
        **_describe_distances(cosine_distances(here), labels, count),
        "separability_by_layer": own_task,
        "category_separability_by_layer": own_category,
        "chance": (prompts - 1) / max(1, count * prompts - 1),
        "surface_separability": separability(surface_distances(texts), labels) if texts else None,
        "same_inputs": [
            _among(group, list(tasks), thetas, layer, texts) for group in alike if prompts > 1
        ],
        "wrong_labels": _beside(here, np.concatenate([w[:, layer] for w in wrong]), labels)
        if wrong
        else None,
    }


def _beside(right: np.ndarray, wrong: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of thetas [M, D] from wrong labels: the share whose nearest neighbour is of the same task,
    among themselves and among the right thetas of other prompts."""
    distances = cosine_distances(np.concatenate([wrong, right]))
    count = len(labels)
    across = distances[:count, count:] + np.diag(np.full(count, np.inf))
    return {
        "separability": separability(distances[:count, :count], labels),
        "nearest_right_theta": float(np.mean(labels[across.argmin(axis=1)] == labels)),
    }


def same_inputs(inputs: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of tasks that share at least half of the inputs of the smaller one, two by two."""
    groups: list[list[str]] = []
    for name, own in inputs.items():
        for group in groups:
            if all(len(own & inputs[o]) * 2 >= min(len(own), len(inputs[o])) for o in group):
                group.append(name)
                break
        else:
            groups.append([name])
    return [group for group in groups if len(group) > 1]


def _among(
    group: Sequence[str],
    tasks: Sequence[str],
    thetas: Sequence[np.ndarray],
    layer: int,
    texts: Sequence[str],
) -> dict[str, Any]:
    """Separability of some tasks among themselves, of their thetas and of their words."""
    places = [tasks.index(name) for name in group]
    prompts = len(thetas[0])
    labels = np.repeat(np.arange(len(group)), prompts)
    here = np.concatenate([thetas[place][:, layer] for place in places])
    words = [text for p in places for text in texts[p * prompts : (p + 1) * prompts]]
    return {
        "tasks": list(group),
        "separability": separability(cosine_distances(here), labels),
        "surface_separability": separability(surface_distances(words), labels) if words else None,
        "chance": (prompts - 1) / (len(group) * prompts - 1),
    }


def _describe_distances(distances: np.ndarray, labels: np.ndarray, count: int) -> dict[str, Any]:
    """Of distances [M, M] at one layer: within and between tasks, by pair of tasks, neighbours."""
    pairs, prompts = within_and_between(distances, labels), len(labels) // count
    edges = np.linspace(0.0, max(1e-9, float(distances.max())), NUM_BINS + 1)
    blocks = distances.reshape(count, prompts, count, prompts).transpose(0, 2, 1, 3)
    return {
        "within": _describe(pairs.within),
        "between": _describe(pairs.between),
        "bin_edges": edges.tolist(),
        "within_histogram": np.histogram(pairs.within, edges)[0].tolist(),
        "between_histogram": np.histogram(pairs.between, edges)[0].tolist(),
        "mean_distance": [
            [_block_mean(blocks[i, j], i == j) for j in range(count)] for i in range(count)
        ],
        "own_neighbour": [_own_share(distances, labels, task) for task in range(count)],
    }


def _own_share(distances: np.ndarray, labels: np.ndarray, task: int) -> float:
    apart = distances + np.diag(np.full(len(labels), np.inf))
    mine = labels == task
    return float(np.mean(labels[apart[mine].argmin(axis=1)] == task))


def _describe(values: np.ndarray) -> dict[str, float] | None:
    if not values.size:
        return None
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {
        "mean": float(values.mean()),
        "median": float(middle),
        "p05": float(low),
        "p95": float(high),
    }


def _block_mean(block: np.ndarray, own: bool) -> float | None:
    if not own:
        return float(block.mean())
    n = len(block)
    return float(block.sum() / (n * (n - 1))) if n > 1 else None


if __name__ == "__main__":
    main(NAME)
