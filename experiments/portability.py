"""Does a vector from one prompt template work in another (beyond the paper)?

    python -m experiments.portability

Theta is read under each template and written into the zero-shot query of every template, at the
layer the main results chose. A vector that carries the task and not the form of the prompt does as
well off the diagonal as on it. Prompts are the same draws under every template, over the pairs
that every template can pose. Runs on one task of each category unless --tasks names others.

Writes portability.json and portability.png/.svg under --out.
Expected on the default model at the paper's settings: .33 at home, .30 in another template
(3 minutes on 2 shared cores).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.evaluation.judging import Judge, accuracy
from taskvec_jax.evaluation.protocol import draw_prompts
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, fit
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.vectors.sweep import inject_vectors, read_texts

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
        layer = study.layer(task, study.settings)
        return study.unit(
            NAME,
            task,
            study.settings,
            functools.partial(carry, study, task, layer),
            layer=layer,
            templates=[dataclasses.asdict(template) for template in TEMPLATES.values()],
        )

    results, notes = study.each(NAME, studies.chosen_tasks(study, TASKS), measure)
    return study.result(
        NAME,
        study.settings,
        {"templates": list(TEMPLATES), "tasks": results, "notes": notes},
    )


def fit_templates(model: Model, task: Task, template: Template = PAPER) -> FittedTask:
    """The pairs of a fitted task that every template can pose.

    A template suits a pair when the answer's tokens follow the query's, and the answer is one
    token outside the knowledge category.
    """
    fitted = fit(task, model.tokenizer, template)

    def fits(pair: Pair) -> bool:
        lengths = [
            len(model.tokenizer.continuation(template.zero_shot(pair.input), pair.output))
            for template in TEMPLATES.values()
        ]
        if task.match == "prefix":
            return min(lengths) > 0
        return set(lengths) == {1}

    return dataclasses.replace(fitted, pairs=tuple(filter(fits, fitted.pairs)))


def carry(study: Study, task: Task, layer: int) -> dict[str, Any]:
    """Accuracy of theta from each template (row) in each template's zero-shot query (column)."""
    model, settings = study.model, study.settings
    judge = Judge(model, fit_templates(model, task, settings.template))
    test = draw_prompts(judge.fitted, settings, "test")
    encode = model.tokenizer.encode_all
    thetas, icl = [], []
    for template in TEMPLATES.values():
        written = [dataclasses.replace(p, template=template) for p in test]
        texts = [encode([*p.dummies(), p.icl()]) for p in written]
        residuals, read = read_texts(model, texts, settings.batch_size)
        thetas.append(residuals[:, :-1, layer].mean(axis=1))
        icl.append(vars(accuracy(judge.correct(test, read.tokens[:, -1]))))
    vectors = np.stack(thetas, axis=1)  # [N, templates, D]
    grid, zero_shot = [], []
    for template in TEMPLATES.values():
        said = inject_vectors(
            model,
            encode([template.zero_shot(p.query.input) for p in test]),
            vectors,
            np.full(len(TEMPLATES), layer),
            settings.batch_size,
        ).tokens
        right = judge.correct(test, said)
        zero_shot.append(vars(accuracy(right[:, 0])))
        grid.append([vars(accuracy(column)) for column in right[:, 1:].T])
    # grid[write][read] -> [read][write]
    return {
        "layer": layer,
        "num_pairs": len(judge.fitted.pairs),
        "icl": icl,
        "zero_shot": zero_shot,
        "task_vector": [list(column) for column in zip(*grid, strict=True)],
    }


if __name__ == "__main__":
    main(NAME)
