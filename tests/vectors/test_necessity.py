"""The task cut from a query after every layer, against one forward pass for each variant."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA, PYTHIA, model_of
from slow import SLOW

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.context import attention_context, plain_layout
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder
from taskvec_jax.vectors import necessity
from taskvec_jax.vectors.copies import take_layer
from taskvec_jax.vectors.necessity import cut_task

CONFIGS = {
    "llama": dataclasses.replace(LLAMA, num_layers=3),
    "pythia": dataclasses.replace(PYTHIA, num_layers=2),
}


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return model_of(CONFIGS["llama"], tokenizer)


LENGTH = 16


def drawn(model: Model) -> tuple[list[list[int]], list[int], np.ndarray]:
    """Prompts, where their queries begin (of 3, 1, 5 and all tokens), and states."""
    c, rng = model.config, np.random.RandomState(7)
    texts = [rng.randint(0, c.vocab_size, n).tolist() for n in (9, 5, 13, 4)]
    states = rng.standard_normal((4, c.num_layers, c.width)).astype(np.float32)
    return texts, [6, 4, 8, 0], 3 * states


def one_by_one(model: Model) -> jax.stages.Wrapped:
    """Logits [V] of one prompt with the mask of one variant, written out with the plain block."""
    c = model.config
    block = FAMILY_MODULES[c.family].Block(c)

    @jax.jit
    def run(tokens, last, begin, layer, blocks, replaces, states):
        context = attention_context(c, plain_layout(LENGTH)).plain
        place = jnp.arange(LENGTH)
        query, shown = place >= begin, (place < begin) & (place > 0)
        x = Decoder(c).apply(model.params, tokens, method="embed")
        for index in range(c.num_layers):
            cut = blocks & (index > layer) & query[:, None] & shown[None]
            here = context._replace(mask=context.mask & ~cut)
            x = block.apply({"params": take_layer(model.params, jnp.int32(index))}, x, here)
            write = replaces & (index == layer)
            x = x.at[0, last].set(jnp.where(write, states[index], x[0, last]))
        return Decoder(c).apply(model.params, x[0, last], method="unembed")

    return run


@pytest.mark.parametrize("family", CONFIGS if SLOW else ["llama"])
def test_every_variant_is_the_forward_pass_of_its_own(family, model, tokenizer):
    if family != "llama":
        model = model_of(CONFIGS[family], tokenizer)
    texts, begins, states = drawn(model)
    found = cut_task(model, texts, begins, states, batch_size=4)
    run = one_by_one(model)
    differ = 0
    for row, text in enumerate(texts):
        tokens = np.zeros((1, LENGTH), np.int32)
        tokens[0, : len(text)] = text
        rest = (tokens, len(text) - 1, begins[row])
        own = int(np.argmax(run(*rest, 0, False, False, states[row])))
        assert found.untouched[row] == own
        for layer in range(model.config.num_layers):
            for kind, blocks, replaces in (
                ("no_attention", True, False),
                ("other_state", False, True),
                ("both", True, True),
            ):
                alone = int(np.argmax(run(*rest, layer, blocks, replaces, states[row])))
                assert getattr(found, kind)[row, layer] == alone, (row, layer, kind)
                differ += alone != own
    assert differ > 6, "variants that change no answer test nothing"


def test_after_the_last_layer_there_is_nothing_left_to_attend_with(model):
    texts, begins, states = drawn(model)
    found = cut_task(model, texts, begins, states, batch_size=4)
    np.testing.assert_array_equal(found.no_attention[:, -1], found.untouched)
    np.testing.assert_array_equal(found.both[:, -1], found.other_state[:, -1])
    # A query without demonstrations has nothing to be cut from.
    np.testing.assert_array_equal(
        found.no_attention[3], np.repeat(found.untouched[3], len(states[3]))
    )


def test_its_own_states_in_their_place_change_nothing(model):
    texts, begins, _ = drawn(model)
    own = model.read(texts)
    found = cut_task(model, texts, begins, own, batch_size=4)
    same = np.repeat(found.untouched[:, None], own.shape[1], axis=1)
    np.testing.assert_array_equal(found.other_state, same)
    np.testing.assert_array_equal(found.both, found.no_attention)


def test_batch_size_order_and_padding_change_nothing(model, monkeypatch):
    texts, begins, states = drawn(model)
    found = cut_task(model, texts, begins, states, batch_size=4)
    monkeypatch.setattr(necessity, "row_length", lambda tokens: 24)
    monkeypatch.setattr(necessity, "QUERY_STEP", 5)
    again = cut_task(model, texts[::-1], begins[::-1], states[::-1], batch_size=3)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a, b[::-1])


def test_what_does_not_fit_is_refused(model):
    texts, begins, states = drawn(model)
    for wrong in ([6, 4, 13, 0], [-1, 4, 8, 0], [6, 4, 8]):
        with pytest.raises(TaskVecError, match="an index for each of 4 prompts"):
            cut_task(model, texts, wrong, states, 4)
    with pytest.raises(TaskVecError, match="states have shape"):
        cut_task(model, texts, begins, states[:, :1], 4)
    bad = states.copy()
    bad[2, 1, 0] = np.nan
    with pytest.raises(TaskVecError, match="to be written after layer 1 is not finite"):
        cut_task(model, texts, begins, bad, 4)
