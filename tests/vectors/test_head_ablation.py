"""Heads taken out by their mean, against edits; and the score that finds induction heads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import PYTHIA, model_of

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.decoder import flatten, unflatten
from taskvec_jax.transformer.edits import ablate
from taskvec_jax.vectors.function_vectors import function_vector, heads_beside, rank_heads
from taskvec_jax.vectors.head_ablation import (
    ablate_heads,
    mean_outputs_of_tokens,
    prefix_matching,
)


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return model_of(dataclasses.replace(PYTHIA, num_layers=2), tokenizer)


def texts_of(model: Model) -> list[list[int]]:
    rng = np.random.RandomState(3)
    return [rng.randint(0, model.config.vocab_size, n).tolist() for n in (7, 12, 3)]


def test_ablating_sets_of_heads_is_editing_them_at_every_token(model):
    texts = texts_of(model)
    outputs = 9 * np.random.RandomState(4).standard_normal((2, 4, 11)).astype(np.float32)
    sets = np.zeros((3, 2, 4), bool)
    chosen = {1: [(1, 0), (1, 3)], 2: [(0, 2), (1, 1)]}
    for number, heads in chosen.items():
        for head in heads:
            sets[number][head] = True
    found = ablate_heads(model, texts, sets, outputs, batch_size=3)
    np.testing.assert_array_equal(found[:, 0], model.logits(texts).argmax(-1))
    for number, heads in chosen.items():
        edits = [
            ablate(layer=layer, position="all", site="head", head=head, mean=outputs[layer, head])
            for layer, head in heads
        ]
        logits = model.logits(texts, edits=edits)
        np.testing.assert_array_equal(found[:, number], logits.argmax(-1))
    assert (found[:, 1:] != found[:, :1]).any()


def test_outputs_are_averaged_over_the_tokens_of_texts_and_not_over_padding(model):
    texts = texts_of(model)
    every = [model.read([text], site="head", positions="all")[0] for text in texts]
    expected = np.concatenate(every).mean(axis=0)
    np.testing.assert_allclose(mean_outputs_of_tokens(model, texts), expected, rtol=1e-4, atol=1e-6)


def test_heads_score_what_they_attend_to_after_a_repeated_token(tokenizer):
    """Without query and key every token before is attended to alike: 1 over their number."""
    model = model_of(dataclasses.replace(PYTHIA, num_layers=1), tokenizer)
    leaves = flatten(model.params)
    for path in leaves:
        if "attn/query" in path:
            leaves[path] = leaves[path] * 0
    model = dataclasses.replace(model, params=unflatten(leaves))
    count = 25 if not tokenizer.encode("") else None
    assert count is not None, "this test counts the tokens of a text without BOS"
    expected = np.mean([1 / (count + i + 1) for i in range(count)])
    np.testing.assert_allclose(prefix_matching(model), np.full((1, 4), expected), rtol=1e-5)


def test_sets_and_outputs_of_other_shapes_are_refused(model):
    texts, outputs = texts_of(model), np.zeros((2, 4, 11), np.float32)
    with pytest.raises(TaskVecError, match=r"sets of heads are bool \(2, 4\)"):
        ablate_heads(model, texts, np.zeros((2, 4), bool), outputs, 3)
    with pytest.raises(TaskVecError, match="outputs of heads have shape"):
        ablate_heads(model, texts, np.zeros((1, 2, 4), bool), outputs[:1], 3)


def test_heads_are_ranked_with_ties_to_the_lower_and_their_writings_summed():
    effects = np.array([[0.1, 0.5], [0.5, 0.9]])
    assert rank_heads(effects) == [(1, 1), (0, 1), (1, 0), (0, 0)]
    written = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_allclose(function_vector(written, [(0, 1), (1, 0)]), [9.0, 11.0, 13.0])


def test_random_heads_stand_in_the_same_layers_and_are_others_where_there_are_enough():
    heads = [(0, 1), (2, 0), (2, 1), (2, 2)]
    beside = heads_beside(heads, 4, "seed")
    assert sorted(layer for layer, _ in beside) == [0, 2, 2, 2]
    assert len(set(beside)) == 4
    assert (0, 1) not in beside
    assert (2, 3) in beside  # the only other one of its layer
    assert beside == heads_beside(heads, 4, "seed")
