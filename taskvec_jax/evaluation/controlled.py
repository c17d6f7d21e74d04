# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""The main experiment on one task with every control beside the task vector.

Shapes: N prompts of each split, L layers, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from taskvec_jax.evaluation.columns import (
    Answered,
    Given,
    Predicted,
    graded_means,
    score_columns,
)
from taskvec_jax.evaluation.control_prompts import all_wrong_labels, share_wrong
from taskvec_jax.evaluation.controls import CONTROLS, Materials, Vectors
from taskvec_jax.evaluation.layers import Swept, layers_of_dev
from taskvec_jax.evaluation.lending import lent_thetas, rank_lent
from taskvec_jax.evaluation.measuring import Measured, inject_on_dev, measure, queries_of
from taskvec_jax.evaluation.protocol import Written, columns_written, icl_column, result_of
from taskvec_jax.evaluation.reading import InContext, read_prompts
from taskvec_jax.evaluation.results import Settings, TaskResult, check_arguments
from taskvec_jax.evaluation.statistics import Accuracy, accuracy
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks.task import Task
from taskvec_jax.vectors.sweep import sweep_layers


@dataclasses.dataclass(frozen=True)
class ControlledResult:
    """A task's scores with its controls beside them.

    Attributes:
      result: baseline, ICL, task vector, and the outcomes of all columns.
      controls: one score for each of `CONTROLS`; None where it cannot be made.
      icl_wrong_labels: ICL with the wrongly labelled demonstrations themselves.
      wrong_label_share: of their labels, how many are wrong.
      test_accuracy_by_layer: [L], each test prompt's own theta injected after every layer, by the
        rule `paper`.
      test_graded_by_layer: [L] each, means over test prompts of the same: `logprob`,
        `logit_difference`.
      other_tasks: for each other task whether it is related, the layer where its first tokens do
        best on dev, and its dev accuracy there.
    """

    result: TaskResult
    controls: dict[str, Accuracy | None]
    icl_wrong_labels: Accuracy
    wrong_label_share: float
    test_accuracy_by_layer: list[float]
    test_graded_by_layer: dict[str, list[float]]
    other_tasks: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: the keys of `TaskResult`, and the controls."""
        rest = dataclasses.asdict(self)
        return {**rest.pop("result"), **rest}


def evaluate_with_controls(
    model: Model,
    task: Task,
    others: Sequence[Task],
    settings: Settings,
    progress: Callable[[int], None] = lambda prompts: None,
    measured: Measured | None = None,
    lent: Mapping[str, np.ndarray] | None = None,
) -> tuple[ControlledResult, Measured]:
    """Runs the paper's main experiment on one task, with every control.

    Args:
      others: the tasks whose thetas are borrowed for a control; this task among them is ignored.
      progress: called with the number of prompts just finished, 4 * num_prompts in all.
      measured: what `measure` gives for the same arguments; measured here when left out.
      lent: what `lent_thetas` gives for the same arguments; read here when left out.

    Returns:
      The scores, and what they were taken from (the thetas of the test prompts among it).

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    check_arguments(model, task, settings)
    m = measured or measure(model, task, settings, progress)
    scorer, n = m.scorer, len(m.test)
    queries = queries_of(scorer, m.test)
    swept = sweep_layers(model, queries, m.theta, settings.batch_size, grading=m.wanted)
    assert swept.graded is not None
    progress(n)

    both = [*m.dev, *m.test]
    relabelled = all_wrong_labels(scorer, both, settings.seed, task.name)
    wanted = scorer.wanted(both, settings.seed)
    theta, icl = read_prompts(scorer, relabelled, settings.batch_size, wanted)
    if lent is None:
        lent = lent_thetas(model, task, others, settings)
    known = {other.name: other for other in others}
    materials = Materials(m, settings, rank_lent(m, lent, known, settings), theta)
    progress(n)

    columns = _columns(materials)
    columns["icl_wrong_labels"] = _relabelled_icl(m, relabelled[n:], icl.part(slice(n, None)))
    scored = score_columns(scorer, m.test, columns=columns, rule=settings.rule)
    of_icl = scored.pop("icl_wrong_labels")
    progress(n)
    result = result_of(m, scored, settings)
    asked = result.outcomes["queries"]
    for name in CONTROLS:  # a control that cannot be made is in the record, as nothing
        result.outcomes.setdefault(name, None)
    return ControlledResult(
        result=result,
        controls={
            name: accuracy(scored[name]["correct"], asked) if name in scored else None
            for name in CONTROLS
        },
        icl_wrong_labels=accuracy(of_icl["correct"], asked),
        wrong_label_share=share_wrong(scorer, both, relabelled),
        test_accuracy_by_layer=[
            float(x) for x in scorer.by_first_token(m.test, swept.tokens[:, 1:]).mean(axis=0)
        ],
        test_graded_by_layer=graded_means(swept.graded),
        other_tasks={
            other.name: {
                "dev_accuracy": other.accuracy,
                "layer": other.layer,
                "related": other.related,
            }
            for other in materials.others
        },
    ), m


def _columns(materials: Materials) -> dict[str, Answered]:
    """The answers of all columns; those with vectors are predicted in one call."""
    m, settings = materials.measured, materials.settings
    made = {name: control.make(materials) for name, control in CONTROLS.items()}
    written = {"task_vector": Written(m.layer, m.theta[:, m.layer])}
    written |= {name: found for name, found in made.items() if isinstance(found, Written)}
    written |= _at_their_layers(
        m, {name: found for name, found in made.items() if isinstance(found, Vectors)}, settings
    )
    # For a control that cannot be made theta is written again, and what that gives is not used:
    # the number of copies, and so the compiled program, is the same for all tasks.
    absent = {f"absent {name}": written["task_vector"] for name in made if made[name] is None}
    predicted = columns_written(m, written | absent, settings)
    columns: dict[str, Answered] = {
        "baseline": predicted["baseline"],
        "icl": icl_column(m),
        "task_vector": predicted["task_vector"],
    }
    for name, found in made.items():
        if isinstance(found, Given):
            columns[name] = found
        elif found is not None:
            columns[name] = predicted[name]
    return columns


def _at_their_layers(
    m: Measured, tried: Mapping[str, Vectors], settings: Settings
) -> dict[str, Written]:
    """Each control's vectors after the layer where they do best on dev, by the rule in force."""
    shape = (len(m.dev), *m.theta.shape[1:])
    vectors = {name: np.broadcast_to(found.dev, shape) for name, found in tried.items()}
    known = {n: found.dev_tokens for n, found in tried.items() if found.dev_tokens is not None}
    new = [name for name in tried if name not in known]
    queries = queries_of(m.scorer, m.dev)
    answers = inject_on_dev(m.scorer, m.dev, [vectors[n] for n in new], settings, queries)
    known |= {name: said.tokens[:, 1:] for name, said in zip(new, answers, strict=True)}
    swept = [Swept(vectors[name], known[name]) for name in tried]
    rule = settings.rule
    chosen = layers_of_dev(m.scorer, m.dev, queries=queries, several=swept, rule=rule)
    return {
        name: Written(layer, np.broadcast_to(found.test, m.theta.shape)[:, layer])
        for (name, found), (layer, _) in zip(tried.items(), chosen, strict=True)
    }


def _relabelled_icl(m: Measured, prompts: Sequence[Prompt], icl: InContext) -> Predicted:
    texts = m.scorer.model.tokenizer.encode_all([p.icl() for p in prompts])
    return Predicted(icl.begun(), texts, icl.graded)
