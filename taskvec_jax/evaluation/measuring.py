"""One task on one model: prompts read, and the layer chosen on dev.

Shapes: N prompts of each split, L layers, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.columns import Predicted, graded_means, score_columns
from taskvec_jax.evaluation.layers import Swept, layers_of_dev
from taskvec_jax.evaluation.reading import (
    MOST_ASSUMED,
    InContext,
    draw_prompts,
    read_prompts,
    read_theta,
)
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks.task import Task
from taskvec_jax.transformer.checks import check_texts
from taskvec_jax.vectors.graded import Graded, Wanted
from taskvec_jax.vectors.rows import tree_length
from taskvec_jax.vectors.sweep import Answers, sweep_several

LONGEST = 10  # prompts of each task, by characters, among which the one of most tokens is sought


@dataclasses.dataclass(frozen=True)
class Measured:
    """One task on one model with its layer chosen: what every score of the task starts from.

    Attributes:
      scorer: scores answers to this task.
      dev, test: the prompts.
      theta: float32 [N, L, D], theta of each test prompt after every layer.
      icl: in-context answers to the test prompts.
      wanted: tokens for the graded scores of the test prompts.
      layer: chosen on dev by the rule in force.
      dev_accuracy: of theta at that layer on dev, by that rule.
      curve: [L], dev accuracy by layer, by the rule `paper`.
      dev_icl, dev_baseline: [N] of 0 or 1, right on dev by the rule in force.
      changed: whether some vector at some layer changed some prediction on dev.
      graded_curve: [L] each, means over dev prompts by layer: `logprob`, `logit_difference`.
    """

    scorer: Scorer
    dev: list[Prompt]
    test: list[Prompt]
    theta: np.ndarray
    icl: InContext
    wanted: Wanted
    layer: int
    dev_accuracy: float
    curve: np.ndarray
    dev_icl: list[int]
    dev_baseline: list[int]
    changed: bool
    graded_curve: dict[str, list[float]]

    KEPT = ("layer", "dev_accuracy", "dev_icl", "dev_baseline", "changed", "graded_curve")

    def to_dict(self) -> dict[str, Any]:
        """Plain values of all but theta, which `measured_again` reads."""
        icl = {
            name: values.tolist() for name, values in self.icl._asdict().items() if name != "graded"
        }
        return {
            **{name: getattr(self, name) for name in self.KEPT},
            "curve": self.curve.tolist(),
            "icl": icl,
            "graded": {k: v.tolist() for k, v in self.icl.graded._asdict().items()}
            if self.icl.graded
            else None,
        }


def measure(
    model: Model,
    task: Task,
    settings: Settings,
    progress: Callable[[int], None] = lambda prompts: None,
) -> Measured:
    """Reads theta and in-context answers of all prompts and chooses the layer on dev.

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    scorer, dev, test, wanted = _prompts(model, task, settings)
    n, both = len(dev), [*dev, *test]
    of_both = scorer.wanted(both, settings.seed)
    theta, icl = read_prompts(scorer, both, settings.batch_size, of_both)
    swept = sweep_dev(scorer, dev, theta[:n], settings)
    encode = model.tokenizer.encode_all
    dev_columns = score_columns(
        scorer,
        dev,
        columns={
            "icl": Predicted(icl.part(slice(n)).begun(), encode([p.icl() for p in dev])),
            "baseline": Predicted(
                [(token,) for token in swept.tokens[:, 0].tolist()],
                encode([p.zero_shot() for p in dev]),
            ),
        },
        rule=settings.rule,
    )
    progress(n)
    return Measured(
        scorer,
        dev,
        test,
        theta[n:],
        icl.part(slice(n, None)),
        wanted,
        swept.layer,
        swept.accuracy,
        swept.curve,
        dev_columns["icl"]["correct"],
        dev_columns["baseline"]["correct"],
        bool((swept.tokens[:, 1:] != swept.tokens[:, :1]).any()),
        swept.graded,
    )


def measured_again(
    model: Model, task: Task, settings: Settings, *, theta: np.ndarray, kept: dict[str, Any]
) -> Measured:
    """What `measure` gave, from what was kept of it; the model is not run.

    Args:
      theta: as in `Measured`.
      kept: what `Measured.to_dict` gave.
    """
    scorer, dev, test, wanted = _prompts(model, task, settings)
    types = (np.float32, np.int32, np.float32)
    graded = kept["graded"] and Graded(
        *(np.array(kept["graded"][k], t) for k, t in zip(Graded._fields, types, strict=True))
    )
    icl = InContext(**{k: np.array(v, np.int32) for k, v in kept["icl"].items()}, graded=graded)
    return Measured(
        scorer=scorer,
        dev=dev,
        test=test,
        theta=theta,
        icl=icl,
        wanted=wanted,
        curve=np.array(kept["curve"]),
        **{name: kept[name] for name in Measured.KEPT},
    )


def _prompts(
    model: Model, task: Task, settings: Settings
) -> tuple[Scorer, list[Prompt], list[Prompt], Wanted]:
    scorer = scorer_of(model, task, settings)
    dev, test = (draw_prompts(scorer.fitted, settings, split) for split in ("dev", "test"))
    return scorer, dev, test, scorer.wanted(test, settings.seed)


@dataclasses.dataclass(frozen=True)
class DevSweep:
    """Vectors injected into the dev queries after every layer.

    Attributes:
      tokens: int [N, 1 + L], predictions, the untouched query's first.
      curve: [L], accuracy by layer, by the rule `paper`.
      layer, accuracy: the best one by the rule in force, and its accuracy.
      graded: [L] each, means of graded scores by layer.
    """

    tokens: np.ndarray
    curve: np.ndarray
    layer: int
    accuracy: float
    graded: dict[str, list[float]]


def sweep_dev(
    scorer: Scorer,
    dev: Sequence[Prompt],
    vectors: np.ndarray,
    settings: Settings,
    queries: Sequence[Sequence[int]] | None = None,
) -> DevSweep:
    """Injects vectors [N, L, D] into the dev queries after every layer, and chooses the layer.

    Args:
      queries: token ids of the zero-shot prompts, where they are written in another form.
    """
    return sweep_dev_of_each(scorer, dev, [vectors], settings, queries)[0]


def sweep_dev_of_each(
    scorer: Scorer,
    dev: Sequence[Prompt],
    several: Sequence[np.ndarray],
    settings: Settings,
    queries: Sequence[Sequence[int]] | None = None,
) -> list[DevSweep]:
    """`sweep_dev` of each of several sets of vectors, which share what is run of the queries and
    the calls that generate answers."""
    queries = queries or queries_of(scorer, dev)
    answers = inject_on_dev(scorer, dev, several, settings, queries)
    swept = [
        Swept(vectors, said.tokens[:, 1:]) for vectors, said in zip(several, answers, strict=True)
    ]
    chosen = layers_of_dev(scorer, dev, queries=queries, several=swept, rule=settings.rule)
    found: list[DevSweep] = []
    for said, (layer, best) in zip(answers, chosen, strict=True):
        assert said.graded is not None
        curve = scorer.by_first_token(dev, said.tokens[:, 1:]).mean(axis=0)
        found.append(DevSweep(said.tokens, curve, layer, best, graded_means(said.graded)))
    return found


def queries_of(scorer: Scorer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of the zero-shot prompts."""
    return scorer.model.tokenizer.encode_all([prompt.zero_shot() for prompt in prompts])


def inject_on_dev(
    scorer: Scorer,
    dev: Sequence[Prompt],
    several: Sequence[np.ndarray],
    settings: Settings,
    queries: Sequence[Sequence[int]],
) -> list[Answers]:
    """What is predicted, with graded scores, when each of several sets of vectors [N, L, D] is
    injected into the dev queries after every layer."""
    wanted = scorer.wanted(dev, settings.seed)
    return sweep_several(scorer.model, queries, several, settings.batch_size, grading=wanted)


def read_test_theta(model: Model, task: Task, settings: Settings) -> np.ndarray:
    """Theta of each test prompt of a task after every layer: float32 [N, L, D].

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    prompts = draw_prompts(scorer_of(model, task, settings).fitted, settings, "test")
    return read_theta(model, prompts, settings.batch_size)


def choose_layer(model: Model, task: Task, settings: Settings) -> int:
    """The layer of the highest dev accuracy of a task by the rule in force, ties to the lowest.

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    scorer = scorer_of(model, task, settings)
    dev = draw_prompts(scorer.fitted, settings, "dev")
    theta = read_theta(model, dev, settings.batch_size)
    return sweep_dev(scorer, dev, theta, settings).layer


def longest_rows(model: Model, tasks: Sequence[Task], settings: Settings) -> tuple[int, int, int]:
    """Sizes of the longest row that a layer sweep of these tasks reads, and of its queries.

    Returns:
      tokens of the longest row (demonstrations, query, the first tokens of an answer, and dummy
      queries), tokens of the longest zero-shot query, and the places a row is read at. Tasks that
      cannot be posed do not count.

    Raises:
      TaskVecError: a prompt is longer than the model's context.
    """
    encode = model.tokenizer.encode_all
    longest, query = 1, 1
    for task in tasks:
        try:
            fitted = scorer_of(model, task, settings).fitted
            prompts = [
                p for split in ("dev", "test") for p in draw_prompts(fitted, settings, split)
            ]
        except TaskVecError:
            continue  # the run itself says why
        for prompt in sorted(prompts, key=_characters)[-LONGEST:]:
            texts = encode([*prompt.dummies(), prompt.icl()])
            check_texts(model.config, texts)
            longest = max(longest, tree_length(texts) + MOST_ASSUMED)
            query = max(query, len(encode([prompt.zero_shot()])[0]))
    return longest, query, settings.num_dummy_queries + 1 + MOST_ASSUMED


def _characters(prompt: Prompt) -> int:
    return sum(map(len, [*prompt.dummies(), prompt.icl()]))
