"""One vector or one at every arrow of a few-shot prompt (TaskV-M, 2506.09048; beyond the paper).

    python -m experiments.several_vectors
    python -m experiments.several_vectors --tasks=translation_en_fr

A prompt of k demonstrations, k = 0 to 4, as it is (base); with theta written over the arrow of its
query (one); and with theta written over each of its k + 1 arrows (many). Theta is that of the main
results, from as many demonstrations as the settings say, and the prompt shows the first k of them.
Each has its own layer, chosen on dev. Source: Dong et al. 2025 (arXiv 2506.09048), who report gains
of many over one in few-shot prompts and on bijections. Runs on one task of each category and on the
two-way mixes made of those (see bijections), unless --tasks names others.

Writes several_vectors.json and several_vectors.png/.svg under --out.
Expected on the default model: see BUILD_NOTES.md.

Time: 4 minutes a task (2 cores).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.bijections import SOURCES, directions
from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.intervals import means
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.measuring import read_test_theta
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.statistics import Outcomes, accuracy, compare
from taskvec_jax.prompting.places import find_places
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.position_patching import (
    Window,
    layer_windows,
    patch_last,
    patch_windows,
)

NAME = "several_vectors"
MOST = 4  # demonstrations of the prompt that is written into
DEV_PROMPTS = 20  # every layer of "many" is a forward pass of them
WAYS = ("one", "many")


def run(study: Study) -> dict[str, Any]:
    """Base, one vector and many, task by task."""
    chosen = studies.chosen_tasks(study, TASKS)
    known = {task.name: task for task in chosen}
    mixes = [
        directions(name, known[source])["both"]
        for name, source in SOURCES.items()
        if source in known and name != "copy"
    ]

    def measure(task: Task) -> dict[str, Any]:
        return study.unit(NAME, task, study.settings, functools.partial(measure_task, study, task))

    tasks, notes = study.each(NAME, [*chosen, *mixes], measure)
    plain = {name: task for name, task in tasks.items() if name in known}
    mixed = {name: task for name, task in tasks.items() if name not in known}
    seed = study.settings.seed
    return study.result(
        NAME,
        study.settings,
        {
            "tasks": tasks,
            "mixes": list(mixed),
            "mean": summary(list(plain.values()), seed) if plain else None,
            "mean_of_mixes": summary(list(mixed.values()), seed) if mixed else None,
            "counts": shown_counts(study),
            "notes": notes,
        },
        scored_by="paper",
    )


def shown_counts(study: Study) -> list[int]:
    """How many demonstrations the prompts have; theta has seen all of them."""
    return list(range(min(MOST, study.settings.num_demonstrations) + 1))


def column(way: str, count: int) -> str:
    """The name of a column: base, one or many, and how many demonstrations."""
    return f"{way} {count}"


def measure_task(study: Study, task: Task) -> dict[str, Any]:
    """Every number of demonstrations, each way at its own layer."""
    model, settings = study.model, study.settings
    scorer = scorer_of(model, task, study.settings)
    dev, test = (draw_prompts(scorer.fitted, settings, split) for split in ("dev", "test"))
    dev = dev[:DEV_PROMPTS]
    theta = {"dev": read_theta(model, dev, settings.batch_size)}
    theta["test"] = read_test_theta(model, task, settings)
    every = layer_windows(model.config.num_layers)
    correct: dict[str, np.ndarray] = {}
    layers: dict[str, int] = {}
    for count in shown_counts(study):
        for way in WAYS if count else ("one",):
            found = written(study, dev, theta["dev"], count, way, every)
            name = column(way, count)
            layers[name] = best_layer(scorer.by_first_token(dev, found)[:, 1:].mean(axis=0))
            window = every[layers[name]]
            tokens = written(study, test, theta["test"], count, way, [window])
            correct[column("base", count)], correct[name] = scorer.by_first_token(test, tokens).T
    return {
        "scores": {
            name: {**vars(accuracy(values)), "layer": layers.get(name)}
            for name, values in correct.items()
        },
        "outcomes": {
            "queries": [prompt.query.input for prompt in test],
            "correct": {name: values.astype(int).tolist() for name, values in correct.items()},
        },
    }


def written(
    study: Study,
    prompts: Sequence[Prompt],
    theta: np.ndarray,
    count: int,
    way: str,
    windows: Sequence[Window],
) -> np.ndarray:
    """Next tokens int [N, 1 + W] of prompts of `count` demonstrations, the untouched ones first.

    Args:
      theta: [N, L, D], of each prompt.
      way: "one": written over the last arrow; "many": over all.
    """
    tokenizer = study.model.tokenizer
    few = [dataclasses.replace(p, demonstrations=p.demonstrations[:count]) for p in prompts]
    texts = tokenizer.encode_all([prompt.icl() for prompt in few])
    model, size = study.model, study.settings.batch_size
    if way == "one":
        return patch_last(model, texts, theta, [first for first, _ in windows], size)
    places = [find_places(tokenizer, prompt) for prompt in few]
    where = [[*place.arrows, *place.template[-1:]] for place in places]
    states = [np.repeat(own[None], len(at), axis=0) for own, at in zip(theta, where, strict=True)]
    return patch_windows(model, texts, where, states, windows, size)


def summary(tasks: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means over tasks with intervals, and many against one for each number of demonstrations."""
    outcomes = [Outcomes(t["outcomes"]["queries"], t["outcomes"]["correct"]) for t in tasks]
    columns = list(outcomes[0].correct)
    counts = sorted({int(name.split()[1]) for name in columns} - {0})
    return {
        "columns": {k: value._asdict() for k, value in means(outcomes, columns, seed).items()},
        "many_against_one": {
            str(count): compare(outcomes, column("many", count), column("one", count))._asdict()
            for count in counts
        },
    }


if __name__ == "__main__":
    main(NAME)
