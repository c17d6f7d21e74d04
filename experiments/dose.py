"""How much of what makes a task vector (beyond the paper).

    python -m experiments.dose
    python -m experiments.dose --tasks=linguistic_antonyms

Four questions: how many demonstrations (1 to 20), how many dummy queries theta is averaged over
(1, 2, 4, 8), whether averaging theta over prompts helps, and whether theta should replace the
residual stream, be added to it, or be added scaled. Every condition is scored on test at its own
layer, chosen on dev. Averages over prompts leave out those that show the query, as the paper's code
does. Runs on one task of each category unless --tasks names others.

Writes dose.json and dose.png/.svg under --out.
Expected on the default model: see BUILD_NOTES.

Time: 12 minutes (4 tasks, 2 cores).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.run import study as studies
from experiments.run.study import Study
from experiments.run.writing import WriteError
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.columns import Predicted, score_columns
from taskvec_jax.evaluation.reading import draw_prompts, read_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import accuracy
from taskvec_jax.evaluation.tuned import Condition, asked, score_tuned
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.sweep import read_texts

NAME = "dose"
TASKS = (
    "algorithmic_to_upper",
    "knowledge_person_language",
    "linguistic_present_simple_past_simple",
    "translation_es_en",
)
DEMONSTRATIONS = (1, 2, 3, 5, 10, 20)
DUMMY_QUERIES = (1, 2, 4, 8)
PROMPTS = (1, 2, 5, 10, 25, 50)
ADDED = (0.25, 0.5, 1.0, 2.0, 4.0)


def run(study: Study) -> dict[str, Any]:
    """Runs every dose on every task chosen."""
    tasks = studies.chosen_tasks(study, TASKS)
    results: dict[str, dict[str, Any]] = {}
    notes = []
    with study.bar("dose", len(tasks) * (len(DEMONSTRATIONS) + 2)) as begin:
        for task in tasks:
            found: dict[str, Any] = {"demonstrations": {}}

            def measure(
                what: str, settings: Settings, compute: Any, task: Task = task, **more: Any
            ) -> Any:
                """The value of a unit; None, and a note, where it cannot be had."""
                try:
                    call = functools.partial(compute, study, task, settings)
                    return study.unit(f"{NAME}/{what}", task, settings, call, **more)
                except WriteError:
                    raise
                except TaskVecError as error:
                    notes.append(str(error))
                    return None

            for count in DEMONSTRATIONS:
                begin(f"{task.name}, {count} demonstrations")
                settings = dataclasses.replace(study.settings, num_demonstrations=count)
                if value := measure("demonstrations", settings, score_prompts):
                    found["demonstrations"][str(count)] = value
            begin(f"{task.name}, dummy queries")
            settings = dataclasses.replace(study.settings, num_dummy_queries=max(DUMMY_QUERIES))
            counts = list(DUMMY_QUERIES)
            found["dummy_queries"] = (
                measure("dummy queries", settings, score_dummies, counts=counts) or {}
            )
            begin(f"{task.name}, ways to write")
            found |= study.unit(
                f"{NAME}/ways to write",
                task,
                study.settings,
                functools.partial(score_writes, study, task, study.settings),
                prompts=list(PROMPTS),
                added=list(ADDED),
            )
            results[task.name] = found
    return study.result(NAME, study.settings, {"tasks": results, "notes": notes})


def splits(scorer: Scorer, settings: Settings) -> tuple[list[Prompt], list[Prompt]]:
    """Dev and test prompts."""
    dev, test = (draw_prompts(scorer.fitted, settings, split) for split in ("dev", "test"))
    return dev, test


def halves(values: np.ndarray) -> Condition:
    """What was read from dev and test prompts together, [2N, ...]."""
    n = len(values) // 2
    return Condition(values[:n], values[n:])


def score_prompts(study: Study, task: Task, settings: Settings) -> dict[str, Any]:
    """ICL and task vector under these settings."""
    scorer = scorer_of(study.model, task, settings)
    dev, test = splits(scorer, settings)
    theta, icl = read_prompts(scorer, [*dev, *test], settings.batch_size)
    prompts = asked(scorer, dev, test)
    found = score_tuned(
        scorer, prompts, conditions={"task_vector": halves(theta)}, settings=settings
    )
    texts = study.model.tokenizer.encode_all([p.icl() for p in test])
    column = {"icl": Predicted(icl.part(slice(len(dev), None)).begun(), texts)}
    of_icl = score_columns(scorer, test, columns=column, rule=settings.rule)["icl"]
    queries = [p.query.input for p in test]
    return {
        "icl": vars(accuracy(of_icl["correct"], queries)),
        "task_vector": found["task_vector"],
        "baseline": found["baseline"],
    }


def score_dummies(study: Study, task: Task, settings: Settings) -> dict[str, Any]:
    """Theta averaged over the first 1, 2, 4, 8 of the same dummy queries."""
    scorer = scorer_of(study.model, task, settings)
    dev, test = splits(scorer, settings)
    texts = [study.model.tokenizer.encode_all(p.dummies()) for p in (*dev, *test)]
    residuals = read_texts(study.model, texts, settings.batch_size)[0]  # [2N, 8, L, D]
    conditions = {str(count): halves(residuals[:, :count].mean(axis=1)) for count in DUMMY_QUERIES}
    found = score_tuned(scorer, asked(scorer, dev, test), conditions=conditions, settings=settings)
    return {name: found[name] for name in conditions}


def score_writes(study: Study, task: Task, settings: Settings) -> dict[str, Any]:
    """Theta averaged over prompts, and theta added to the query's own residual stream.

    Averages are over a prompt's own theta and those of the prompts after it in its split, in a
    circle, that do not show its query: as many as are said, or all there are.
    """
    model = study.model
    scorer = scorer_of(model, task, settings)
    dev, test = splits(scorer, settings)
    theta = halves(read_theta(model, [*dev, *test], settings.batch_size))
    prompts = asked(scorer, dev, test)
    queries = [[ids] for ids in (*prompts.dev_queries, *prompts.test_queries)]
    own = halves(read_texts(model, queries, settings.batch_size)[0][:, 0])
    counts = [count for count in PROMPTS if count <= len(test)]
    conditions = {
        f"average {count}": Condition(
            average_round(theta.dev, dev, count), average_round(theta.test, test, count)
        )
        for count in counts
    }
    conditions |= {
        f"added {scale}": Condition(own.dev + scale * theta.dev, own.test + scale * theta.test)
        for scale in ADDED
    }
    found = score_tuned(scorer, prompts, conditions=conditions, settings=settings)
    return {
        "averaged_over_prompts": {str(count): found[f"average {count}"] for count in counts},
        "added": {str(scale): found[f"added {scale}"] for scale in ADDED},
        "replaced": found["average 1"],
    }


def average_round(theta: np.ndarray, prompts: Sequence[Prompt], count: int) -> np.ndarray:
    """Mean of each prompt's theta, [N, L, D], and those of up to count - 1 prompts after it, going
    round, that show its query neither as a demonstration nor as a dummy query."""
    averages = []
    for i, prompt in enumerate(prompts):
        rows = [i]
        for step in range(1, len(prompts)):
            other = prompts[(i + step) % len(prompts)]
            shown = {pair.input for pair in (*other.demonstrations, *other.dummy_queries)}
            if len(rows) < count and prompt.query.input not in shown:
                rows.append((i + step) % len(prompts))
        averages.append(theta[rows].mean(axis=0))
    return np.stack(averages)


if __name__ == "__main__":
    main(NAME)
