"""States at several positions over windows of layers, against edits in a pass of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import LLAMA, model_of

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.places import find_places
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks import Pair
from taskvec_jax.transformer.edits import replace
from taskvec_jax.vectors import position_patching
from taskvec_jax.vectors.position_patching import layer_windows, patch_last, patch_windows

WINDOWS = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return model_of(dataclasses.replace(LLAMA, num_layers=3), tokenizer)


def drawn(model: Model) -> tuple[list[list[int]], list[list[int]], list[np.ndarray]]:
    c, rng = model.config, np.random.RandomState(11)
    texts = [rng.randint(0, c.vocab_size, n).tolist() for n in (9, 4, 12)]
    positions = [[0, 8], [3], [2, 7]]
    states = [3 * rng.standard_normal((len(at), 3, c.width)) for at in positions]
    return texts, positions, [state.astype(np.float32) for state in states]


def test_every_window_is_a_pass_with_edits_after_each_of_its_layers(model):
    texts, positions, states = drawn(model)
    found = patch_windows(model, texts, positions, states, WINDOWS, batch_size=3)
    np.testing.assert_array_equal(found[:, 0], model.logits(texts).argmax(-1))
    where = np.array([[0, 8], [3, 3], [2, 7]])
    every = np.stack([given[[0, -1]] for given in states])  # [N, P, L, D]
    for number, (first, stop) in enumerate(WINDOWS, start=1):
        edits = [
            replace(every[:, :, layer], layer=layer, position=where) for layer in range(first, stop)
        ]
        expected = model.logits(texts, edits=edits).argmax(-1)
        np.testing.assert_array_equal(found[:, number], expected, str(number))
    assert (found[:, 1:] != found[:, :1]).mean() > 0.5, "patches that change nothing test nothing"


def test_own_states_at_any_positions_change_nothing(model):
    texts, positions, _ = drawn(model)
    read = model.read(texts, positions=np.array([[0, 8], [3, 3], [2, 7]]))
    own = [states[: len(at)] for states, at in zip(read, positions, strict=True)]
    found = patch_windows(model, texts, positions, own, WINDOWS, batch_size=3)
    np.testing.assert_array_equal(found, np.repeat(found[:, :1], found.shape[1], axis=1))


def test_the_last_token_alone_is_written_the_same_by_both(model):
    texts, _, states = drawn(model)
    last = np.stack([given[-1] for given in states])  # [N, L, D]
    at = [[len(text) - 1] for text in texts]
    layers = [0, 1, 2, 2, 2]  # as many as there are windows elsewhere: one program
    windows = [(layer, layer + 1) for layer in layers]
    found = patch_windows(model, texts, at, list(last[:, None]), windows, batch_size=3)
    np.testing.assert_array_equal(patch_last(model, texts, last, layers, 3), found)


def test_batch_size_order_and_padding_change_nothing(model, monkeypatch):
    texts, positions, states = drawn(model)
    found = patch_windows(model, texts, positions, states, WINDOWS, batch_size=3)
    monkeypatch.setattr(position_patching, "row_length", lambda tokens: 24)
    again = patch_windows(model, texts[::-1], positions[::-1], states[::-1], WINDOWS, batch_size=2)
    np.testing.assert_array_equal(again[::-1], found)


def test_what_does_not_fit_is_refused(model):
    texts, positions, states = drawn(model)
    with pytest.raises(TaskVecError, match="text 1 of 4 tokens: positions"):
        patch_windows(model, texts, [positions[0], [4], positions[2]], states, WINDOWS, 3)
    with pytest.raises(TaskVecError, match="windows of layers are"):
        patch_windows(model, texts, positions, states, [(2, 4)], 3)
    with pytest.raises(TaskVecError, match="the same number of each"):
        patch_windows(model, texts, positions, states[:1], WINDOWS, 3)
    states[1][0, 2, 0] = np.inf
    with pytest.raises(TaskVecError, match="written after layer 2 is not finite"):
        patch_windows(model, texts, positions, states, WINDOWS, 3)


def test_windows_begin_at_every_layer_and_end_at_the_last():
    assert layer_windows(3) == [(0, 1), (1, 2), (2, 3)]
    assert layer_windows(4, 3) == [(0, 3), (1, 4), (2, 4), (3, 4)]


def test_places_of_a_prompt_hold_what_they_say(tokenizer):
    prompt = Prompt((Pair(" hot", " cold"), Pair(" big", " Saint Petersburg")), Pair(" up", ""), ())
    places = find_places(tokenizer, prompt)
    text, pieces = prompt.icl(), tokenizer.pieces(prompt.icl())

    def said(index: int) -> str:
        first, stop = pieces[index][2]
        return text[first:stop]

    assert [said(i) for i in places.arrows] == ["->", "->"]
    assert said(places.outputs[0]).strip() == "cold"
    assert "Saint Petersburg".endswith(said(places.outputs[1]).strip())
    assert "".join(said(i) for i in places.template).replace(" ", "") == "example:->"
    assert text[pieces[places.query][2][0] :] == "example: up->"
