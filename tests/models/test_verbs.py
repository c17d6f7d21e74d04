"""The verbs of a model: what they give, in which shape, and that a second call compiles nothing."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers
from conftest import LLAMA, model_of

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer import edits
from taskvec_jax.transformer.decoder import Decoder

L, D, H, K, V = 5, 42, 6, 14, 131
IDS = [[5, 9, 2], [7], [11, 3, 8, 20, 4, 6, 1]]
TEXTS = ["w5 w9 w2", "w7", "w11 w3 w8 w20 w4 w6 w1"]


@pytest.fixture(scope="module", autouse=True)
def no_constants():
    """In this file a program with an array of 4 kB among its constants, such as a kernel of the
    model, is an error: JAX warns of it, and a warning is one."""
    usual = jax.config.values["jax_captured_constants_warn_bytes"]
    jax.config.update("jax_captured_constants_warn_bytes", 4000)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", usual)


@pytest.fixture(scope="module")
def model() -> Model:
    vocab = {"<unk>": 0, **{f"w{i}": i for i in range(1, V - 1)}, "</s>": V - 1}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>"])
    return model_of(LLAMA, Tokenizer(backend))


def test_reads_have_the_documented_shapes(model):
    assert model.read(TEXTS).shape == (3, L, D)
    assert model.read(TEXTS, layers=3).shape == (3, 1, D)
    assert model.read(TEXTS, layers=[4, 0], positions=[-1]).shape == (3, 1, 2, D)
    assert model.read(TEXTS, site="head", layers=[1]).shape == (3, 1, H, K)
    assert model.read(TEXTS, positions="all", layers=[1]).shape == (3, 7, 1, D)
    assert model.read(TEXTS, site="pattern", layers=[1]).shape == (3, 1, H, 7)
    assert model.logits(TEXTS).shape == (3, V)
    assert model.lens(TEXTS).shape == (3, L, V)


def test_strings_and_ids_and_a_single_text_are_the_same_texts(model):
    want = model.read(TEXTS)
    np.testing.assert_array_equal(model.read(IDS), want)
    for i in range(3):
        np.testing.assert_allclose(model.read(TEXTS[i]), want[i : i + 1], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(model.read(IDS[i]), model.read(TEXTS[i]))


def test_reads_and_logits_are_those_of_the_decoder(model):
    states, logits = model.read(IDS), model.logits(IDS)
    one_a_text = model.read(IDS, positions=np.array([2, 0, 3]))
    for i, ids in enumerate(IDS):
        tokens = np.array([ids])
        want, want_logits = model.decoder.apply(model.params, tokens, len(ids) - 1, method="read")
        np.testing.assert_allclose(states[i], want[:, 0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(logits[i], want_logits[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one_a_text[:2], states[:2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.lens(IDS)[:, -1], logits, rtol=1e-4, atol=1e-4)


def test_edits_of_each_text_reach_its_own_row(model):
    theta = 3 * np.random.RandomState(0).standard_normal((3, D)).astype(np.float32)
    edit = edits.replace(theta, layer=np.array([0, 2, 4]), position=-1)
    together = model.logits(IDS, edits=edit)
    for i, ids in enumerate(IDS):
        alone = model.logits([ids], edits=edits.replace(theta[i], layer=[0, 2, 4][i], position=-1))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-5)
    triple = model.logits(IDS, edits=(1, np.array([2, 0, 6]), theta))
    same = model.logits(IDS, edits=edits.replace(theta, layer=1, position=-1))
    np.testing.assert_array_equal(triple, same)


def test_top_gives_the_likeliest_tokens_with_their_probabilities(model):
    logits = model.logits(TEXTS).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for row, best in zip(shares, model.top(TEXTS, V), strict=True):
        found = [share for _, share in best]
        np.testing.assert_allclose(found, np.sort(row)[::-1], rtol=1e-6)
        word, _ = best[0]
        assert word.strip() == model.tokenizer.decode([int(row.argmax())])
    assert [len(best) for best in model.top(TEXTS, 3)] == [3, 3, 3]


def test_generated_text_is_what_the_ids_say_without_the_prompt(model):
    ids = model.generate(TEXTS, max_new_tokens=8, return_ids=True)
    words = model.generate(TEXTS, max_new_tokens=8)
    for text, new in zip(words, ids, strict=True):
        assert text.split() == [f"w{i}" for i in new]
        assert V - 1 not in new


def test_a_stop_string_ends_a_text_before_it_and_leaves_the_others(model):
    words = model.generate(TEXTS, max_new_tokens=40)
    stop = " " + words[0].split()[2]
    stopped = model.generate(TEXTS, max_new_tokens=40, stop=stop)
    ids = model.generate(TEXTS, max_new_tokens=40, stop=[stop], return_ids=True)
    for before, after, new in zip(words, stopped, ids, strict=True):
        assert after == before.split(stop)[0]
        assert len(new) == len(after.split())
    assert len(stopped[0].split()) <= 2


def test_second_calls_trace_nothing(model, monkeypatch):
    edit = edits.add(np.ones(D), layer=1, position=-1)
    calls = [
        lambda n: model.read(IDS, positions=-n, edits=dataclasses.replace(edit, layer=np.int32(n))),
        lambda n: model.read(IDS, site="attn_out", layers=n),
        lambda n: model.logits(IDS, edits=edits.add(n * np.ones(D), layer=n, position=-1)),
        lambda n: model.top(IDS, n),
        lambda n: model.lens(IDS),
        lambda n: model.generate(IDS, max_new_tokens=4 + n),
        lambda n: model.sweep(IDS, n * np.ones((L, D)), answers=[n, n, [n, 0]]),
    ]
    for call in calls:
        call(1)
    traced = []
    for name in ("_run", "_logits", "_embed"):
        run = getattr(Decoder, name)
        monkeypatch.setattr(
            Decoder, name, lambda *a, run=run, **k: traced.append(1) or run(*a, **k)
        )
    texts = [[3, 3], *IDS[:2]]  # other texts of the same shape
    for call in calls:
        call(1)
    model.read(texts, positions=-1)
    model.logits(texts, edits=edits.add(np.zeros(D), layer=4, position=0))
    assert not traced


def test_a_sweep_is_a_loop_of_single_replacements(model):
    theta = np.random.RandomState(1).standard_normal((3, L, D)).astype(np.float32)
    answers = [4, [9, 30, 9], 130]
    swept = model.sweep(IDS, theta, answers=answers)
    assert swept.tokens.shape == swept.logprob.shape == (3, L)
    for layer in (-1, 0, 3, L - 1):
        edit = () if layer < 0 else edits.replace(theta[:, layer], layer=layer, position=-1)
        logits = model.logits(IDS, edits=edit).astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        right = [list(set(np.atleast_1d(ids))) for ids in answers]
        want = [np.log(row[ids].max()) for row, ids in zip(shares, right, strict=True)]
        tokens, found = swept.untouched, swept.untouched_logprob
        if layer >= 0:
            tokens, found = swept.tokens[:, layer], swept.logprob[:, layer]
        np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    records = swept.records()
    assert len(records) == 3 * (L + 1)
    assert records[1] == {
        "query": 0,
        "layer": 0,
        "token": int(swept.tokens[0, 0]),
        "logprob": float(swept.logprob[0, 0]),
    }


def test_a_sweep_takes_one_theta_for_all_queries_and_answers_as_words(model):
    theta = np.random.RandomState(2).standard_normal((L, D)).astype(np.float32)
    swept = model.sweep(TEXTS, theta, answers=[" w4", [" w9", " w30 w1"], 130])
    same = model.sweep(IDS, np.stack([theta] * 3), answers=[4, [9, 30], 130])
    np.testing.assert_array_equal(swept.tokens, same.tokens)
    np.testing.assert_array_equal(swept.logprob, same.logprob)
    without = model.sweep(IDS[0], theta)  # one query
    np.testing.assert_array_equal(without.tokens, swept.tokens[:1])
    assert without.logprob is None
    assert set(without.records()[0]) == {"query", "layer", "token"}


def test_closing_over_the_parameters_would_be_noticed(model):
    """So that the other tests say something: no verb bakes parameters into its program."""
    kernel = model.params["params"]["embed"]["embedding"]
    assert kernel.nbytes > 4000
    with pytest.warns(UserWarning, match="constant"):
        jax.jit(lambda x: kernel @ x).lower(np.ones(D, np.float32))


def test_a_model_is_shown_in_two_lines(model):
    shown = repr(model)
    assert shown.count("\n") == 1
    assert len(shown) < 300
    assert "llama" in shown


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.read([]), "no text"),
        (lambda m: m.read([[]]), "no text"),
        (lambda m: m.read([[131]]), "131 is out of range"),
        (lambda m: m.read(TEXTS, positions=np.array([0, 0])), "one a row"),
        (lambda m: m.read(TEXTS, positions=1), "row 1, which has 1 tokens"),
        (lambda m: m.read(TEXTS, site="mlp"), "site is 'mlp'"),
        (lambda m: m.top(TEXTS, 0), "k is 0"),
        (lambda m: m.sweep(TEXTS, np.zeros((L, D + 1))), r"theta has shape \(5, 43\)"),
        (lambda m: m.sweep(TEXTS, np.full((L, D), np.nan)), "written after layer 0"),
        (lambda m: m.sweep(TEXTS, np.zeros((L, D)), answers=[1, 2]), "2 answers for 3 queries"),
        (lambda m: m.sweep(TEXTS, np.zeros((L, D)), answers=[1, 2, V]), "131 is out of range"),
        (lambda m: m.sweep(TEXTS, np.zeros((L, D)), answers=[1, [], 2]), "one or more for each"),
        (lambda m: m.sweep("w5", np.zeros((L, D)), answers=""), "answer 0 is ''"),
        (lambda m: m.sweep(IDS, np.zeros((L, D)), answers=["w1", 1, 2]), "answer 0 is 'w1'"),
        (lambda m: m.generate(TEXTS, stop=""), "stop is ''"),
        (lambda m: m.logits(TEXTS, edits=7), "override is 7"),
    ],
)
def test_what_cannot_be_done_is_refused(model, call, message):
    with pytest.raises(TaskVecError, match=message):
        call(model)
