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
from taskvec_jax.evaluation.answers import Scorer
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import accuracy
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.vectors.sweep import inject_vectors, read_texts

NAME = "portability"


@dataclasses.dataclass(frozen=True)
class Template:
    """A way to write a prompt.

    Attributes:
      name: for tables.
      query: with {x}; the answer follows it directly.
      separator: between examples.
    """

    name: str
    query: str
    separator: str = "\n"

    def ask(self, pair: Pair) -> str:
        """The query alone."""
        return self.query.format(x=pair.input)

    def show(self, prompt: Prompt, query: Pair) -> str:
        """The demonstrations and a query."""
        shown = [self.ask(pair) + pair.output for pair in prompt.demonstrations]
        return self.separator.join([*shown, self.ask(query)])


TEMPLATES = (
    Template("example:x->y", "example:{x}->"),
    Template("x=y", "{x}="),
    Template("Q:x A:y", "Q:{x}\nA:"),
    Template("Input:x Output:y", "Input:{x} Output:", "\n\n"),
)


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
            templates=[dataclasses.asdict(template) for template in TEMPLATES],
        )

    results, notes = study.each(NAME, studies.chosen_tasks(study, TASKS), measure)
    return study.result(
        NAME,
        study.settings,
        {"templates": [t.name for t in TEMPLATES], "tasks": results, "notes": notes},
    )


def fit_templates(model: Model, task: Task, settings: Settings) -> FittedTask:
    """The pairs of a fitted task that every template can pose.

    A template suits a pair when the answer's tokens follow the query's, and the answer is one
    token outside the knowledge category.
    """
    fitted = fit(task, model.tokenizer, settings.filter)

    def fits(pair: Pair) -> bool:
        lengths = [
            len(model.tokenizer.continuation(template.ask(pair), pair.output))
            for template in TEMPLATES
        ]
        if task.match == "prefix" or settings.filter == "none":
            return min(lengths) > 0
        return set(lengths) == {1}

    return dataclasses.replace(fitted, pairs=tuple(filter(fits, fitted.pairs)))


def carry(study: Study, task: Task, layer: int) -> dict[str, Any]:
    """Accuracy of theta from each template (row) in each template's zero-shot query (column)."""
    model, settings = study.model, study.settings
    scorer = Scorer(model, fit_templates(model, task, settings))
    test = draw_prompts(scorer.fitted, settings, "test")
    encode = model.tokenizer.encode_all
    thetas, icl = [], []
    for template in TEMPLATES:
        texts = [
            encode([template.show(p, query) for query in (*p.dummy_queries, p.query)]) for p in test
        ]
        residuals, read = read_texts(model, texts, settings.batch_size)
        thetas.append(residuals[:, :-1, layer].mean(axis=1))
        icl.append(vars(accuracy(scorer.by_first_token(test, read.tokens[:, -1]))))
    vectors = np.stack(thetas, axis=1)  # [N, templates, D]
    grid, zero_shot = [], []
    for template in TEMPLATES:
        said = inject_vectors(
            model,
            encode([template.ask(p.query) for p in test]),
            vectors,
            np.full(len(TEMPLATES), layer),
            settings.batch_size,
        ).tokens
        right = scorer.by_first_token(test, said)
        zero_shot.append(vars(accuracy(right[:, 0])))
        grid.append([vars(accuracy(column)) for column in right[:, 1:].T])
    # grid[write][read] -> [read][write]
    return {
        "layer": layer,
        "num_pairs": len(scorer.fitted.pairs),
        "icl": icl,
        "zero_shot": zero_shot,
        "task_vector": [list(column) for column in zip(*grid, strict=True)],
    }


if __name__ == "__main__":
    main(NAME)
