# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""The main experiment on one task: prompts in, outcomes of every column out.

The protocol is the paper's (Section 3 and Appendix A): per task, dev and test prompts, each with
its own demonstrations, query and dummy queries; the layer is chosen on dev, ties to the lowest,
and every reported score is on test. In-context learning and zero-shot are read on dev too: they
say which tasks in-context learning does (`statistics.icl_able`).

Shapes: N prompts of each split, L layers, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from taskvec_jax.evaluation.columns import Predicted, record, score_columns
from taskvec_jax.evaluation.measuring import Measured, measure, sweep_dev
from taskvec_jax.evaluation.random_vectors import random_with_covariance
from taskvec_jax.evaluation.reading import query_parts
from taskvec_jax.evaluation.results import Settings, TaskResult, check_arguments
from taskvec_jax.evaluation.statistics import Accuracy, accuracy, icl_able
from taskvec_jax.models.model import Model
from taskvec_jax.tasks.task import Task
from taskvec_jax.vectors.graded import Graded
from taskvec_jax.vectors.sweep import inject_vectors

GOES_ON = 0.3  # a share of in-context answers right at first and then gone on with, to be told of


@dataclasses.dataclass(frozen=True)
class Written:
    """Vectors to be written on test.

    Attributes:
      layer: after which layer.
      vectors: float32 [N, D], one for each test prompt.
    """

    layer: int
    vectors: np.ndarray


def random_vectors(m: Measured, settings: Settings) -> np.ndarray:
    """Random vectors with theta's covariance and size: float32 [2N, L, D], of dev and of test."""
    name = m.scorer.fitted.task.name
    return random_with_covariance(m.theta, 2 * len(m.dev), settings.seed, name, "random vector")


def _random_control(m: Measured, settings: Settings) -> Written:
    """Random vectors at their own best layer on dev."""
    n, drawn = len(m.dev), random_vectors(m, settings)
    layer = sweep_dev(m.scorer, m.dev, drawn[:n], settings).layer
    return Written(layer, drawn[n:, layer])


def columns_written(
    m: Measured, written: dict[str, Written], settings: Settings
) -> dict[str, Predicted]:
    """What the model answers to the test queries: `baseline`, untouched, and with each vector."""
    model = m.scorer.model
    queries = model.tokenizer.encode_all([p.zero_shot() for p in m.test])
    answers = inject_vectors(
        model,
        queries,
        np.stack([w.vectors for w in written.values()], axis=1),
        np.array([w.layer for w in written.values()]),
        settings.batch_size,
        grading=m.wanted,
    )
    assert answers.graded is not None
    columns: dict[str, Predicted] = {}
    for i, name in enumerate(("baseline", *written)):
        columns[name] = Predicted(
            [(token,) for token in answers.tokens[:, i].tolist()],
            queries,
            Graded(*(values[:, i] for values in answers.graded)),
            written[name].layer if i else None,
            written[name].vectors if i else None,
        )
    return columns


def icl_column(m: Measured) -> Predicted:
    """The in-context answers to the test prompts."""
    texts = m.scorer.model.tokenizer.encode_all([p.icl() for p in m.test])
    return Predicted(m.icl.begun(), texts, m.icl.graded)


def evaluate_task(
    model: Model,
    task: Task,
    settings: Settings,
    progress: Callable[[int], None] = lambda prompts: None,
    measured: Measured | None = None,
) -> TaskResult:
    """Runs the paper's main experiment on one task.

    Args:
      progress: called with the number of prompts just finished, 2 * num_prompts in all.
      measured: what `measure` gives for the same arguments; measured here when left out.

    Raises:
      TaskVecError: an argument of another type, such as a task's name; the task does not suit the
        tokenizer or the settings; or the model overflows.
    """
    check_arguments(model, task, settings)
    m = measured or measure(model, task, settings, progress)
    written = {
        "task_vector": Written(m.layer, m.theta[:, m.layer]),
        "random": _random_control(m, settings),
    }
    predicted = columns_written(m, written, settings)
    columns = {"baseline": predicted.pop("baseline"), "icl": icl_column(m), **predicted}
    progress(len(m.test))
    scored = score_columns(m.scorer, m.test, columns=columns, rule=settings.rule)
    return result_of(m, scored, settings)


def result_of(m: Measured, columns: dict[str, dict[str, Any]], settings: Settings) -> TaskResult:
    """Puts a task's scored columns together with what was found on dev."""
    fitted, task = m.scorer.fitted, m.scorer.fitted.task
    recorded = record(m.test, columns)
    shared = not query_parts(fitted, settings)
    asked = len(set(recorded["queries"]))
    warnings = [fitted.note] if fitted.note else []
    if not m.changed:
        warnings.append(
            f"{task.name}: no injection at any layer changed any prediction; the vector is not"
            " reaching the output"
        )
    if shared and settings.rule != "paper":
        warnings.append(
            f"{task.name}: {len(fitted.pairs)} pairs are too few to keep dev and test queries"
            f" apart; the {len(m.test)} test prompts ask for {asked} different queries, and the"
            " layer was chosen on some of them"
        )

    said: dict[str, list[int]] = columns["icl"]
    first, whole = (float(np.mean(said[f"correct_{rule}"])) for rule in ("paper", "full"))
    if first - whole >= GOES_ON and task.match == "exact":
        warnings.append(
            f"{task.name}: the first token of in-context answers is right on {first:.0%} of the"
            f" prompts and the whole answer on {whole:.0%}: the model does not stop after its"
            " answers; --rule=paper scores first tokens"
        )

    def score(name: str) -> Accuracy:
        return accuracy(columns[name]["correct"], recorded["queries"])

    return TaskResult(
        category=task.category,
        match=task.match,
        rule=settings.rule,
        baseline=score("baseline"),
        icl=score("icl"),
        task_vector=score("task_vector"),
        random=score("random"),
        best_layer=m.layer,
        dev_accuracy=m.dev_accuracy,
        dev_accuracy_by_layer=[float(share) for share in m.curve],
        dev_graded_by_layer=m.graded_curve,
        dev_icl=float(np.mean(m.dev_icl)),
        dev_baseline=float(np.mean(m.dev_baseline)),
        icl_able=icl_able(m.dev_icl, m.dev_baseline),
        num_pairs=len(fitted.pairs),
        num_all_pairs=fitted.num_all,
        leading_space=fitted.leading_space,
        shared_queries=shared,
        outcomes=recorded,
        warnings=warnings,
    )
