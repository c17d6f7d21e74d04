"""Texts that go on after beginnings which are run once: the same tokens as whole texts give."""

import dataclasses

import numpy as np
import pytest
from conftest import LLAMA, PYTHIA, model_of

from taskvec_jax import load_model
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.generating import generate
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.transformer.edits import replace
from taskvec_jax.vectors import continuing
from taskvec_jax.vectors.beginnings import NOWHERE
from taskvec_jax.vectors.continuing import Beginnings


@pytest.fixture(scope="module")
def small():
    return load_model(SMALL_MODEL)


LEARNED = dataclasses.replace(
    PYTHIA, family="gpt2", learned_positions=True, rope_dim=0, parallel_residual=False
)
WINDOWS = dataclasses.replace(LLAMA, sliding_window=7)
HALF = dataclasses.replace(LLAMA, dtype="bfloat16", num_layers=2)


@pytest.mark.parametrize("config", [LEARNED, WINDOWS, HALF], ids=["learned", "windows", "half"])
def test_texts_that_fill_the_context_go_on_as_whole_texts_do(config, tokenizer):
    model = model_of(config, tokenizer)
    rng, most = np.random.RandomState(1), model.config.max_length
    texts = rng.randint(1, model.config.vocab_size, (5, most)).tolist()
    texts = [text[: most - 1 - i % 2] for i, text in enumerate(texts)]
    whole = generate(model.config, model.params, texts, max_new_tokens=1)
    cuts = [(len(text) - 1 - i % 3) * (i != 2) for i, text in enumerate(texts)]
    found = Beginnings(model).next_tokens(
        [text[:cut] for text, cut in zip(texts, cuts, strict=True)],
        [text[cut:] for text, cut in zip(texts, cuts, strict=True)],
        np.zeros((5, model.config.width), np.float32),
        np.full(5, NOWHERE),
    )
    assert found.tolist() == [ids[0] for ids in whole]


def _texts(model, count, longest):
    """Texts of 1 to `longest` tokens, and where each is cut: its last 1 to 3 tokens follow."""
    rng = np.random.RandomState(0)
    sizes = rng.randint(1, longest + 1, count)
    texts = [rng.randint(1, model.config.vocab_size, size).tolist() for size in sizes]
    cuts = [len(text) - rng.randint(1, min(3, len(text)) + 1) for text in texts]
    return texts, cuts, rng


def test_next_tokens_after_kept_beginnings_are_those_of_whole_texts(small, monkeypatch):
    texts, cuts, rng = _texts(small, 30, 40)
    vectors = rng.standard_normal((30, small.config.width)).astype(np.float32)
    layers = rng.randint(0, small.config.num_layers, 30)
    layers[::3] = NOWHERE
    whole = np.empty(30, int)
    for rows, edits in (
        (
            np.flatnonzero(layers != NOWHERE),
            lambda i: replace(vectors[i], layer=layers[i], position=np.array(cuts)[i]),
        ),
        (np.flatnonzero(layers == NOWHERE), lambda i: ()),
    ):
        made = generate(
            small.config,
            small.params,
            [texts[i] for i in rows],
            max_new_tokens=1,
            edits=edits(rows),
        )
        whole[rows] = [ids[0] for ids in made]
    begun = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    rest = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    beginnings = Beginnings(small)
    np.testing.assert_array_equal(beginnings.next_tokens(begun, rest, vectors, layers), whole)
    # Neither what is kept, nor how many rows a call has, changes a token.
    monkeypatch.setattr(continuing, "MOST_KEPT", 0)
    monkeypatch.setattr(continuing, "MOST_ROWS", 4)
    for _ in range(2):
        np.testing.assert_array_equal(beginnings.next_tokens(begun, rest, vectors, layers), whole)


def test_a_beginning_is_read_once(small, monkeypatch):
    read = []
    real = continuing.read_beginnings
    beginnings = Beginnings(small)
    monkeypatch.setattr(
        continuing, "read_beginnings", lambda *args: (read.append(len(args[2])), real(*args))[1]
    )
    nothing = np.zeros((3, small.config.width), np.float32)
    for _ in range(3):
        beginnings.next_tokens(
            [[1, 2], [1, 2], [3]], [[4], [5, 6], [7]], nothing, np.full(3, NOWHERE)
        )
    assert read == [4]


def test_few_bytes_of_beginnings_are_kept_and_long_ones_go_first(small, monkeypatch):
    beginnings = Beginnings(small)
    short, long = [1, 2], list(range(1, 41))
    beginnings.read([short, long])
    monkeypatch.setattr(continuing, "MOST_KEPT", 100_000)
    beginnings.next_tokens(
        [short, long], [[4], [5]], np.zeros((2, small.config.width), np.float32), [NOWHERE] * 2
    )
    assert list(beginnings._kept) == [(), tuple(short)]


@pytest.mark.parametrize(
    ("layers", "message"), [([9], "layers run from 9"), ([-2], "layers run from -2")]
)
def test_a_layer_out_of_range_is_refused(small, layers, message):
    vector = np.zeros((1, small.config.width), np.float32)
    with pytest.raises(TaskVecError, match=message):
        Beginnings(small).next_tokens([[1]], [[2]], vector, layers)
