"""Attention of a text and its copies, with and without the scores between copies."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA

from taskvec_jax.transformer.attention import attend
from taskvec_jax.transformer.context import (
    PADDING,
    TRUNK,
    AttentionContext,
    Layout,
    apart,
    visible,
)

LENGTH, COPIES, SIZE = 7, 4, 3


def masks(window: int | None = None) -> jnp.ndarray:
    """bool [2, S, S] of texts of 7 and 5 tokens, whose copies have 3 and 2 of the last tokens."""
    lengths, sizes = np.array([7, 5]), np.array([3, 2])
    place = np.arange(LENGTH)
    copied = lengths[:, None] - SIZE + np.arange(SIZE)
    real = copied >= (lengths - sizes)[:, None]
    text = np.where(place < lengths[:, None], TRUNK, PADDING)
    branch = np.arange(1, 1 + COPIES)[:, None]
    copies = np.where(real[:, None], branch, PADDING).reshape(2, -1)
    positions = np.concatenate([np.tile(place, (2, 1)), np.tile(copied, (1, COPIES))], axis=1)
    branches = np.concatenate([text, copies], axis=1)
    layout = Layout(jnp.asarray(positions), jnp.asarray(branches))
    return visible(layout, layout, window)


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_softcap": 0.7}, {"attention_scale": 0.11}, {"num_kv_heads": 6}],
    ids=str,
)
@pytest.mark.parametrize("window", [None, 4])
def test_copies_apart_attend_to_what_they_attend_to_in_one_mask(changes, window):
    config = dataclasses.replace(LLAMA, **changes)
    rng = np.random.RandomState(3)
    tokens = LENGTH + COPIES * SIZE

    def drawn(heads: int) -> jnp.ndarray:
        return jnp.asarray(
            rng.standard_normal((2, tokens, heads, config.head_dim)).astype(np.float32)
        )

    q, k, v = drawn(config.num_heads), drawn(config.num_kv_heads), drawn(config.num_kv_heads)
    mask = masks(window)
    # What is padding has no meaning, in either way.
    real = np.asarray(mask.any(axis=-1)) & (np.arange(tokens) != LENGTH - 1)[None]
    real[1, 5:7] = False
    real[1, LENGTH::SIZE] = False
    want = np.asarray(attend(config, q, k, v, mask))
    turn = jnp.zeros((2, tokens, 1))
    parts = apart(AttentionContext(mask, turn, turn), LENGTH, SIZE)
    assert parts.mask.shape == (2, tokens, LENGTH)
    found = np.asarray(attend(config, q, k, v, parts.mask, own=parts.own))
    np.testing.assert_allclose(found[real], want[real], rtol=2e-5, atol=2e-6)
    assert real.sum() > tokens
