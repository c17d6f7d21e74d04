"""Controls: what a task vector has to beat before it counts as carrying the task.

Every control answers the same test prompts, scored by the same rules, as the task vector. Each is
one entry of `CONTROLS`, with its name, its titles and how its answers are made; results, tables and
the verdict follow from the entry. A control that is a vector is written after the layer where it
does best itself on dev; the zero-shot baseline is held against the task vector with them.

Shapes: N prompts of each split, L layers, D width.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.evaluation.answers import accepted
from taskvec_jax.evaluation.columns import Given
from taskvec_jax.evaluation.control_prompts import without_demonstrations
from taskvec_jax.evaluation.lending import Other
from taskvec_jax.evaluation.measuring import Measured
from taskvec_jax.evaluation.protocol import Written, random_vectors
from taskvec_jax.evaluation.reading import read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.scoring import Vocabulary, best_constant
from taskvec_jax.prompting.tokenizer import Tokenizer

_vocabularies: weakref.WeakKeyDictionary[Tokenizer, Vocabulary] = weakref.WeakKeyDictionary()


class Vectors(NamedTuple):
    """Vectors whose layer is still to be chosen on dev.

    Attributes:
      dev, test: float32 [N, L, D] each, or [L, D].
      dev_tokens: int [N, L], what is predicted with them on dev after each layer, where it is
        known already.
    """

    dev: np.ndarray
    test: np.ndarray
    dev_tokens: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Materials:
    """What controls are made of.

    Attributes:
      measured: the task, its prompts, thetas and layer.
      settings: of the run.
      others: other tasks' mean thetas.
      relabelled: float32 [2N, L, D], theta of dev and test prompts with wrong labels.
    """

    measured: Measured
    settings: Settings
    others: Sequence[Other]
    relabelled: np.ndarray


@dataclasses.dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
      phrase: what it is, inside a sentence.
      title: the same over a column of a table.
      make: its answers, or the vectors that give them; None where it cannot be made.
      in_verdict: a task vector has to beat it.
    """

    phrase: str
    title: str
    make: Callable[[Materials], Given | Vectors | Written | None]
    in_verdict: bool = True


def _best_constant(m: Materials) -> Given:
    """The one answer that is right for most of the task's pairs, for each rule its own."""
    scorer, count = m.measured.scorer, len(m.measured.test)
    pairs = [accepted(pair) for pair in scorer.fitted.pairs]
    vocabulary = vocabulary_of(scorer.model.tokenizer)
    paper, full = (best_constant(scorer.rule(r), pairs, vocabulary) for r in ("paper", "full"))
    return Given([paper.answer] * count, [full.answer] * count)


def _copy(m: Materials) -> Given:
    """The query itself."""
    texts = [prompt.query.input.strip() for prompt in m.measured.test]
    return Given(texts, texts)


def _last_layer_replay(m: Materials) -> Written:
    """Theta injected after the last block. Nothing is computed after it, so the model repeats its
    answer to the dummy queries: what a prompt leaks without any task applied to the query."""
    last = m.measured.theta.shape[1] - 1
    return Written(last, m.measured.theta[:, last])


def _other_task(m: Materials) -> Vectors | None:
    """The mean theta of the task that is the median on dev of those that are not related."""
    fair = [other for other in m.others if not other.related]
    nearest = _nearest(m.others)
    rest = [other for other in fair if other is not nearest] or fair
    if not rest:
        return None
    median = sorted(rest, key=lambda other: other.accuracy)[len(rest) // 2]
    return Vectors(median.theta, median.theta, median.tokens)


def _nearest_task(m: Materials) -> Vectors | None:
    """The mean theta of the task that does best on dev, related or not."""
    nearest = _nearest(m.others)
    return nearest and Vectors(nearest.theta, nearest.theta, nearest.tokens)


def _nearest(others: Sequence[Other]) -> Other | None:
    return max(others, key=lambda other: other.accuracy, default=None)


def _zero_demonstrations(m: Materials) -> Vectors:
    """Theta from the dummy queries alone, without a demonstration: the form of the prompt."""
    found = m.measured
    prompts = [without_demonstrations(p) for p in (*found.dev, *found.test)]
    theta = read_theta(found.scorer.model, prompts, m.settings.batch_size)
    return Vectors(theta[: len(found.dev)], theta[len(found.dev) :])


def _mean_theta(m: Materials) -> Vectors | None:
    """The mean over all other tasks of their mean thetas."""
    if not m.others:
        return None
    mean = np.mean([other.theta for other in m.others], axis=0)
    return Vectors(mean, mean)


def _random(m: Materials) -> Vectors:
    """A random vector with the covariance and size of theta."""
    drawn = random_vectors(m.measured, m.settings)
    return Vectors(drawn[: len(m.measured.dev)], drawn[len(m.measured.dev) :])


def _wrong_labels(m: Materials) -> Vectors:
    """Theta from the same demonstrations with wrong labels."""
    n = len(m.measured.dev)
    return Vectors(m.relabelled[:n], m.relabelled[n:])


CONTROLS: Mapping[str, Control] = {
    "best_constant": Control("the best constant answer", "constant", _best_constant),
    "copy": Control("copying the input", "copy", _copy),
    "last_layer_replay": Control("last-layer replay", "replay", _last_layer_replay),
    "other_task": Control("theta of another task", "other θ", _other_task),
    "nearest_task": Control("theta of the nearest task", "nearest θ", _nearest_task, False),
    "zero_demonstrations": Control(
        "theta without demonstrations", "no demos", _zero_demonstrations
    ),
    "mean_theta": Control("the mean theta of the other tasks", "mean θ", _mean_theta),
    "random": Control("a random vector with theta's covariance", "random", _random),
    "wrong_labels": Control("theta from wrong labels", "wrong labels", _wrong_labels, False),
}


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """All answers of one token, decoded once for a tokenizer."""
    if tokenizer not in _vocabularies:
        count = min(tokenizer.vocab_size, tokenizer.num_rows or tokenizer.vocab_size)
        _vocabularies[tokenizer] = Vocabulary([tokenizer.decode([i]) for i in range(count)])
    return _vocabularies[tokenizer]
