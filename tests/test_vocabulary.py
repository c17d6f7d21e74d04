"""Reading vectors as words: the published filter, and ranks against a sort."""

from __future__ import annotations

import dataclasses

import numpy as np
from conftest import LLAMA, model_of

from taskvec_jax.vocabulary import gold_ranks, keep_words, top_words


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
