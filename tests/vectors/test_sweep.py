"""The fast engine gives the numbers of the definition, on every family and every shape of row."""

# Long because: every program of the sweep is held against one definition.

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLAVOURS, TINY, model_of, read_of
from slow import first_is_quick

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.decoder import flatten, unflatten
from taskvec_jax.transformer.edits import add
from taskvec_jax.vectors import sweep, task_vectors
from taskvec_jax.vectors.account import ACCOUNT
from taskvec_jax.vectors.batching import round_up
from taskvec_jax.vectors.flops import injection_flops
from taskvec_jax.vectors.graded import Wanted
from taskvec_jax.vectors.programs import copy_states, top, wavefront_schedule
from taskvec_jax.vectors.rows import shared_prefix, tree_length

LENGTH = 32  # all reference rows are padded to this, so that they compile once


@pytest.fixture(scope="module", autouse=True)
def one_length():
    """Rounds row lengths up to one shape: what is tested here is numbers, not speed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sweep, "TREE_STEP", LENGTH)
    patch.setattr(sweep, "SHORT_TREE", 0)
    patch.setattr(sweep, "QUERY_FIRST", LENGTH)
    yield
    patch.undo()


def defined(model: Model, text: list[int], override=None) -> tuple[np.ndarray, np.ndarray]:
    """Residuals [L, D] and logits [V] at the end of one text, by the plain decoder."""
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(text)] = text
    last = np.int32(len(text) - 1)
    if override is not None:
        layer, vector = override
        override = (np.int32(layer), last, vector)
    residuals, logits = read_of(model.decoder, model.params, tokens, last, override)
    return np.asarray(residuals[:, 0]), np.asarray(logits[0])


@pytest.fixture(params=FLAVOURS, scope="module")
def model(request, tokenizer: Tokenizer) -> Model:
    return model_of(TINY[request.param], tokenizer)


def ragged_rows(vocab: int) -> list[list[list[int]]]:
    """Rows of texts: shared prefixes of many lengths, none at all, a text inside another."""
    rng = np.random.RandomState(3)

    def ids(n: int) -> list[int]:
        return rng.randint(0, vocab, n).tolist()

    long, short = ids(17), ids(5)
    return [
        [[*long, 1, 2], [*long, 3], [*long, 4, 5, 6]],
        [[*short, 9], [*short, 8, 7], [*short, 9]],
        # No shared prefix.
        [[11, *short], [12, *long], [13]],
        # A prefix that tokenises differently once the query is attached.
        [[*short, 20, 21], [*short[:-1], 22, 21], [*short, 20, 23]],
        # One text is the beginning of another.
        [long[:6], long[:9], long[:1]],
        [[7]],
    ]


def test_reading_trees_equals_reading_every_text_alone(model):
    rows = ragged_rows(model.config.vocab_size)
    residuals, answers = sweep.read_texts(model, rows, batch_size=4)
    for i, texts in enumerate(rows):
        for r, text in enumerate(texts):
            want, logits = defined(model, text)
            np.testing.assert_allclose(residuals[i, r], want, rtol=1e-5, atol=1e-5)
            assert answers.tokens[i, r] == int(np.argmax(logits))
            np.testing.assert_allclose(answers.logits[i, r], np.max(logits), rtol=1e-5, atol=1e-5)
        # Missing texts repeat the last one.
        assert (residuals[i, len(texts) :] == residuals[i, len(texts) - 1]).all()


def test_the_definition_of_theta_is_what_is_read(model):
    texts = [text for row in ragged_rows(model.config.vocab_size) for text in row]
    tokens, last = model.tokenizer.pad(texts)
    theta = task_vectors.extract_theta(model.decoder, model.params, tokens, last)
    for i in (0, 5, len(texts) - 1):
        np.testing.assert_allclose(theta[i], defined(model, texts[i])[0], rtol=1e-5, atol=1e-5)


def queries_and_theta(model: Model) -> tuple[list[list[int]], np.ndarray]:
    rng = np.random.RandomState(9)
    queries = [rng.randint(0, model.config.vocab_size, n).tolist() for n in (4, 9, 1, 6, 4)]
    shape = (len(queries), model.config.num_layers, model.config.width)
    return queries, rng.standard_normal(shape).astype(np.float32)


def test_the_sweep_equals_the_definition(model):
    queries, theta = queries_and_theta(model)
    tokens, last = model.tokenizer.pad(queries)
    logits = np.asarray(
        jax.jit(task_vectors.layer_sweep, static_argnums=0)(
            model.decoder, model.params, tokens, last, theta
        )
    )  # [L, B, V]
    answers = sweep.sweep_layers(model, queries, theta, batch_size=5)
    np.testing.assert_array_equal(answers.tokens[:, 1:], logits.argmax(-1).T)
    np.testing.assert_allclose(answers.logits[:, 1:], logits.max(-1).T, rtol=1e-5, atol=1e-5)


def test_the_definition_equals_a_loop_of_single_injections(model):
    queries, theta = queries_and_theta(model)
    tokens, last = model.tokenizer.pad(queries)
    swept = task_vectors.layer_sweep(model.decoder, model.params, tokens, last, theta)
    for layer in range(model.config.num_layers):
        for row in (0, 2):
            _, alone = defined(model, queries[row], (layer, theta[row, layer]))
            np.testing.assert_allclose(swept[layer, row], alone, rtol=1e-5, atol=1e-5)


def test_the_first_answer_is_the_untouched_query(model):
    queries, theta = queries_and_theta(model)
    answers = sweep.sweep_layers(model, queries, theta, batch_size=3)
    for i, query in enumerate(queries):
        _, logits = defined(model, query)
        assert answers.tokens[i, 0] == int(np.argmax(logits))
        np.testing.assert_allclose(answers.logits[i, 0], np.max(logits), rtol=1e-5, atol=1e-5)


def test_many_vectors_at_any_layers_equal_injecting_each_alone(model):
    queries, theta = queries_and_theta(model)
    L = model.config.num_layers
    layers = np.array([[0, L - 1], [2, 1], [L - 1, L - 1], [1, 0], [2, 2]])
    answers = sweep.inject_vectors(model, queries, theta[:, :2], layers, batch_size=4)
    for i, query in enumerate(queries):
        for c in range(2):
            _, logits = defined(model, query, (layers[i, c], theta[i, c]))
            assert answers.tokens[i, 1 + c] == int(np.argmax(logits))
            np.testing.assert_allclose(
                answers.logits[i, 1 + c], np.max(logits), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("batch_size", first_is_quick([2, 1, 64]))
def test_batch_size_and_row_order_change_nothing(model, batch_size):
    rows = ragged_rows(model.config.vocab_size)
    residuals, _ = sweep.read_texts(model, rows, batch_size=4)
    again, _ = sweep.read_texts(model, rows[::-1], batch_size=batch_size)
    np.testing.assert_allclose(again[::-1], residuals, rtol=1e-5, atol=1e-5)
    queries, theta = queries_and_theta(model)
    answers = sweep.sweep_layers(model, queries, theta, batch_size=4)
    swapped = sweep.sweep_layers(model, queries[::-1], theta[::-1], batch_size=batch_size)
    np.testing.assert_array_equal(swapped.tokens[::-1], answers.tokens)
    np.testing.assert_allclose(swapped.logits[::-1], answers.logits, rtol=1e-5, atol=1e-5)


def test_rows_that_repeat_are_computed_once_and_answered_each(one, monkeypatch):
    queries, theta = queries_and_theta(one)
    again = [0, 1, 0, 2, 1, 0]  # as letters are asked for again under one mean theta
    whole = sweep.sweep_layers(one, [queries[i] for i in again], theta[again], batch_size=8)
    computed = []

    def counted(config, params, tokens, *rest):
        computed.append(tokens.shape[0])
        return inject_rows(config, params, tokens, *rest)

    inject_rows = sweep.inject_rows
    monkeypatch.setattr(sweep, "inject_rows", counted)
    batched = sweep.sweep_layers(one, [queries[i] for i in again], theta[again], batch_size=1)
    assert computed == [1, 1, 1]
    alone = sweep.sweep_layers(one, queries[:3], theta[:3], batch_size=3)
    for got in (whole, batched):
        np.testing.assert_array_equal(got.tokens, alone.tokens[again])
        np.testing.assert_allclose(got.logits, alone.logits[again], rtol=1e-5, atol=1e-5)
    computed.clear()
    other = np.where(np.arange(6)[:, None, None] == 5, theta[1], theta[again])  # one other theta
    mixed = sweep.sweep_layers(one, [queries[i] for i in again], other, batch_size=1)
    assert computed == [1] * 4
    assert not np.allclose(mixed.logits[5, 1:], mixed.logits[0, 1:])


@pytest.mark.parametrize("batch_size", [8, 5, 3])
def test_several_sets_of_vectors_give_what_each_gives_alone(one, batch_size):
    queries, theta = queries_and_theta(one)
    sets = [theta * (1 + i) + 0.1 * i for i in range(sweep.SETS_A_ROW + 2)]
    sets[1] = np.broadcast_to(theta[0], theta.shape)  # one vector for all prompts
    wanted = Wanted(np.arange(10, dtype=np.int32).reshape(5, 2), np.arange(5, dtype=np.int32))
    several = sweep.sweep_several(one, queries, sets, batch_size, wanted)
    assert len(several) == len(sets)
    for found, vectors in zip(several, sets, strict=True):
        alone = sweep.sweep_layers(one, queries, vectors, batch_size, wanted)
        np.testing.assert_array_equal(found.tokens, alone.tokens)
        np.testing.assert_allclose(found.logits, alone.logits, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(found.graded, alone.graded, rtol=1e-4, atol=1e-4)
    assert sweep.sweep_several(one, queries, [], batch_size) == []


@pytest.mark.parametrize("others", [1, 4])
def test_the_queries_of_several_sets_are_run_once_for_four_of_them(one, others):
    queries, theta = queries_and_theta(one)
    before = ACCOUNT.now()
    sets = [theta - others - 0.1 * i for i in range(1 + others)]
    sweep.sweep_several(one, queries, sets, 8)
    needed = ACCOUNT.since(before).needed
    every = range(one.config.num_layers)
    alone = sum(injection_flops(one.config, len(q), every) for q in queries)
    text = sum(injection_flops(one.config, len(q), []) for q in queries)
    assert needed == (1 + others) * alone - (3 * text if others == 4 else 0)


def test_queries_are_padded_to_few_lengths_and_less_where_that_is_worth_a_program(one, monkeypatch):
    monkeypatch.setattr(sweep, "QUERY_FIRST", 4)
    lengths = range(1, 22)
    padded = [sweep.query_length(n) for n in lengths]
    assert padded == [4] * 4 + [12] * 8 + [20] * 8 + [28]
    assert [sweep.fitted_query_length(one.config, n, 50) for n in lengths] == padded
    monkeypatch.setattr(sweep, "worth_compiling", lambda: 1)
    large = [sweep.fitted_query_length(one.config, n, 50) for n in lengths]
    assert large == [2] * 2 + [4] * 2 + [6] * 2 + [8] * 2 + [10] * 2 + [12] * 2 + padded[12:]


def test_trees_are_padded_less_where_that_is_worth_a_program(one, monkeypatch):
    monkeypatch.setattr(sweep, "TREE_STEP", 8)
    monkeypatch.setattr(sweep, "SHORT_TREE", 40)
    lengths = (1, 37, 40, 41, 45, 72, 73, 81, 89, 97)
    few = [2, 38, 40, 48, 48, 72, 88, 88, 104, 104]
    assert [sweep.fitted_row_length(one.config, n, 100) for n in lengths] == few
    monkeypatch.setattr(sweep, "worth_compiling", lambda: 1)
    fine = [1, 37, 40, 44, 48, 72, 76, 88, 96, 104]
    assert [sweep.fitted_row_length(one.config, n, 100) for n in lengths] == fine


def test_texts_without_an_answer_are_read_as_those_with_one(model):
    rows = [[[1, 2, 3], [1, 2, 4, 5], [1, 2, 7]], [[9, 8], [9, 8, 7, 6], [9, 5]]]
    residuals, answers = sweep.read_texts(model, rows, 2)
    again, fewer = sweep.read_texts(model, rows, 2, unanswered=2)
    np.testing.assert_allclose(again, residuals, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(fewer.tokens, answers.tokens[:, 2:])
    _, none = sweep.read_texts(model, rows, 2, unanswered=3)
    assert none.tokens.shape == (2, 0)
    for wrong in (-1, 4):
        with pytest.raises(TaskVecError, match=f"unanswered={wrong}; allowed: 0 to 3"):
            sweep.read_texts(model, rows, 2, unanswered=wrong)


@pytest.mark.parametrize("operation", ["replace", "add"])
def test_when_a_copy_joins_changes_nothing(model, operation):
    queries, theta = queries_and_theta(model)
    layers = np.arange(model.config.num_layers)
    found = [
        sweep.inject_vectors(model, queries, theta, layers, 5, schedule, operation=operation)
        for schedule in (None, wavefront_schedule(len(layers)), wavefront_schedule(len(layers), 2))
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.tokens, found[0].tokens)
        np.testing.assert_allclose(other.logits, found[0].logits, rtol=1e-5, atol=1e-5)


def test_injecting_own_residuals_changes_nothing_at_any_layer(model):
    queries, _ = queries_and_theta(model)
    own, _ = sweep.read_texts(model, [[query] for query in queries], batch_size=5)
    answers = sweep.sweep_layers(model, queries, own[:, 0], batch_size=5)
    np.testing.assert_array_equal(
        answers.tokens[:, 1:], np.broadcast_to(answers.tokens[:, :1], answers.tokens[:, 1:].shape)
    )
    np.testing.assert_allclose(answers.logits[:, 1:] - answers.logits[:, :1], 0, rtol=0, atol=1e-5)


def test_shared_prefix_leaves_every_text_its_last_token():
    assert shared_prefix([[1, 2, 3]]) == 2
    assert shared_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_prefix([[1, 2, 3], [1, 2]]) == 1
    assert shared_prefix([[1, 2, 3], [4, 2, 3]]) == 0
    assert tree_length([[1, 2, 3], [1, 2, 4, 5]]) == 2 + 1 + 2


def test_row_lengths_are_rounded_up_to_few_shapes():
    assert [round_up(n, 8) for n in (1, 8, 9, 40)] == [8, 8, 16, 40]
    assert [round_up(n, 8, 4) for n in (1, 4, 5, 12, 13)] == [4, 4, 12, 12, 20]


def test_short_rows_are_padded_less_on_a_cpu_and_all_to_few_lengths(monkeypatch):
    monkeypatch.setattr(sweep, "TREE_STEP", 8)
    monkeypatch.setattr(sweep, "SHORT_TREE", 40)
    lengths = (1, 35, 36, 39, 40, 41, 72, 73, 90)
    assert [sweep.row_length(n) for n in lengths] == [2, 36, 36, 40, 40, 48, 72, 88, 104]
    monkeypatch.setattr(sweep.jax, "default_backend", lambda: "tpu")
    assert [sweep.row_length(n) for n in lengths] == [8, 40, 40, 40, 40, 48, 72, 88, 104]


def test_the_two_step_maximum_takes_the_lowest_of_equals():
    logits = np.random.RandomState(0).randint(0, 5, (7, 3, 96)).astype(np.float32)
    tokens, values = top(jnp.asarray(logits))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_array_equal(values, logits.max(-1))
    odd = np.random.RandomState(0).standard_normal((5, 101)).astype(np.float32)
    np.testing.assert_array_equal(top(jnp.asarray(odd))[0], odd.argmax(-1))


def test_the_wavefront_covers_every_layer_once_and_births_no_copy_late():
    for num_layers in (1, 2, 5, 30, 60):
        schedule = wavefront_schedule(num_layers)
        ends = [end for end, _ in schedule]
        assert ends == sorted(ends)
        assert ends[-1] == num_layers
        assert all(alive >= end - 1 for end, alive in schedule), (
            "only the copy of the group's last layer joins with the next group"
        )
        assert schedule[-1] == (num_layers, num_layers)


@pytest.fixture(scope="module")
def one(tokenizer: Tokenizer) -> Model:
    return model_of(TINY["llama-grouped-tied"], tokenizer)


def test_added_vectors_give_what_an_edit_that_adds_gives(one):
    queries, theta = queries_and_theta(one)
    layers = range(one.config.num_layers)
    schedule = wavefront_schedule(len(layers))
    answers = sweep.inject_vectors(
        one, queries, theta, np.array(layers), 5, schedule, operation="add"
    )
    for layer in layers:
        logits = one.logits(queries, edits=add(theta[:, layer], layer=layer, position=-1))
        np.testing.assert_array_equal(answers.tokens[:, 1 + layer], logits.argmax(-1))
        np.testing.assert_allclose(
            answers.logits[:, 1 + layer], logits.max(-1), rtol=1e-5, atol=1e-5
        )
    replaced = sweep.sweep_layers(one, queries, theta, batch_size=5)
    assert (answers.logits != replaced.logits)[:, 1:].any()
    with pytest.raises(TaskVecError, match="operation is 'scale'; allowed: 'replace', 'add'"):
        sweep.inject_vectors(one, queries, theta, np.array(layers), 5, operation="scale")


def copied(model: Model, last: int, layers: list[int], schedule) -> np.ndarray:
    """`copy_states` of one query of 4 tokens: [1 + C, D]."""
    run = jax.jit(
        lambda last, layers: copy_states(
            model.config,
            model.params,
            jnp.array([[1, 2, 3, 4]]),
            last,
            jnp.ones((1, len(layers[0]), model.config.width)),
            layers,
            schedule,
        )
    )
    return np.asarray(run(np.array([last]), np.array([layers])))[0]


def test_a_copy_that_can_never_be_written_is_nan_and_not_the_untouched_query(one):
    L = one.config.num_layers
    schedule = ((2, 1), (L, 3))  # the second and third copy join after layer 1
    for layers in ([0, 2, L - 1], [0, 1, 1]):
        assert np.isfinite(copied(one, 3, layers, schedule)).all()
    for layers in ([-1, 0, L], [L, 0, -5]):
        states = copied(one, 3, layers, schedule)
        assert np.isnan(states).all(axis=-1).tolist() == [False, True, True, True]
    for last in (-1, 4):
        assert np.isnan(copied(one, last, [0, 2, 2], schedule)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused_with_their_layer(one, bad):
    vectors = np.zeros((2, 3, one.config.width), np.float32)
    vectors[1, 2, 5] = bad
    with pytest.raises(TaskVecError, match="the vector to be written after layer 3 is not finite"):
        sweep.inject_vectors(one, [[1, 2], [3]], vectors, np.array([0, 1, 3]), 2)
    layers = np.array([[0, 1, 3], [0, 1, 2]])
    with pytest.raises(TaskVecError, match="after layer 2 is not finite"):
        sweep.inject_vectors(one, [[1, 2], [3]], vectors[:, :, None], layers, 2)


def test_answers_that_are_not_finite_stop_with_their_layer(tokenizer):
    """The vector is finite, and the mean that LayerNorm takes of it overflows."""
    model = model_of(TINY["pythia-parallel"], tokenizer)
    vectors = np.zeros((2, 2, model.config.width), np.float32)
    vectors[1, 1] = np.finfo(np.float32).max
    wanted = r"with a vector written after layer 1 is not finite: .* --dtype=float32"
    with pytest.raises(TaskVecError, match=wanted):
        sweep.inject_vectors(model, [[1, 2], [3]], vectors, np.array([4, 1]), 2)


def test_logits_that_are_not_finite_are_refused_though_every_layer_is(one):
    leaves = flatten(one.params)
    leaves["final_norm/scale"] = leaves["final_norm/scale"].at[3].set(np.nan)
    broken = dataclasses.replace(one, params=unflatten(leaves))
    with pytest.raises(TaskVecError, match="logits, after the last layer, are not finite"):
        sweep.read_texts(broken, [[[1, 2]]], 1)


def test_the_definition_stops_at_what_is_not_finite_with_its_layer(one):
    def broken(path: str) -> Model:
        leaves = flatten(one.params)
        leaves[path] = leaves[path].at[2].set(np.nan)
        return dataclasses.replace(one, params=unflatten(leaves))

    decoder, tokens = one.decoder, np.array([[1, 2, 3]])
    params = broken("layers/mlp/down/kernel").params
    with pytest.raises(TaskVecError, match="residual stream after layer 2 is not finite"):
        task_vectors.extract_theta(decoder, params, tokens, 2)
    theta = np.zeros((1, decoder.config.num_layers, decoder.config.width), np.float32)
    theta[0, 3, 7] = np.inf
    with pytest.raises(TaskVecError, match="with a vector written after layer 3 is not finite"):
        task_vectors.inject_theta(decoder, one.params, tokens, 2, 3, theta[:, 3])
    with pytest.raises(TaskVecError, match="with a vector written after layer 3 is not finite"):
        task_vectors.layer_sweep(decoder, one.params, tokens, 2, theta)


def test_theta_read_out_of_range_is_nan_when_traced(one):
    tokens = np.arange(1, 14)[None]
    read = jax.jit(lambda last: task_vectors.extract_theta(one.decoder, one.params, tokens, last))
    assert np.isfinite(read(12)).all()
    assert np.isnan(read(99)).all()
    assert np.isnan(read(-1)).all()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is no text"),
        ([[1, 2], []], "every text needs at least one token"),
        ([1, 2], "each must be a list of token ids"),
        ([[1.5, 2]], "whole numbers"),
    ],
)
def test_texts_that_are_no_lists_of_ids_are_refused(one, texts, message):
    vectors = np.zeros((len(texts), 1, one.config.width), np.float32)
    with pytest.raises(TaskVecError, match=message):
        sweep.inject_vectors(one, texts, vectors, np.array([0]), 1)
    with pytest.raises(TaskVecError, match=message):
        sweep.read_texts(one, [texts], 1)


def test_a_residual_stream_that_is_not_finite_stops_with_its_layer():
    residuals = np.zeros((2, 1, 5, 3), np.float32)
    residuals[1, 0, 3, 2] = np.inf
    with pytest.raises(TaskVecError, match="after layer 3 is not finite"):
        sweep.check_finite(residuals)


def test_layers_out_of_range_and_vectors_of_another_width_are_refused(model):
    queries, theta = queries_and_theta(model)
    L = model.config.num_layers
    for bad in (L, -1):
        with pytest.raises(TaskVecError, match=f"allowed: 0 to {L - 1}"):
            sweep.inject_vectors(model, queries, theta[:, :1], np.array([bad]), 5)
    with pytest.raises(TaskVecError, match="vectors have shape"):
        sweep.inject_vectors(model, queries, theta[:, :1, 1:], np.array([0]), 5)
