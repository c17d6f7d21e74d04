"""How much of what makes a task vector (beyond the paper).

    python -m experiments.dose
    python -m experiments.dose --tasks=linguistic_antonyms

Four questions, each answered on test at the layer the main results chose: how many demonstrations
(1 to 20), how many dummy queries theta is averaged over (1, 2, 4, 8), whether averaging theta over
prompts helps, and whether theta should replace the residual stream, be added to it, or be added
scaled. Runs on one task of each category unless --tasks names others.

Writes dose.json and dose.png/.svg under --out.
Expected on the default model at the paper's settings: .10 with 1 demonstration, .50 with 3, no more
with 20; replacing .52, adding .21 (6 minutes on 2 shared cores).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.run import study as studies
from experiments.run.study import Study
from experiments.run.writing import WriteError
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.judging import Judge, accuracy
from taskvec_jax.evaluation.protocol import Settings, draw_prompts
from taskvec_jax.evaluation.reading import read_prompts
from taskvec_jax.prompting.prompts import fit
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.sweep import inject_vectors, read_texts

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
            layer = study.layer(task, study.settings)
            found: dict[str, Any] = {"layer": layer, "demonstrations": {}}
            for count in DEMONSTRATIONS:
                begin(f"{task.name}, {count} demonstrations")
                settings = dataclasses.replace(study.settings, num_demonstrations=count)
                try:
                    found["demonstrations"][str(count)] = study.unit(
                        f"{NAME}/demonstrations",
                        task,
                        settings,
                        functools.partial(score_prompts, study, task, layer, settings),
                        layer=layer,
                    )
                except WriteError:
                    raise
                except TaskVecError as error:
                    notes.append(str(error))
            begin(f"{task.name}, dummy queries")
            settings = dataclasses.replace(study.settings, num_dummy_queries=max(DUMMY_QUERIES))
            try:
                found["dummy_queries"] = study.unit(
                    f"{NAME}/dummy queries",
                    task,
                    settings,
                    functools.partial(score_dummies, study, task, layer, settings),
                    layer=layer,
                    counts=list(DUMMY_QUERIES),
                )
            except WriteError:
                raise
            except TaskVecError as error:
                notes.append(str(error))
                found["dummy_queries"] = {}
            begin(f"{task.name}, ways to write")
            found |= study.unit(
                f"{NAME}/ways to write",
                task,
                study.settings,
                functools.partial(score_writes, study, task, layer),
                layer=layer,
                prompts=list(PROMPTS),
                added=list(ADDED),
            )
            results[task.name] = found
    return study.result(NAME, study.settings, {"tasks": results, "notes": notes})


def score_prompts(study: Study, task: Task, layer: int, settings: Settings) -> dict[str, Any]:
    """ICL and task vector on test prompts of these settings."""
    model, template = study.model, study.settings.template
    judge = Judge(model, fit(task, model.tokenizer, template))
    test = draw_prompts(judge.fitted, settings, "test")
    theta, icl = read_prompts(model, test, settings.batch_size)
    (vector,) = _scores(study, judge, test, theta[:, layer][:, None], layer)
    return {"icl": vars(accuracy(judge.correct(test, icl))), "task_vector": vector}


def score_dummies(study: Study, task: Task, layer: int, settings: Settings) -> dict[str, Any]:
    """Theta averaged over the first 1, 2, 4, 8 of the same dummy queries."""
    model, template = study.model, study.settings.template
    judge = Judge(model, fit(task, model.tokenizer, template))
    test = draw_prompts(judge.fitted, settings, "test")
    texts = [model.tokenizer.encode_all(p.dummies()) for p in test]
    residuals = read_texts(model, texts, settings.batch_size)[0][:, :, layer]  # [N, 8, D]
    vectors = np.stack([residuals[:, :count].mean(axis=1) for count in DUMMY_QUERIES], axis=1)
    scores = _scores(study, judge, test, vectors, layer)
    return dict(zip(map(str, DUMMY_QUERIES), scores, strict=True))


def score_writes(study: Study, task: Task, layer: int) -> dict[str, Any]:
    """Theta averaged over prompts, and theta added to the query's own residual stream.

    Averages are over a prompt's own theta and those of the prompts after it, in a circle, so that
    every average is over as many test prompts as it says.
    """
    model, template = study.model, study.settings.template
    judge = Judge(model, fit(task, model.tokenizer, template))
    test = draw_prompts(judge.fitted, study.settings, "test")
    theta = study.theta(task, study.settings)[:, layer]  # [N, D]
    queries = [[ids] for ids in model.tokenizer.encode_all([p.zero_shot() for p in test])]
    own = read_texts(model, queries, study.settings.batch_size)[0][:, 0, layer]
    counts = [count for count in PROMPTS if count <= len(test)]
    averages = [average_round(theta, count) for count in counts]
    sums = [own + scale * theta for scale in ADDED]
    vectors = np.stack([*averages, *sums], axis=1)
    scores = _scores(study, judge, test, vectors, layer)
    return {
        "averaged_over_prompts": dict(zip(map(str, counts), scores, strict=False)),
        "added": dict(zip(map(str, ADDED), scores[len(counts) :], strict=True)),
        "replaced": scores[0],
    }


def average_round(theta: np.ndarray, count: int) -> np.ndarray:
    """Mean of each row of [N, D] and the count - 1 rows after it, going round."""
    return np.mean([np.roll(theta, -i, axis=0) for i in range(count)], axis=0)


def _scores(
    study: Study, judge: Judge, test: list[Any], vectors: np.ndarray, layer: int
) -> list[dict[str, Any]]:
    """Accuracy of each of C vectors a prompt, [N, C, D], after one layer."""
    queries = study.model.tokenizer.encode_all([p.zero_shot() for p in test])
    layers = np.full(vectors.shape[1], layer)
    said = inject_vectors(study.model, queries, vectors, layers, study.settings.batch_size).tokens
    return [vars(accuracy(column)) for column in judge.correct(test, said[:, 1:]).T]


if __name__ == "__main__":
    main(NAME)
