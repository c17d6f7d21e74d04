"""A sliding window and the context length hold in every program that runs blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import hf
import numpy as np
import pytest
import torch
from conftest import LLAMA, model_of

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.vectors import examples as examples_of
from taskvec_jax.vectors import learning, sweep
from taskvec_jax.vectors.patching import read_states, write_states

WINDOW = 8
LENGTH = 3 * WINDOW
RNG = np.random.RandomState(0)
TEXT = RNG.randint(1, 100, LENGTH).tolist()
SHORTER = RNG.randint(1, 100, LENGTH - 5).tolist()


@pytest.fixture(scope="module")
def theirs() -> Any:
    return hf.random_model(hf.mistral(sliding_window=WINDOW, num_hidden_layers=3))


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(hf.save(theirs, tmp_path_factory.mktemp("mistral")))


def hf_logits(theirs: Any, text: list[int], layer: int, vectors: np.ndarray) -> np.ndarray:
    """transformers' logits at the last token when vectors [P, D] replace the residual stream of
    the last P tokens after a block."""

    def write(module: Any, inputs: Any, output: Any) -> Any:
        del module, inputs
        states = output[0] if isinstance(output, tuple) else output
        states[0, -len(vectors) :] = torch.tensor(vectors)
        return output

    hook = hf.blocks(theirs)[layer].register_forward_hook(write)
    with torch.no_grad():
        logits = theirs(torch.tensor([text])).logits[0, -1].numpy()
    hook.remove()
    return logits


def test_the_decoder_equals_transformers_beyond_the_window(ours: Model, theirs: Any) -> None:
    tokens = np.array(TEXT)
    hf.assert_same(hf.run_ours(ours, tokens), hf.run_hf(theirs, tokens))


def test_reading_trees_equals_transformers_beyond_the_window(ours: Model, theirs: Any) -> None:
    trunk = TEXT[: WINDOW + 3]
    texts = [[*trunk, *TEXT[:n]] for n in (1, 5, 2 * WINDOW)]
    residuals, answers = sweep.read_texts(ours, [texts, [SHORTER]], 2)
    for i, text in enumerate(texts):
        want = hf.run_hf(theirs, np.array(text))
        np.testing.assert_allclose(residuals[0, i], want.residuals[:, -1], rtol=1e-4, atol=1e-4)
        assert answers.tokens[0, i] == want.logits[-1].argmax()


@pytest.mark.parametrize("positions", [1, 3])
def test_injecting_equals_transformers_beyond_the_window(
    ours: Model, theirs: Any, positions: int
) -> None:
    layers = np.arange(3)
    theta = RNG.standard_normal((2, 3, positions, ours.config.width)).astype(np.float32)
    vectors = theta[:, :, 0] if positions == 1 else theta
    answers = sweep.inject_vectors(ours, [TEXT, SHORTER], vectors, layers, 2)
    for row, text in enumerate((TEXT, SHORTER)):
        for layer in layers.tolist():
            want = hf_logits(theirs, text, layer, theta[row, layer])
            assert answers.tokens[row, 1 + layer] == want.argmax()
            np.testing.assert_allclose(
                answers.logits[row, 1 + layer], want.max(), rtol=1e-4, atol=1e-4
            )


def test_patching_and_learning_equal_transformers_beyond_the_window(
    ours: Model, theirs: Any
) -> None:
    tokens, last = np.array([TEXT], np.int32), np.array([LENGTH - 1])
    _, wanted = read_states(ours.decoder, ours.params, tokens, last[:, None])
    vector = RNG.standard_normal(ours.config.width).astype(np.float32)
    want = hf_logits(theirs, TEXT, 1, vector[None])
    patched = write_states(
        ours.decoder,
        ours.params,
        tokens,
        last,
        wanted,
        np.array([1]),
        last[:, None],
        vector[None, None],
    )
    assert patched.tokens[0, 0] == want.argmax()
    examples = examples_of.make_examples([TEXT], [[7]])
    losses, said = learning.score_examples(ours, examples, vector[None], [1], 1)
    assert said[0, 0] == want.argmax()
    np.testing.assert_allclose(
        losses[0, 0], np.log(np.exp(want).sum()) - want[7], rtol=1e-4, atol=1e-4
    )


@pytest.fixture(scope="module")
def tiny_model(tokenizer: Tokenizer) -> Model:
    return model_of(dataclasses.replace(LLAMA, num_layers=1, max_length=11), tokenizer)


def run_each(model: Model, text: list[int]) -> dict[str, Any]:
    """Every way a text goes into a model, as functions that have yet to be called."""
    config, tokens = model.config, np.array([text], np.int32)
    last = np.array([len(text) - 1])
    vectors = np.zeros((1, 1, config.width), np.float32)

    def patch() -> Any:
        wanted = np.zeros((1, config.vocab_size), np.float32)
        layers, decoder = np.array([0]), model.decoder
        return write_states(
            decoder, model.params, tokens, last, wanted, layers, last[:, None], vectors
        )

    def examples() -> examples_of.Examples:
        return examples_of.make_examples([text], [[1]])

    def learn() -> Any:
        recipe = learning.Recipe(steps=1, batch_size=1, check_every=1)
        return learning.learn_vector(
            model,
            examples(),
            examples(),
            lambda said: said == 1,
            vectors[0] + 1,
            np.ones(1, np.float32),
            [0],
            recipe,
        )

    return {
        "decoder": lambda: model.decoder.apply(model.params, tokens),
        "read": lambda: model.decoder.apply(model.params, tokens, last, method="read"),
        "read_texts": lambda: sweep.read_texts(model, [[text]], 1),
        "inject_vectors": lambda: sweep.inject_vectors(model, [text], vectors, np.array([0]), 1),
        "read_states": lambda: read_states(model.decoder, model.params, tokens, last[:, None]),
        "write_states": patch,
        "score_examples": lambda: learning.score_examples(model, examples(), vectors[0], [0], 1),
        "learn": learn,
    }


def test_every_program_reads_up_to_the_context_and_refuses_more(tiny_model: Model) -> None:
    limit = tiny_model.config.max_length
    allowed = run_each(tiny_model, [1] * limit)
    for name in ("read_texts", "inject_vectors", "score_examples"):
        assert allowed[name]() is not None
    for name, way in run_each(tiny_model, [1] * (limit + 1)).items():
        with pytest.raises(TaskVecError, match="take fewer demonstrations") as refusal:
            way()
        assert f"{limit + 1} tokens in a text; this model reads at most {limit}" in str(
            refusal.value
        ), name


def test_every_program_refuses_a_token_id_outside_the_vocabulary(tiny_model: Model) -> None:
    size = tiny_model.config.vocab_size
    for bad in (-1, size):
        for name, way in run_each(tiny_model, [3, bad, 5]).items():
            with pytest.raises(TaskVecError, match=f"token id {bad} is out of range") as refusal:
                way()
            assert f"allowed: 0 to {size - 1}" in str(refusal.value), name
