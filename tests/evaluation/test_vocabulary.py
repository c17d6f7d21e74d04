"""Reading vectors as words: the published filter, and ranks against a sort."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import LLAMA, model_of

from experiments.vocabulary_projection import median_ranks
from taskvec_jax.evaluation.vocabulary import gold_ranks, keep_words, top_words
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.decoder import Decoder, unflatten


def test_the_published_rule_keeps_letters_only_and_drops_repeats_whatever_their_case():
    tokens = [
        " Paris",
        "paris",
        "its",
        "é",
        "12",
        "a1",
        "",
        " ",
        "Its",
        "->",
        "São",
        "x y",
        "PARIS",
    ]
    assert keep_words(tokens) == ["Paris", "its"]
    assert keep_words([f"w{'a' * i}" for i in range(30)]) == [f"w{'a' * i}" for i in range(20)]
    assert keep_words(["b", "a", "B", "c"], count=2) == ["b", "a"]


def test_top_words_and_gold_ranks_agree_with_a_sort_of_the_logits(tokenizer):
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    model = model_of(config, tokenizer)
    rng = np.random.RandomState(0)
    vectors = rng.standard_normal((3, config.num_layers, config.width)).astype(np.float32)
    logits = np.asarray(model.decoder.apply(model.params, vectors, method="unembed"))
    gold = [[7, 300], [8, 9], [40_000, 1]]
    ranks = gold_ranks(model, vectors, gold)
    assert ranks.shape == (3, config.num_layers, 2)
    for n, layer, g in np.ndindex(ranks.shape):
        order = np.argsort(-logits[n, layer], kind="stable").tolist()
        assert ranks[n, layer, g] == order.index(gold[n][g])
    best = np.argsort(-logits[0, 0], kind="stable")[:100]
    expected = keep_words(tokenizer.decode([int(token)]) for token in best)
    assert top_words(model, vectors[:, 0])[0] == expected


@pytest.mark.parametrize(
    ("prompts", "dummy", "query"), [(4, [0.5, 0.0], [1.0, 0.5]), (3, [1.0, 0.0], [2.0, 1.0])]
)
def test_median_gold_ranks_are_the_hand_computed_ones(tokenizer, prompts, dummy, query):
    """A model whose vectors are their own logits, up to a positive factor; four words."""
    config = dataclasses.replace(LLAMA, vocab_size=4, width=4, num_layers=2, tied_unembed=False)
    leaves = {"unembed/kernel": np.eye(4, dtype=np.float32), "final_norm/scale": np.ones(4)}
    model = Model("m", Decoder(config), unflatten(leaves), tokenizer, config, "none")
    first = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [3, 3, 1, 0], [2, 2, 2, 2]], np.float32)
    theta = np.stack([first, -first], axis=1)[:prompts]  # [N, L, D]
    gold = [[1, 3, 2], [0, 0, 3], [1, 2, 3], [0, 3, 1]][:prompts]  # two dummy answers, the query's
    # A word level with another stands above it no more than that one above the word.
    ranks = [
        [[1, 3, 2], [2, 0, 1]],
        [[3, 3, 0], [0, 0, 3]],
        [[0, 2, 3], [2, 1, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    found = gold_ranks(model, theta, gold)
    np.testing.assert_array_equal(found, ranks[:prompts])
    of_dummies, of_query = median_ranks(found)
    assert of_dummies.tolist() == dummy
    assert of_query.tolist() == query
