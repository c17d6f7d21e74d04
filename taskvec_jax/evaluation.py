"""Where words meet arrays: prompts in, accuracies out. Decides what counts as correct.

The protocol is the paper's (Section 3 and Appendix A): per task, dev and test prompts, each with
its own demonstrations, query and dummy queries; the layer is chosen on dev, ties to the lowest,
and every reported accuracy is on test. The zero-shot baseline is taken on the queries of both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.loading import Model
from taskvec_jax.prompts import UNFILTERED_CATEGORY, FittedTask, Prompt, fit, render_query, sample
from taskvec_jax.sweep import inject_vectors, read_texts, sweep_layers
from taskvec_jax.tasks.task import Pair, Task

# Logits of a prompt whose own residual stream is written back may differ by float noise only.
IDENTITY_TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run.

    Attributes:
      num_prompts: prompts of each of dev and test (the paper: 50).
      num_demonstrations: shown in each prompt (the paper: 5).
      num_dummy_queries: theta is averaged over this many (the paper: 2).
      seed: of the draw of prompts.
      batch_size: rows a compiled call works on; changes no number beyond float noise.
    """

    num_prompts: int = 50
    num_demonstrations: int = 5
    num_dummy_queries: int = 2
    seed: int = 0
    batch_size: int = 50

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_demonstrations", "num_dummy_queries", "batch_size"):
            if (got := getattr(self, name)) < 1:
                raise TaskVecError(f"{name} is {got}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of correct answers with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    n: int


def accuracy(correct: Sequence[bool] | np.ndarray) -> Accuracy:
    """Share of True with its 95 % interval (Wilson 1927, score interval).

    Raises:
      TaskVecError: there is nothing to count.
    """
    n = len(correct)
    if not n:
        raise TaskVecError("there are no answers to score; ask for at least one prompt")
    z = 1.959963984540054
    share = float(np.mean(correct))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Accuracy(share, max(0.0, centre - half), min(1.0, centre + half), n)


def is_correct(category: str, pair: Pair, answer: str) -> bool:
    """The paper's rule.

    Knowledge: either string begins with the other, because the answer may be several tokens and
    only one is decoded. Every other category: equal to the output or to an accepted alternative.

    Args:
      answer: one predicted token, decoded and stripped.
    """
    allowed = [pair.output.strip(), *pair.accepted]
    if category != UNFILTERED_CATEGORY:
        return answer in allowed
    return bool(answer) and any(a.startswith(answer) or answer.startswith(a) for a in allowed)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores predicted tokens for one task and one model."""

    model: Model
    fitted: FittedTask

    def answers(self, tokens: np.ndarray) -> list[str]:
        """Decodes predicted tokens [N]."""
        return [self.model.tokenizer.decode_answer(int(token)) for token in tokens]

    def correct(self, prompts: Sequence[Prompt], tokens: np.ndarray) -> np.ndarray:
        """Whether each predicted token, int [N, ...], is right for its prompt: bool [N, ...]."""
        category = self.fitted.task.category
        decoded = {int(t): self.model.tokenizer.decode_answer(int(t)) for t in np.unique(tokens)}
        flat = tokens.reshape(len(prompts), -1)
        right = [
            [is_correct(category, prompt.query, decoded[int(token)]) for token in row]
            for prompt, row in zip(prompts, flat, strict=True)
        ]
        return np.array(right, bool).reshape(tokens.shape)

    def strictly_correct(self, prompts: Sequence[Prompt], tokens: np.ndarray) -> np.ndarray:
        """The strict rule: the predicted token, int [N], is the first one of the answer."""
        tokenizer = self.model.tokenizer
        first = [
            {
                tokenizer.continuation(render_query(p.query.input), answer)[:1][0]
                for answer in self._written(p.query)
                if tokenizer.continuation(render_query(p.query.input), answer)
            }
            for p in prompts
        ]
        return np.array([int(t) in f for t, f in zip(tokens, first, strict=True)], bool)

    def _written(self, pair: Pair) -> list[str]:
        space = " " if self.fitted.leading_space else ""
        return [pair.output, *(space + answer for answer in pair.accepted)]


@dataclasses.dataclass(frozen=True)
class Example:
    """One test prompt and what the model said."""

    query: str
    answer: str
    icl: str
    task_vector: str


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Everything measured on one task.

    Attributes:
      baseline: zero-shot, no injection, on the queries of dev and test.
      icl: demonstrations and query, on test.
      task_vector: theta of each test prompt injected at `best_layer`, on test.
      random_vector: control; a random direction of theta's norm injected at the same place.
      icl_strict, task_vector_strict: by the rule "the first token of the answer".
      best_layer: argmax of dev accuracy, ties to the lowest.
      dev_accuracy_by_layer: [L].
      num_pairs: pairs the tokenizer filter kept, of `num_all_pairs`.
      leading_space: the task was posed as ` x` -> ` y`.
      examples: all test prompts.
      warnings: what a reader should know before believing the numbers.
    """

    baseline: Accuracy
    icl: Accuracy
    task_vector: Accuracy
    random_vector: Accuracy
    icl_strict: Accuracy
    task_vector_strict: Accuracy
    best_layer: int
    dev_accuracy_by_layer: list[float]
    num_pairs: int
    num_all_pairs: int
    leading_space: bool
    examples: list[Example]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dataclasses.asdict(self)


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


def evaluate_task(
    model: Model,
    task: Task,
    settings: Settings,
    progress: Callable[[int], None] = lambda prompts: None,
) -> TaskResult:
    """Runs the paper's main experiment on one task.

    Args:
      progress: called with the number of prompts just finished, 2 * num_prompts in all.

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings, or the model overflows.
    """
    fitted = fit(task, model.tokenizer)
    judge = Judge(model, fitted)
    dev, test = (
        sample(
            fitted,
            seed=settings.seed,
            split=split,
            count=settings.num_prompts,
            num_demonstrations=settings.num_demonstrations,
            num_dummy_queries=settings.num_dummy_queries,
        )
        for split in ("dev", "test")
    )
    n, encode = len(dev), model.tokenizer.encode_all
    # Test prompts branch into the dummy queries and the query itself, dev prompts only the former.
    texts = [encode(p.dummies()) for p in dev] + [encode([*p.dummies(), p.icl()]) for p in test]
    queries = encode([p.zero_shot() for p in [*dev, *test]])
    residuals, read = read_texts(model, texts, settings.batch_size)
    theta = residuals[:, : settings.num_dummy_queries].mean(axis=1)  # [2N, L, D]
    icl = read.tokens[n:, -1]

    swept = sweep_layers(model, queries[:n], theta[:n], settings.batch_size).tokens
    progress(n)
    dev_correct = judge.correct(dev, swept[:, 1:])  # [N, L]
    curve = dev_correct.mean(axis=0)
    layer = best_layer(curve)

    chosen = theta[n:, layer]
    random = random_like(chosen, settings.seed, task.name, "random vector")
    injected = inject_vectors(
        model,
        queries[n:],
        np.stack([chosen, random], axis=1),
        np.array([layer, layer]),
        settings.batch_size,
    ).tokens
    progress(n)
    base = np.concatenate([judge.correct(dev, swept[:, 0]), judge.correct(test, injected[:, 0])])
    warnings = [fitted.note] if fitted.note else []
    if (swept[:, 1:] == swept[:, :1]).all():
        warnings.append(
            f"{task.name}: no injection at any layer changed any prediction; the vector is not"
            " reaching the output"
        )
    return TaskResult(
        baseline=accuracy(base),
        icl=accuracy(judge.correct(test, icl)),
        task_vector=accuracy(judge.correct(test, injected[:, 1])),
        random_vector=accuracy(judge.correct(test, injected[:, 2])),
        icl_strict=accuracy(judge.strictly_correct(test, icl)),
        task_vector_strict=accuracy(judge.strictly_correct(test, injected[:, 1])),
        best_layer=layer,
        dev_accuracy_by_layer=[float(share) for share in curve],
        num_pairs=len(fitted.pairs),
        num_all_pairs=fitted.num_all,
        leading_space=fitted.leading_space,
        examples=[
            Example(p.query.input, p.query.output, said, vector)
            for p, said, vector in zip(
                test, judge.answers(icl), judge.answers(injected[:, 1]), strict=True
            )
        ],
        warnings=warnings,
    )


def check_injection(model: Model, batch_size: int) -> float:
    """Writes a prompt's own residual stream back after every layer: nothing may change.

    Returns:
      The largest difference of a top logit, over layers.

    Raises:
      TaskVecError: a prediction or a logit changed; the run would measure something else.
    """
    query = model.tokenizer.encode(render_query("own residual"))
    residuals, _ = read_texts(model, [[query]], batch_size)
    answers = sweep_layers(model, [query], residuals[:, 0], batch_size)
    differences = np.abs(answers.logits[0, 1:] - answers.logits[0, 0])
    worst = int(np.argmax(differences))
    allowed = IDENTITY_TOLERANCE[model.config.dtype] * max(1.0, abs(float(answers.logits[0, 0])))
    if not differences[worst] <= allowed:
        raise TaskVecError(
            f"{model.name}: re-injecting a prompt's own residual stream after layer {worst} moves"
            f" its top logit by {differences[worst]:.3g} (allowed {allowed:.3g}); extraction and"
            " injection do not agree on this machine, so no number would be worth reading"
        )
    return float(differences[worst])
