"""Where words meet arrays: prompts in, accuracies out. Decides what counts as correct.

The protocol is the paper's (Section 3 and Appendix A): per task, dev and test prompts, each with
its own demonstrations, query and dummy queries; the layer is chosen on dev, ties to the lowest,
and every reported accuracy is on test. The zero-shot baseline is taken on the queries of both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.judging import Accuracy, Judge, accuracy
from taskvec_jax.evaluation.reading import draw_prompts, read_prompts, read_theta
from taskvec_jax.evaluation.results import Example, Settings, TaskResult, check_arguments
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import Prompt, fit
from taskvec_jax.tasks.task import Task
from taskvec_jax.transformer.checks import check_texts
from taskvec_jax.vectors.rows import tree_length
from taskvec_jax.vectors.sweep import inject_vectors, sweep_layers

LONGEST = 10  # prompts of each task, by characters, among which the one of most tokens is sought


def best_layer(dev_accuracy: Sequence[float] | np.ndarray) -> int:
    """The layer of the highest dev accuracy, ties to the lowest."""
    return int(np.argmax(dev_accuracy))


def random_like(theta: np.ndarray, *seed: object) -> np.ndarray:
    """Random directions with the norms of theta [..., D], float32.

    The stream of NumPy's RandomState is frozen for good, so they repeat everywhere.
    """
    digest = hashlib.sha256("/".join(map(str, seed)).encode()).digest()
    rng = np.random.RandomState(np.frombuffer(digest, np.uint32))
    noise = rng.standard_normal(theta.shape)
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    return (noise * np.linalg.norm(theta, axis=-1, keepdims=True)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One task on one model with its layer chosen: what every score of the task starts from.

    Shapes: N prompts of each split, L layers, D width.

    Attributes:
      judge: scores predicted tokens of this task.
      dev, test: the prompts.
      theta: float32 [N, L, D], theta of each test prompt after every layer.
      icl: int [N], the predicted token after each whole test prompt.
      dev_swept: int [N, 1 + L], predicted tokens of the dev queries: untouched, then with each
        prompt's own theta injected after every layer.
      curve: [L], dev accuracy by layer.
      layer: argmax of the curve, ties to the lowest.
    """

    judge: Judge
    dev: list[Prompt]
    test: list[Prompt]
    theta: np.ndarray
    icl: np.ndarray
    dev_swept: np.ndarray
    curve: np.ndarray
    layer: int


def longest_rows(model: Model, tasks: Sequence[Task], settings: Settings) -> tuple[int, int, int]:
    """Sizes of the longest row that a layer sweep of these tasks reads, and of its queries.

    Returns:
      tokens of the longest row (demonstrations, query and dummy queries), tokens of the longest
      zero-shot query, and the places a row is read at. Tasks that cannot be posed do not count.

    Raises:
      TaskVecError: a prompt is longer than the model's context.
    """
    encode = model.tokenizer.encode_all
    longest, query = 1, 1
    for task in tasks:
        try:
            fitted = fit(task, model.tokenizer, settings.template)
            prompts = [
                p for split in ("dev", "test") for p in draw_prompts(fitted, settings, split)
            ]
        except TaskVecError:
            continue  # the run itself says why
        for prompt in sorted(prompts, key=_characters)[-LONGEST:]:
            texts = encode([*prompt.dummies(), prompt.icl()])
            check_texts(model.config, texts)
            longest = max(longest, tree_length(texts))
            query = max(query, len(encode([prompt.zero_shot()])[0]))
    return longest, query, settings.num_dummy_queries + 1


def _characters(prompt: Prompt) -> int:
    return sum(map(len, [*prompt.dummies(), prompt.icl()]))


def read_test_theta(model: Model, task: Task, settings: Settings) -> np.ndarray:
    """Theta of each test prompt of a task after every layer: float32 [N, L, D].

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    prompts = draw_prompts(fit(task, model.tokenizer, settings.template), settings, "test")
    return read_theta(model, prompts, settings.batch_size)


def choose_layer(model: Model, task: Task, settings: Settings) -> int:
    """The layer of the highest dev accuracy of a task, ties to the lowest.

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    judge = Judge(model, fit(task, model.tokenizer, settings.template))
    dev = draw_prompts(judge.fitted, settings, "dev")
    theta = read_theta(model, dev, settings.batch_size)
    return best_layer(sweep_dev(judge, dev, theta, settings.batch_size)[1])


def sweep_dev(
    judge: Judge, dev: Sequence[Prompt], theta: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Injects each dev prompt's own theta [N, L, D] after every layer.

    Returns:
      predictions int [N, 1 + L], the untouched query's first, and accuracy by layer [L].
    """
    model = judge.model
    queries = model.tokenizer.encode_all([prompt.zero_shot() for prompt in dev])
    swept = sweep_layers(model, queries, theta, batch_size).tokens
    return swept, judge.correct(dev, swept[:, 1:]).mean(axis=0)


def measure(
    model: Model,
    task: Task,
    settings: Settings,
    progress: Callable[[int], None] = lambda prompts: None,
) -> Measured:
    """Reads theta of all prompts and chooses the layer on dev.

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    judge = Judge(model, fit(task, model.tokenizer, settings.template))
    dev, test = (draw_prompts(judge.fitted, settings, split) for split in ("dev", "test"))
    n = len(dev)
    theta, icl = read_prompts(model, test, settings.batch_size, theta_only=dev)  # [2N, L, D], [N]
    swept, curve = sweep_dev(judge, dev, theta[:n], settings.batch_size)
    progress(n)
    return Measured(judge, dev, test, theta[n:], icl, swept, curve, best_layer(curve))


def measured_again(
    model: Model,
    task: Task,
    settings: Settings,
    *,
    theta: np.ndarray,
    icl: np.ndarray,
    dev_swept: np.ndarray,
) -> Measured:
    """What `measure` gave, from what was kept of it; the model is not run.

    Args:
      theta, icl, dev_swept: as in `Measured`.
    """
    judge = Judge(model, fit(task, model.tokenizer, settings.template))
    dev, test = (draw_prompts(judge.fitted, settings, split) for split in ("dev", "test"))
    curve = judge.correct(dev, dev_swept[:, 1:]).mean(axis=0)
    return Measured(judge, dev, test, theta, icl, dev_swept, curve, best_layer(curve))


def random_control(measured: Measured, settings: Settings) -> np.ndarray:
    """A random direction with the norm of each test prompt's theta at the best layer: [N, D]."""
    name = measured.judge.fitted.task.name
    return random_like(measured.theta[:, measured.layer], settings.seed, name, "random vector")


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
    measured = measured or measure(model, task, settings, progress)
    queries = model.tokenizer.encode_all([p.zero_shot() for p in measured.test])
    chosen, layer = measured.theta[:, measured.layer], measured.layer
    injected = inject_vectors(
        model,
        queries,
        np.stack([chosen, random_control(measured, settings)], axis=1),
        np.array([layer, layer]),
        settings.batch_size,
    ).tokens
    progress(len(queries))
    untouched, vector, random = injected.T
    control = accuracy(measured.judge.correct(measured.test, random))
    return score_task(measured, untouched, vector, control)


def score_task(
    measured: Measured, untouched: np.ndarray, vector: np.ndarray, random_vector: Accuracy
) -> TaskResult:
    """Scores predicted tokens of the zero-shot test queries.

    Args:
      untouched: int [N], with nothing injected.
      vector: int [N], with theta of each prompt at the best layer.
      random_vector: with a random vector in its place.
    """
    m = measured
    judge, fitted = m.judge, m.judge.fitted
    base = np.concatenate(
        [judge.correct(m.dev, m.dev_swept[:, 0]), judge.correct(m.test, untouched)]
    )
    warnings = [fitted.note] if fitted.note else []
    if (m.dev_swept[:, 1:] == m.dev_swept[:, :1]).all():
        warnings.append(
            f"{fitted.task.name}: no injection at any layer changed any prediction; the vector is"
            " not reaching the output"
        )
    return TaskResult(
        category=fitted.task.category,
        baseline=accuracy(base),
        icl=accuracy(judge.correct(m.test, m.icl)),
        task_vector=accuracy(judge.correct(m.test, vector)),
        random_vector=random_vector,
        icl_strict=accuracy(judge.strictly_correct(m.test, m.icl)),
        task_vector_strict=accuracy(judge.strictly_correct(m.test, vector)),
        best_layer=m.layer,
        dev_accuracy_by_layer=[float(share) for share in m.curve],
        num_pairs=len(fitted.pairs),
        num_all_pairs=fitted.num_all,
        leading_space=fitted.leading_space,
        examples=[
            Example(p.query.input, p.query.output, icl, injected)
            for p, icl, injected in zip(
                m.test, judge.answers(m.icl), judge.answers(vector), strict=True
            )
        ],
        warnings=warnings,
        match=fitted.task.match,
    )
