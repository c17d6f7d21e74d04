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

from experiments.dose import TASKS
from experiments.page.section import Section, Table, number, score, text
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.evaluation.protocol import Judge, accuracy, draw_prompts
from taskvec_jax.models.loading import Model
from taskvec_jax.prompting.prompts import UNFILTERED_CATEGORY, FittedTask, Prompt, fit
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


def fit_templates(model: Model, task: Task) -> FittedTask:
    """The pairs of a fitted task that every template can pose.

    A template suits a pair when the answer's tokens follow the query's, and the answer is one
    token outside the knowledge category.
    """
    fitted = fit(task, model.tokenizer)

    def fits(pair: Pair) -> bool:
        lengths = [
            len(model.tokenizer.continuation(template.ask(pair), pair.output))
            for template in TEMPLATES
        ]
        if task.category == UNFILTERED_CATEGORY:
            return min(lengths) > 0
        return set(lengths) == {1}

    return dataclasses.replace(fitted, pairs=tuple(filter(fits, fitted.pairs)))


def carry(study: Study, task: Task, layer: int) -> dict[str, Any]:
    """Accuracy of theta from each template (row) in each template's zero-shot query (column)."""
    model, settings = study.model, study.settings
    judge = Judge(model, fit_templates(model, task))
    test = draw_prompts(judge.fitted, settings, "test")
    encode = model.tokenizer.encode_all
    thetas, icl = [], []
    for template in TEMPLATES:
        texts = [
            encode([template.show(p, query) for query in (*p.dummy_queries, p.query)]) for p in test
        ]
        residuals, read = read_texts(model, texts, settings.batch_size)
        thetas.append(residuals[:, :-1, layer].mean(axis=1))
        icl.append(vars(accuracy(judge.correct(test, read.tokens[:, -1]))))
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


def _mean_grid(result: dict[str, Any]) -> np.ndarray:
    return np.mean(
        [
            [[cell["accuracy"] for cell in row] for row in task["task_vector"]]
            for task in result["tasks"].values()
        ],
        axis=0,
    )


def section(result: dict[str, Any]) -> Section:
    """At home and abroad."""
    names = result["templates"]
    grid = _mean_grid(result)
    home = float(np.diag(grid).mean())
    away = float(grid[~np.eye(len(grid), dtype=bool)].mean())
    icl = np.mean([[v["accuracy"] for v in task["icl"]] for task in result["tasks"].values()])
    words = [
        f"Written into the template it was read from, theta scores {home:.2f}; written into another"
        f" one, {away:.2f} (mean of {len(result['tasks'])} tasks; the whole prompts score"
        f" {icl:.2f}).",
        *result["notes"],
    ]
    rows = [
        [
            text(task_name),
            text(names[i]),
            *(
                score(cell, "good" if i == j else "")
                for j, cell in enumerate(task["task_vector"][i])
            ),
            score(task["icl"][i]),
            score(task["zero_shot"][i]),
            number(task["num_pairs"], 0),
        ]
        for task_name, task in result["tasks"].items()
        for i in range(len(names))
    ]
    return Section(
        "Does a vector travel between templates?",
        words,
        [
            Table(
                "Theta read under the template of the row, written under that of the column",
                [
                    "task",
                    "read under",
                    *(f"written: {name}" for name in names),
                    "ICL (row)",
                    "zero-shot (row)",
                    "pairs",
                ],
                rows,
            )
        ],
        {NAME: "Task-vector accuracy, mean of the tasks and each alone: rows read, columns write."},
    )


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """One heat map for the mean and one a task."""
    from experiments.page import figures

    grids = {"mean": _mean_grid(result)} | {
        figures.short(name, result["categories"][name]): [
            [c["accuracy"] for c in row] for row in task["task_vector"]
        ]
        for name, task in result["tasks"].items()
    }
    figure, panels = figures.canvas(3.1 * len(grids) + 1, 3.9, 1, len(grids), sharey=True)
    for axis, (name, grid) in zip(panels, grids.items(), strict=True):
        figures.heat_map(axis, grid, result["templates"], result["templates"], write=".2f")
        axis.set_xticks(
            range(len(result["templates"])), result["templates"], rotation=40, ha="right"
        )
        axis.set_title(name)
    panels[0].set_ylabel("read under")
    return {NAME: figure}


if __name__ == "__main__":
    studies.define_flags()
    studies.run_main(__name__)
