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

from experiments.page.section import Section, Table, number, score, text
from experiments.run import study as studies
from experiments.run.study import Study
from experiments.run.writing import WriteError
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.protocol import Judge, Settings, accuracy, draw_prompts
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
    model, judge = study.model, Judge(study.model, fit(task, study.model.tokenizer))
    test = draw_prompts(judge.fitted, settings, "test")
    encode = model.tokenizer.encode_all
    residuals, read = read_texts(
        model, [encode([*p.dummies(), p.icl()]) for p in test], settings.batch_size
    )
    theta = residuals[:, : settings.num_dummy_queries, layer].mean(axis=1)
    (vector,) = _scores(study, judge, test, theta[:, None], layer)
    return {"icl": vars(accuracy(judge.correct(test, read.tokens[:, -1]))), "task_vector": vector}


def score_dummies(study: Study, task: Task, layer: int, settings: Settings) -> dict[str, Any]:
    """Theta averaged over the first 1, 2, 4, 8 of the same dummy queries."""
    model, judge = study.model, Judge(study.model, fit(task, study.model.tokenizer))
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
    model, judge = study.model, Judge(study.model, fit(task, study.model.tokenizer))
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


def section(result: dict[str, Any]) -> Section:
    """The four questions, over the tasks run."""
    tasks = result["tasks"]

    def mean(values: list[dict[str, Any]]) -> float:
        return float(np.mean([value["accuracy"] for value in values]))

    counts = [
        c for c in map(str, DEMONSTRATIONS) if all(c in t["demonstrations"] for t in tasks.values())
    ]
    by_count = {
        c: mean([t["demonstrations"][c]["task_vector"] for t in tasks.values()]) for c in counts
    }
    words = []
    if by_count:
        words.append(
            f"Mean task-vector accuracy over {len(tasks)} tasks by demonstrations: "
            + ", ".join(f"{c}: {value:.2f}" for c, value in by_count.items())
            + "."
        )
    added = {a: mean([t["added"][a] for t in tasks.values()]) for a in map(str, ADDED)}
    best = max(added, key=lambda a: added[a])
    replaced = mean([t["replaced"] for t in tasks.values()])
    words.append(
        f"Replacing scores {replaced:.2f}; adding theta to the query's own state scores"
        f" {added['1.0']:.2f}, and at the best scale ({best}) {added[best]:.2f}."
    )
    largest = max((int(c) for t in tasks.values() for c in t["averaged_over_prompts"]), default=1)
    over = mean([t["averaged_over_prompts"][str(largest)] for t in tasks.values()])
    words.append(
        f"Averaged over {largest} prompts, theta scores {over:.2f}, against {replaced:.2f} for each"
        " prompt's own."
    )
    rows = []
    for name, task in tasks.items():
        for question, values in _questions(task):
            rows += [
                [
                    text(name),
                    text(question),
                    number(float(dose), 0 if float(dose).is_integer() else 2),
                    score(value.get("task_vector", value)),
                    score(value.get("icl")),
                ]
                for dose, value in values.items()
            ]
    return Section(
        "How much of what makes a task vector?",
        [*words, *result["notes"]],
        [
            Table(
                "Accuracy on test at the main results' layer",
                ["task", "what is varied", "dose", "task vector", "ICL"],
                rows,
            )
        ],
        {
            NAME: "Demonstrations (ICL dashed), dummy queries, prompts averaged over, and the scale"
            " at which theta is added instead of replacing (dotted line: replacing)."
        },
    )


def _questions(task: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    questions = {
        "demonstrations": task["demonstrations"],
        "dummy queries": task["dummy_queries"],
        "prompts averaged over": task["averaged_over_prompts"],
        "scale when added": task["added"],
    }
    return [
        (question, {dose: values[dose] for dose in sorted(values, key=float)})
        for question, values in questions.items()
    ]


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Four panels, a line a task."""
    from experiments.page import figures

    figure, panels = figures.canvas(13, 3.8, 1, 4, sharey=True)
    names = list(result["tasks"])
    for name, task in result["tasks"].items():
        colour = figures.COLOURS[names.index(name) % len(figures.COLOURS)]
        for axis, (question, values) in zip(panels, _questions(task), strict=True):
            doses = list(values)
            heights = [values[d].get("task_vector", values[d])["accuracy"] for d in doses]
            axis.plot(
                [float(d) for d in doses],
                heights,
                "o-",
                markersize=4,
                color=colour,
                label=figures.short(name, result["categories"][name])
                if axis is panels[0]
                else None,
            )
            if question == "demonstrations":
                icl = [values[d]["icl"]["accuracy"] for d in doses]
                axis.plot([float(d) for d in doses], icl, "--", lw=0.9, color=colour)
            if question == "scale when added":
                axis.axhline(task["replaced"]["accuracy"], color=colour, ls=":", lw=0.9)
            axis.set_xscale("log", base=2)
            ticks = sorted(float(d) for d in values)
            if ticks:
                axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set(xlabel=question, ylim=(-0.02, 1.02))
    panels[0].set_ylabel("accuracy on test")
    figure.legend(loc="outside lower center", ncols=max(1, len(names)))
    return {NAME: figure}


if __name__ == "__main__":
    studies.define_flags()
    studies.run_main(__name__)
