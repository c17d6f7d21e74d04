"""Where thetas lie: distances within and between tasks, separability, maps to the plane.

Shapes: M vectors, D width, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError


def cosine_distances(vectors: np.ndarray) -> np.ndarray:
    """1 - cosine of every two rows of [M, D]: float64 [M, M], zero on the diagonal.

    Raises:
      TaskVecError: a vector of length zero has no direction.
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (norms > 0).all():
        raise TaskVecError("a vector of length zero has no direction; cosine needs one")
    unit = vectors.astype(np.float64) / norms
    distances = np.clip(1 - unit @ unit.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def surface_distances(texts: Sequence[str]) -> np.ndarray:
    """Cosine distances of texts by the counts of their character 1- to 3-grams, float64 [M, M]:
    what can be told without any model."""
    from sklearn.feature_extraction.text import CountVectorizer  # slow to import

    counter = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
    counts: Any = counter.fit_transform(texts)  # a sparse matrix
    return cosine_distances(counts.toarray())


class Distances(NamedTuple):
    """Cosine distances of unordered pairs, sorted by what the two have in common.

    Attributes:
      within: pairs of the same label.
      between: pairs of different labels.
    """

    within: np.ndarray
    between: np.ndarray


def within_and_between(distances: np.ndarray, labels: np.ndarray) -> Distances:
    """Splits distances [M, M] by whether the two labels [M] agree; each pair counts once."""
    first, second = np.triu_indices(len(labels), k=1)
    same = labels[first] == labels[second]
    values = distances[first, second]
    return Distances(values[same], values[~same])


def separability(distances: np.ndarray, labels: np.ndarray) -> float:
    """Share of vectors whose nearest other vector has their own label; ties to the lowest index.

    Chance is the share of same-label vectors among the others.
    """
    apart = distances + np.diag(np.full(len(labels), np.inf))
    return float(np.mean(labels[apart.argmin(axis=1)] == labels))


def principal_components(vectors: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Projects [M, D] onto the directions of greatest variance.

    Signs are fixed: the largest coordinate of each direction (in size) is positive.

    Returns:
      coordinates [M, count] and the share of variance of each direction [count].
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:count]
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.sign(directions[np.arange(len(directions)), largest])[:, None]
    total = float((spread**2).sum()) or 1.0
    return centred @ directions.T, spread[:count] ** 2 / total


def tsne(vectors: np.ndarray, seed: int, perplexity: float = 30.0) -> np.ndarray:
    """t-SNE of [M, D] by cosine distance to [M, 2], the same for the same seed.

    One thread: with several, sums come out in another order, and the map with them. Perplexity is
    lowered when there are too few vectors for it.
    """
    from sklearn.manifold import TSNE  # slow to import
    from threadpoolctl import threadpool_limits

    mapped = TSNE(
        n_components=2,
        metric="cosine",
        init="random",
        perplexity=min(perplexity, max(1.0, (len(vectors) - 1) / 3)),
        random_state=seed,
    )
    with threadpool_limits(1):
        return mapped.fit_transform(vectors.astype(np.float64)).astype(np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, float64."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    """KL(P || Q) in nats of the distributions of two arrays of logits [..., V]: [...]."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
