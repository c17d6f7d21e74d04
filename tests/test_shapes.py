"""The shapes and dtypes in the annotations of public functions are those of what they do.

Annotations cost nothing where the library runs: nobody reads them. Here beartype does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from conftest import LLAMA, model_of, random_params
from jaxtyping import TypeCheckError, jaxtyped

from taskvec_jax.models.model import Model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.decoder import Decoder
from taskvec_jax.vectors import sweep, task_vectors

B, T, D, L, V = 2, 5, LLAMA.width, LLAMA.num_layers, LLAMA.vocab_size
TOKENS = np.arange(B * T, dtype=np.int32).reshape(B, T)
THETA = np.ones((B, L, D), np.float32)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose annotations are held against what goes in and comes out."""
    return jaxtyped(function, typechecker=beartype)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return model_of(LLAMA, tokenizer)


@pytest.fixture(scope="module")
def parts() -> tuple[Decoder, dict]:
    return Decoder(LLAMA), random_params(LLAMA)


def test_the_definition_takes_and_gives_the_shapes_it_says(parts):
    last = np.full(B, T - 1)
    theta = checked(task_vectors.extract_theta)(*parts, TOKENS, last)
    assert theta.shape == (B, L, D)
    inject = checked(task_vectors.inject_theta)
    assert inject(*parts, TOKENS, last, 1, theta[:, 1]).shape == (B, V)
    assert inject(*parts, TOKENS, last, 1, theta[0, 1]).shape == (B, V)
    assert checked(task_vectors.layer_sweep)(*parts, TOKENS, last, theta).shape == (L, B, V)


def test_the_decoder_takes_and_gives_the_shapes_it_says(parts):
    decoder, params = parts

    def applied(method: Callable[..., Any], *arguments: Any) -> Any:
        return jax.eval_shape(
            lambda p, a: decoder.apply(p, *a, method=checked(method)), params, arguments
        )

    assert applied(Decoder.__call__, TOKENS).shape == (B, T, V)
    residuals, logits = applied(Decoder.read, TOKENS, jnp.asarray(2))
    assert (residuals.shape, logits.shape) == ((L, B, D), (B, V))
    assert applied(Decoder.embed, TOKENS).shape == (B, T, D)
    assert applied(Decoder.unembed, THETA).shape == (B, L, V)


def test_the_verbs_of_a_model_give_the_shapes_they_say(model):
    texts = [[1, 2, 3], [4, 5]]
    assert checked(Model.read)(model, texts).shape == (2, L, D)
    assert checked(Model.read)(model, texts, site="pattern", positions="all").ndim == 5
    assert checked(Model.logits)(model, texts).shape == (2, V)
    assert checked(Model.lens)(model, texts).shape == (2, L, V)


def test_the_sweep_takes_and_gives_the_shapes_it_says(model):
    rows = [[[1, 2, 3], [1, 2, 4]], [[5, 6, 7], [5, 6]]]
    residuals, answers = checked(sweep.read_texts)(model, rows, 2)
    assert residuals.shape == (2, 2, L, D)
    assert answers.tokens.shape == (2, 2)
    queries = [[1, 2], [3, 4]]
    assert checked(sweep.sweep_layers)(model, queries, residuals[:, 0], 2).tokens.shape == (
        2,
        1 + L,
    )
    layers = np.array([0, 3])
    inject = checked(sweep.inject_vectors)
    assert inject(model, queries, THETA[:, :2], layers, 2).tokens.shape == (2, 1 + 2)
    assert inject(model, queries, THETA[:, :2, None], layers, 2).tokens.shape == (2, 1 + 2)


@pytest.mark.parametrize(
    "bad",
    [
        lambda decoder, params: (decoder, params, TOKENS[0], 0),  # one row without its axis
        lambda decoder, params: (decoder, params, TOKENS.astype(np.float32), 0),
    ],
)
def test_an_array_of_another_shape_or_dtype_is_seen(parts, bad):
    """Otherwise the tests above could not fail."""
    with pytest.raises(TypeCheckError):
        checked(task_vectors.extract_theta)(*bad(*parts))


def test_a_theta_of_other_rows_than_its_tokens_is_seen(parts):
    with pytest.raises(TypeCheckError):
        checked(task_vectors.layer_sweep)(*parts, TOKENS, np.full(B, T - 1), THETA[:1])
