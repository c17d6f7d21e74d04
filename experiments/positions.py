"""One position or many: where a prompt has to be given its task (2605.04061; beyond the paper).

    python -m experiments.positions
    python -m experiments.positions --tasks=linguistic_antonyms

States are read from an in-context prompt that ends in a dummy query, and written at the same places
of two other prompts that ask for the test query: the query alone, and the same demonstrations with
their labels shuffled. Places: the arrow (one position, where theta is written); the template's
tokens of the query's line; the arrows of all demonstrations and the query's; the outputs of all
demonstrations (the last token of each). Single layers, and for the arrow and the outputs windows of
30 % of the layers. Every layer is tried on dev, up to 20 prompts; the best is scored on test.
Source: "Single-Position Intervention Fails" 2026 (arXiv 2605.04061), which reports 0 % for one
position at every layer of a model on which others recover 88 %. The query's own words are not
written: their states would bring the answer along. Runs on one task of each category unless --tasks
names others.

Writes positions.json and positions.png/.svg under --out.
Expected on the default model: see BUILD_NOTES.md.

Time: 4 minutes a task (2 cores).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.control_prompts import all_wrong_labels
from taskvec_jax.evaluation.intervals import means
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.statistics import Outcomes, accuracy, compare
from taskvec_jax.prompting.places import Places, find_places
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.position_patching import (
    Window,
    layer_windows,
    patch_last,
    patch_windows,
)
from taskvec_jax.vectors.sweep import read_texts

NAME = "positions"
DEV_PROMPTS = 20  # every layer of every condition is a forward pass of them
WINDOW = 0.3  # of the layers
UNTOUCHED = {"zero_shot": "baseline", "shuffled": "shuffled_icl"}  # target -> column


class Condition(NamedTuple):
    """What is written where.

    Attributes:
      place: "arrow", "query", "arrows" or "outputs".
      target: "zero_shot" or "shuffled".
      wide: "layer" or "window", of layers after which it is written.
    """

    place: str
    target: str
    wide: str = "layer"

    @property
    def name(self) -> str:
        """As a column."""
        window = ", window" if self.wide == "window" else ""
        return f"{self.place}{window}, {self.target.replace('_', '-')}"


CONDITIONS = (
    Condition("arrow", "zero_shot"),
    Condition("arrow", "zero_shot", "window"),
    Condition("query", "zero_shot"),
    Condition("arrow", "shuffled"),
    Condition("query", "shuffled"),
    Condition("arrows", "shuffled"),
    Condition("outputs", "shuffled"),
    Condition("outputs", "shuffled", "window"),
)


def run(study: Study) -> dict[str, Any]:
    """All conditions, task by task."""

    def measure(task: Task) -> dict[str, Any]:
        return study.unit(NAME, task, study.settings, functools.partial(measure_task, study, task))

    tasks, notes = study.each(NAME, studies.chosen_tasks(study, TASKS), measure)
    outcomes = [
        Outcomes(t["outcomes"]["queries"], t["outcomes"]["correct"]) for t in tasks.values()
    ]
    columns = list(outcomes[0].correct)
    one, many = Condition("arrow", "shuffled").name, Condition("outputs", "shuffled").name
    return study.result(
        NAME,
        study.settings,
        {
            "tasks": tasks,
            "mean": {
                name: value._asdict()
                for name, value in means(outcomes, columns, study.settings.seed).items()
            },
            "one_against_outputs": compare(outcomes, one, many)._asdict(),
            "num_layers": study.model.config.num_layers,
            "window": window_width(study.model.config.num_layers),
            "notes": notes,
        },
        scored_by="paper",
    )


def window_width(num_layers: int) -> int:
    """Layers of a window."""
    return max(1, round(WINDOW * num_layers))


def measure_task(study: Study, task: Task) -> dict[str, Any]:
    """Every condition of a task: all layers on dev, the best on test."""
    scorer = scorer_of(study.model, task, study.settings)
    dev, test = (draw_prompts(scorer.fitted, study.settings, split) for split in ("dev", "test"))
    dev = dev[:DEV_PROMPTS]
    layers = study.model.config.num_layers
    sources = [
        Sources(study, scorer, split, (study.settings.seed, task.name)) for split in (dev, test)
    ]
    curves: dict[str, list[float]] = {}
    correct: dict[str, np.ndarray] = {}
    chosen: dict[str, int] = {}
    for condition in CONDITIONS:
        width = 1 if condition.wide == "layer" else window_width(layers)
        windows = layer_windows(layers, width)
        found = scorer.by_first_token(dev, sources[0].patch(condition, windows))[:, 1:].mean(axis=0)
        name = condition.name
        curves[name], chosen[name] = found.tolist(), best_layer(found)
        at_best = sources[1].patch(condition, [windows[chosen[name]]])
        untouched, correct[name] = scorer.by_first_token(test, at_best).T
        correct[UNTOUCHED[condition.target]] = untouched
    icl = study.model.tokenizer.encode_all([prompt.icl() for prompt in test])
    said = read_texts(study.model, [[ids] for ids in icl], study.settings.batch_size)[1]
    correct["icl"] = scorer.by_first_token(test, said.tokens[:, 0])
    return {
        "dev_accuracy_by_layer": curves,
        "scores": {
            name: {**vars(accuracy(values)), "layer": chosen.get(name)}
            for name, values in correct.items()
        },
        "outcomes": {
            "queries": [prompt.query.input for prompt in test],
            "correct": {name: values.astype(int).tolist() for name, values in correct.items()},
        },
    }


class Sources:
    """States of in-context prompts that end in their first dummy query, and the prompts of the
    test query that they are written into."""

    def __init__(
        self, study: Study, scorer: Scorer, prompts: Sequence[Prompt], seed: tuple[object, ...]
    ) -> None:
        self.study = study
        tokenizer = study.model.tokenizer
        read = [dataclasses.replace(p, query=p.dummy_queries[0]) for p in prompts]
        self.places = [find_places(tokenizer, prompt) for prompt in read]
        where = [[*p.outputs, *p.arrows, *p.template] for p in self.places]
        if len({len(one) for one in where}) > 1:
            raise TaskVecError(
                "the template has different numbers of tokens in different prompts, so their states"
                " cannot be written from one into another"
            )
        texts = tokenizer.encode_all([prompt.icl() for prompt in read])
        self.states = study.model.read(texts, positions=np.array(where))  # [N, P, L, D]
        targets = {
            "zero_shot": [dataclasses.replace(p, demonstrations=()) for p in prompts],
            "shuffled": all_wrong_labels(scorer, prompts, *seed, "positions"),
        }
        self.texts = {
            name: tokenizer.encode_all([p.icl() for p in some]) for name, some in targets.items()
        }
        self.into = {
            name: [find_places(tokenizer, p) for p in some] for name, some in targets.items()
        }

    def patch(self, condition: Condition, windows: Sequence[Window]) -> np.ndarray:
        """Next tokens int [N, 1 + W], the untouched prompt's first."""
        demonstrations = len(self.places[0].outputs)
        parts = {
            "outputs": range(demonstrations),
            "arrows": [*range(demonstrations, 2 * demonstrations), -1],
            "query": range(2 * demonstrations, self.states.shape[1]),
            "arrow": [-1],
        }
        states = self.states[:, list(parts[condition.place])]
        if (condition.place, condition.wide) == ("arrow", "layer"):
            layers = [first for first, _ in windows]
            texts, size = self.texts[condition.target], self.study.settings.batch_size
            return patch_last(self.study.model, texts, states[:, 0], layers, size)
        positions = [written(places, condition.place) for places in self.into[condition.target]]
        return patch_windows(
            self.study.model,
            self.texts[condition.target],
            positions,
            list(states),
            windows,
            self.study.settings.batch_size,
        )


def written(places: Places, place: str) -> list[int]:
    """The token indices of a place, in the order of `Sources`."""
    last = places.template[-1:]
    return {
        "outputs": places.outputs,
        "arrows": [*places.arrows, *last],
        "query": places.template,
        "arrow": last,
    }[place]


if __name__ == "__main__":
    main(NAME)
