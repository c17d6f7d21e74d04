"""Distances, separability, projections and divergence against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.geometry import (
    cosine_distances,
    kl_divergence,
    principal_components,
    separability,
    tsne,
    within_and_between,
)


def test_cosine_distances_equal_hand_computed_ones():
    vectors = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-5.0, 0.0]])
    h = 1 - 1 / math.sqrt(2)
    expected = [[0, 1, h, 2], [1, 0, h, 1], [h, h, 0, 2 - h], [2, 1, 2 - h, 0]]
    np.testing.assert_allclose(cosine_distances(vectors), expected, atol=1e-12)


def test_a_vector_without_a_direction_is_refused():
    with pytest.raises(TaskVecError, match="length zero"):
        cosine_distances(np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_each_pair_counts_once_within_or_between():
    distances = np.array([[0.0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]])
    split = within_and_between(distances, np.array([0, 0, 1, 1]))
    assert split.within.tolist() == [1, 6]
    assert split.between.tolist() == [2, 3, 4, 5]


def test_separability_equals_a_hand_count():
    # On a line: 0 and 1 are neighbours, as are 2 and 3; the last of label a stands among b.
    places = np.array([0.0, 1.0, 10.0, 11.0, 10.4])
    distances = np.abs(places[:, None] - places[None])
    labels = np.array(["a", "a", "b", "b", "a"])
    # Nearest others: 1 (a: right), 0 (a: right), 4 (a: wrong), 4 (a: wrong), 2 (b: wrong).
    assert separability(distances, labels) == pytest.approx(2 / 5)


def test_principal_components_of_a_slanted_cross_are_its_arms():
    vectors = np.array([[3.0, 3.0], [-3.0, -3.0], [1.0, -1.0], [-1.0, 1.0]]) + 7
    coordinates, variance = principal_components(vectors)
    r = math.sqrt(2)
    expected = [[3 * r, 0], [-3 * r, 0], [0, r], [0, -r]]
    np.testing.assert_allclose(np.abs(coordinates), np.abs(expected), atol=1e-12)
    np.testing.assert_allclose(coordinates[:, 0], np.array(expected)[:, 0], atol=1e-12)
    np.testing.assert_allclose(variance, [36 / 40, 4 / 40])


def test_tsne_repeats_from_its_seed_and_differs_from_another():
    rng = np.random.RandomState(0)
    vectors = rng.standard_normal((24, 7)) + np.repeat(np.eye(7)[:2] * 9, 12, axis=0)
    first, again, other = (tsne(vectors, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (24, 2)
    # Two far groups stay apart.
    assert separability(
        np.linalg.norm(first[:, None] - first[None], axis=-1), np.repeat([0, 1], 12)
    ) == pytest.approx(1.0)


def test_kl_divergence_equals_a_hand_computed_value():
    p, q = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)  # = ln(2) / 4
    assert kl_divergence(p + 5, q - 2) == pytest.approx(expected)
    assert expected == pytest.approx(math.log(2) / 4)
    assert kl_divergence(p, p) == pytest.approx(0.0)
    np.testing.assert_allclose(kl_divergence(np.stack([p, q]), np.stack([q, q])), [expected, 0])
