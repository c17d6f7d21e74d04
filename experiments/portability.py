"""Does a vector from one prompt template work in another (beyond the paper)?

    python -m experiments.portability

Theta is read under each template and written into the zero-shot query of every template, for every
pair of templates at its own layer, chosen on dev. A vector that carries the task and not the form
of the prompt does as well off the diagonal as on it; that says something where the prompt itself
works under the template that theta is read from, so each source's transfer is given relative to
its home where in-context learning does the task there. Prompts are the same draws under every
template, over the pairs that every template can pose. Runs on one task of each category unless
--tasks names others.

Writes portability.json and portability, portability_tasks (.png/.svg) under --out.
Expected on the default model: see BUILD_NOTES.

Time: 9 minutes (4 tasks, 2 cores).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.evaluation.answers import Scorer
from taskvec_jax.evaluation.columns import Predicted, score_columns
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import accuracy, icl_able
from taskvec_jax.evaluation.tuned import Asked, Condition, score_tuned
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.vectors.sweep import read_texts

NAME = "portability"


TEMPLATES = {
    "example:x->y": PAPER,
    "x=y": Template("{x}={y}"),
    "Q:x A:y": Template("Q:{x}\nA:{y}"),
    "Input:x Output:y": Template("Input:{x} Output:{y}", "\n\n"),
}


def run(study: Study) -> dict[str, Any]:
    """Every template into every other, task by task."""

    def measure(task: Task) -> dict[str, Any]:
        return study.unit(
            NAME,
            task,
            study.settings,
            functools.partial(carry, study, task),
            templates=[dataclasses.asdict(template) for template in TEMPLATES.values()],
        )

    results, notes = study.each(NAME, studies.chosen_tasks(study, TASKS), measure)
    return study.result(
        NAME,
        study.settings,
        {"templates": list(TEMPLATES), "tasks": results, "notes": notes},
    )


def fit_templates(model: Model, task: Task, settings: Settings) -> FittedTask:
    """The pairs of a fitted task that every template can pose.

    A template suits a pair when the answer's tokens follow the query's, and the answer is one
    token outside the knowledge category.
    """
    fitted = fit(task, model.tokenizer, settings.template, settings.filter)

    def fits(pair: Pair) -> bool:
        lengths = [
            len(model.tokenizer.continuation(template.zero_shot(pair.input), pair.output))
            for template in TEMPLATES.values()
        ]
        if task.match == "prefix" or settings.filter == "none":
            return min(lengths) > 0
        return set(lengths) == {1}

    return dataclasses.replace(fitted, pairs=tuple(filter(fits, fitted.pairs)))


def carry(study: Study, task: Task) -> dict[str, Any]:
    """Accuracy of theta from each template (row) in each template's zero-shot query (column)."""
    model, settings = study.model, study.settings
    scorer = Scorer(model, fit_templates(model, task, settings))
    dev, test = (draw_prompts(scorer.fitted, settings, split) for split in ("dev", "test"))
    both, n = [*dev, *test], len(dev)
    encode = model.tokenizer.encode_all
    thetas: dict[str, Condition] = {}
    icl, able, grid, zero_shot = [], [], [], []

    def right(prompts: Sequence[Prompt], tokens: np.ndarray, texts: Any) -> list[int]:
        column = Predicted([(token,) for token in tokens.tolist()], texts)
        scored = score_columns(scorer, prompts, columns={"it": column}, rule=settings.rule)
        return scored["it"]["correct"]

    for name, template in TEMPLATES.items():
        written = [dataclasses.replace(p, template=template) for p in both]
        texts = [encode([*p.dummies(), p.icl()]) for p in written]
        residuals, read = read_texts(model, texts, settings.batch_size)
        theta = residuals[:, :-1].mean(axis=1)
        thetas[name] = Condition(theta[:n], theta[n:])
        icl.append(right(both, read.tokens[:, -1], [row[-1] for row in texts]))
    for template, of_icl in zip(TEMPLATES.values(), icl, strict=True):
        queries = encode([template.zero_shot(p.query.input) for p in both])
        prompts = Asked(dev, test, queries[:n], queries[n:])
        found = score_tuned(scorer, prompts, conditions=thetas, settings=settings)
        zero_shot.append(found["baseline"])
        grid.append([found[source] for source in TEMPLATES])
        _, plain = read_texts(model, [[ids] for ids in queries[:n]], settings.batch_size)
        able.append(icl_able(of_icl[:n], right(dev, plain.tokens[:, 0], queries[:n])))
    asked_for = [p.query.input for p in test]
    # grid[write][read] -> [read][write]
    return {
        "num_pairs": len(scorer.fitted.pairs),
        "icl": [vars(accuracy(of_icl[n:], asked_for)) for of_icl in icl],
        "icl_able": able,
        "zero_shot": zero_shot,
        "task_vector": [list(column) for column in zip(*grid, strict=True)],
    }


if __name__ == "__main__":
    main(NAME)
