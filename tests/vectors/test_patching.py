"""Read anywhere, write anywhere, against the decoder's own read and override."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.patch_map import find_place, parse_patch
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.geometry import kl_divergence
from taskvec_jax.transformer.decoder import flatten, unflatten
from taskvec_jax.vectors.patching import read_states, write_states


@pytest.fixture(scope="module")
def batch(tiny):
    decoder, _ = tiny
    rng = np.random.RandomState(1)
    tokens = rng.randint(0, decoder.config.vocab_size, (3, 7)).astype(np.int32)
    return tokens, np.array([6, 4, 5], np.int32)


def test_states_are_read_at_every_position_asked_for(tiny, batch):
    decoder, params = tiny
    tokens, last = batch
    positions = np.stack([[0, 3, 1], last], axis=1)
    states, logits = read_states(decoder, params, tokens, positions)
    for column in range(2):
        expected, _ = decoder.apply(params, tokens, positions[:, column], method="read")
        np.testing.assert_allclose(
            states[:, column], np.moveaxis(np.asarray(expected), 0, 1), rtol=2e-5, atol=2e-5
        )
    _, at = decoder.apply(params, tokens, last, method="read")
    np.testing.assert_allclose(logits, np.asarray(at), rtol=2e-5, atol=2e-5)


def test_states_are_written_at_every_layer_and_position_asked_for(tiny, batch):
    decoder, params = tiny
    tokens, last = batch
    rng = np.random.RandomState(2)
    layers = np.array([0, decoder.config.num_layers - 1, 2])
    positions = np.array([[0, 6, 2], [1, 4, 4], [5, 0, 3]])
    vectors = rng.standard_normal((3, 3, decoder.config.width)).astype(np.float32)
    wanted = rng.standard_normal((3, decoder.config.vocab_size)).astype(np.float32)
    patched = write_states(decoder, params, tokens, last, wanted, layers, positions, vectors)
    for copy, layer in enumerate(layers):
        override = (int(layer), positions[:, copy], vectors[:, copy])
        _, logits = decoder.apply(params, tokens, last, override, method="read")
        logits = np.asarray(logits)
        np.testing.assert_array_equal(patched.tokens[:, copy], logits.argmax(axis=-1))
        np.testing.assert_allclose(
            patched.divergence[:, copy], kl_divergence(wanted, logits), rtol=2e-4, atol=2e-5
        )


def test_places_outside_the_text_or_the_decoder_are_refused(tiny, batch):
    decoder, params = tiny
    tokens, last = batch
    with pytest.raises(TaskVecError, match="positions run from 0 to 7; allowed: 0 to 6"):
        read_states(decoder, params, tokens, np.array([[0], [7], [1]]))
    vectors = np.zeros((3, 1, decoder.config.width), np.float32)
    wanted = np.zeros((3, decoder.config.vocab_size), np.float32)
    with pytest.raises(TaskVecError, match="layers run from 99"):
        write_states(decoder, params, tokens, last, wanted, np.array([99]), last[:, None], vectors)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("prefix", ":"),
        ("query first", " Plum"),
        ("query last", " cake"),
        ("arrow", "->"),
        ("last arrow", "->"),
        ("last answer", " orange"),
    ],
)
def test_places_of_a_prompt_are_found_by_what_stands_there(place, text, tokenizer):
    prompt = "example: Apple-> Red\nexample: Orange-> orange\nexample: Plum cake->"
    pieces = tokenizer.pieces(prompt)
    at = find_place(tokenizer, prompt, place)
    start, end = pieces[at][2]
    assert prompt[start:end].strip() in text or text.strip() in prompt[start:end]
    line = prompt.rfind("\n")
    assert (start > line) == (place not in ("last arrow", "last answer"))


def test_a_place_that_is_not_there_is_refused(tokenizer):
    with pytest.raises(TaskVecError, match="no demonstration"):
        find_place(tokenizer, "example:Plum->", "last answer")
    with pytest.raises(TaskVecError, match=r"no place 'nowhere'; allowed: prefix"):
        parse_patch("nowhere:arrow")
    with pytest.raises(TaskVecError, match="no place 'last answer'"):
        parse_patch("arrow:last answer")
    assert parse_patch(" last arrow:arrow") == ("last arrow", "arrow")


def test_what_is_not_finite_or_out_of_range_is_refused_by_its_layer(tiny, batch):
    decoder, params = tiny
    tokens, last = batch
    layers, places = np.array([0, 2]), np.stack([last, last], axis=1)
    wanted = np.zeros((3, decoder.config.vocab_size), np.float32)
    vectors = np.zeros((3, 2, decoder.config.width), np.float32)

    def write(tokens=tokens, wanted=wanted, vectors=vectors):
        return write_states(decoder, params, tokens, last, wanted, layers, places, vectors)

    bad = vectors.copy()
    bad[2, 1, 0] = np.inf
    with pytest.raises(TaskVecError, match="to be written after layer 2 is not finite"):
        write(vectors=bad)
    bad[2, 1] = np.finfo(np.float32).max
    if decoder.config.family == "pythia":  # LayerNorm's mean overflows; RMSNorm would give zeros
        with pytest.raises(TaskVecError, match="with a vector written after layer 2 is not finite"):
            write(vectors=bad)
    with pytest.raises(TaskVecError, match="the logits, after the last layer, are not finite"):
        write(wanted=np.full_like(wanted, np.nan))
    for outside in (-1, decoder.config.vocab_size):
        with pytest.raises(TaskVecError, match=f"token id {outside} is out of range"):
            write(tokens=np.full_like(tokens, outside))
        with pytest.raises(TaskVecError, match=f"token id {outside} is out of range"):
            read_states(decoder, params, np.full_like(tokens, outside), places)
    leaves = flatten(params)
    leaves["layers/mlp/down/kernel"] = leaves["layers/mlp/down/kernel"].at[1].set(np.nan)
    with pytest.raises(TaskVecError, match="residual stream after layer 1 is not finite"):
        read_states(decoder, unflatten(leaves), tokens, places)
