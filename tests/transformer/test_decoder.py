"""The decoder's properties, and its agreement with an independent float64 oracle."""

# Long because: every property of the decoder is tested on the same flavours.

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import LLAMA, TINY, logits_of, random_params, read_of
from slow import first_is_quick

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Override, flatten, leaf_shapes

TOKENS = np.array([[3, 17, 101, 5, 29, 64, 8], [90, 2, 2, 41, 77, 13, 120]], np.int32)
B, T = TOKENS.shape


def vector_for(config: DecoderConfig, rows: int | None = None) -> np.ndarray:
    shape = (config.width,) if rows is None else (rows, config.width)
    return np.random.RandomState(5).standard_normal(shape).astype(np.float32)


def test_logits_and_residuals_equal_the_float64_oracle(tiny):
    decoder, params = tiny
    last = np.array([6, 3])
    residuals, logits = read_of(decoder, params, TOKENS, last)
    full = logits_of(decoder, params, TOKENS)
    for row in range(B):
        want_residuals, want_logits = oracle.run(decoder.config, flatten(params), TOKENS[row])
        np.testing.assert_allclose(full[row], want_logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            residuals[:, row], want_residuals[:, last[row]], rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(logits[row], want_logits[last[row]], rtol=1e-5, atol=1e-5)


def test_overrides_equal_the_float64_oracle_at_every_layer(tiny):
    decoder, params = tiny
    vector = vector_for(decoder.config)
    for layer in range(decoder.config.num_layers):
        _, want = oracle.run(decoder.config, flatten(params), TOKENS[0], (layer, 4, vector))
        got = logits_of(decoder, params, TOKENS[:1], (layer, 4, vector))
        np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-5)


def test_injecting_own_residual_changes_nothing(tiny):
    decoder, params = tiny
    plain = logits_of(decoder, params, TOKENS)
    position = np.array([6, 2])
    own, _ = read_of(decoder, params, TOKENS, position)  # [L, B, D]
    for layer in range(decoder.config.num_layers):
        injected = logits_of(decoder, params, TOKENS, (layer, position, own[layer]))
        np.testing.assert_allclose(injected, plain, rtol=0, atol=1e-6)


def test_positions_before_the_override_are_untouched(tiny):
    decoder, params = tiny
    plain = logits_of(decoder, params, TOKENS)
    injected = logits_of(decoder, params, TOKENS, (1, 4, vector_for(decoder.config)))
    np.testing.assert_array_equal(injected[:, :4], plain[:, :4])
    assert (np.abs(injected[:, 4:] - plain[:, 4:]).max(axis=-1) > 1e-3).all()


def test_rows_have_their_own_layers_positions_and_vectors(tiny):
    decoder, params = tiny
    vectors = vector_for(decoder.config, B)
    layers, positions = np.array([0, 3]), np.array([5, 1])
    together = logits_of(decoder, params, TOKENS, Override(layers, positions, vectors))
    for row in range(B):
        alone = logits_of(
            decoder,
            params,
            TOKENS[row : row + 1],
            (int(layers[row]), int(positions[row]), vectors[row]),
        )
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5, atol=1e-5)


def test_after_the_last_layer_the_override_alone_sets_the_logits(tiny):
    decoder, params = tiny
    last_layer = decoder.config.num_layers - 1
    vector = vector_for(decoder.config)
    logits = logits_of(decoder, params, TOKENS, (last_layer, 3, vector))
    want = decoder.apply(params, jnp.asarray(vector), method="unembed")
    for row in range(B):
        np.testing.assert_allclose(logits[row, 3], want, rtol=1e-6, atol=1e-6)


def test_read_residuals_lead_to_the_logits(tiny):
    decoder, params = tiny
    residuals, logits = read_of(decoder, params, TOKENS, 6)
    chex.assert_shape(residuals, (decoder.config.num_layers, B, decoder.config.width))
    want = decoder.apply(params, residuals[-1], method="unembed")
    np.testing.assert_allclose(logits, want, rtol=1e-6, atol=1e-6)


def test_reading_sees_the_override(tiny):
    decoder, params = tiny
    vector = vector_for(decoder.config)
    residuals, _ = read_of(decoder, params, TOKENS, 6, (2, 6, vector))
    plain, _ = read_of(decoder, params, TOKENS, 6)
    np.testing.assert_array_equal(residuals[:2], plain[:2])
    np.testing.assert_array_equal(residuals[2], np.broadcast_to(vector, (B, len(vector))))


def test_padding_batch_size_and_row_order_change_nothing(tiny):
    decoder, params = tiny
    plain = logits_of(decoder, params, TOKENS)
    padded = np.concatenate([TOKENS, np.full((B, 9), 1, np.int32)], axis=1)
    np.testing.assert_allclose(
        logits_of(decoder, params, padded)[:, :T], plain, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        logits_of(decoder, params, TOKENS[::-1])[::-1], plain, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        logits_of(decoder, params, TOKENS[1:])[0], plain[1], rtol=1e-5, atol=1e-5
    )


def test_one_compilation_serves_all_layers_positions_and_vectors(tiny):
    decoder, params = tiny
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(layer, position, vector):
        return decoder.apply(params, TOKENS, (layer, position, vector))

    for layer in range(decoder.config.num_layers):
        run(layer, layer % T, vector_for(decoder.config) + layer)


def test_without_an_override_the_trace_has_no_select_and_no_scatter(tiny):
    decoder, params = tiny
    vector = vector_for(decoder.config)
    plain = str(jax.make_jaxpr(lambda: decoder.apply(params, TOKENS))())
    written = str(jax.make_jaxpr(lambda: decoder.apply(params, TOKENS, (0, 0, vector)))())
    assert "scatter" in written
    assert "scatter" not in plain
    # What is left: the range check of the embedding lookup, and attention's mask.
    assert plain.count("select_n") == 2
    assert written.count("select_n") > 2


def test_vmap_over_overrides_equals_a_loop(tiny):
    decoder, params = tiny
    layers = jnp.arange(decoder.config.num_layers)
    vectors = jax.random.normal(jax.random.key(1), (len(layers), decoder.config.width))
    swept = jax.vmap(lambda i, v: decoder.apply(params, TOKENS, (i, 5, v)))(layers, vectors)
    for layer in range(len(layers)):
        alone = logits_of(decoder, params, TOKENS, (layer, 5, vectors[layer]))
        np.testing.assert_allclose(swept[layer], alone, rtol=1e-5, atol=1e-5)


def test_gradient_through_the_override_matches_finite_differences():
    with jax.enable_x64(True):
        config = dataclasses.replace(LLAMA, dtype="float64")
        decoder, params = Decoder(config), random_params(config)
        vector = jax.random.normal(jax.random.key(2), (config.width,), jnp.float64)
        direction = jax.random.normal(jax.random.key(3), (config.width,), jnp.float64)

        @jax.jit
        def loss(v):
            logits = decoder.apply(params, TOKENS[:1], (1, 4, v))
            return jax.nn.logsumexp(logits[0, -1]) - logits[0, -1, 7]

        step = 1e-5
        slope = (loss(vector + step * direction) - loss(vector - step * direction)) / (2 * step)
        np.testing.assert_allclose(jax.grad(loss)(vector) @ direction, slope, rtol=1e-7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ((5, 0, "v"), "override layer 5 is out of range; allowed: 0 to 4"),
        ((-1, 0, "v"), "override layer -1 is out of range"),
        ((0, 7, "v"), "override position 7 is out of range; allowed: 0 to 6"),
        ((np.array([0, 9]), 0, "v"), "override layer 9"),
        ((0, np.array([1, 2, 3]), "v"), "one a row"),
        ((0.5, 0, "v"), "whole number"),
        ((0, 0, np.zeros(41)), "width of this model"),
        ((0, 0), "triple"),
        (7, "triple"),
    ],
)
def test_a_bad_override_is_refused_by_name(override, message):
    decoder, params = Decoder(LLAMA), random_params(LLAMA)
    if isinstance(override, tuple) and len(override) == 3 and isinstance(override[2], str):
        override = (*override[:2], np.zeros(LLAMA.width))
    with pytest.raises(TaskVecError, match=message):
        decoder.apply(params, TOKENS, override)


def test_a_traced_override_out_of_range_cannot_pass_for_an_unchanged_model():
    decoder, params = Decoder(LLAMA), random_params(LLAMA)
    vector = np.zeros(LLAMA.width)
    run = jax.jit(lambda layer, position: decoder.apply(params, TOKENS, (layer, position, vector)))
    assert np.isfinite(run(0, 0)).all()
    for layer, position in ((5, 0), (-1, 0), (0, 7), (0, -1)):
        assert np.isnan(run(layer, position)).all()


def test_a_traced_read_position_out_of_range_reads_nan_and_no_neighbour():
    decoder, params = Decoder(LLAMA), random_params(LLAMA)

    @jax.jit
    def read(positions):
        return decoder.apply(params, TOKENS, positions, method="read")

    residuals, logits = read(np.array([6, 2]))
    assert np.isfinite(residuals).all()
    assert np.isfinite(logits).all()
    for outside in (7, 99, -1):
        residuals, logits = read(np.array([6, outside]))
        assert np.isnan(residuals[:, 1]).all()
        assert np.isfinite(residuals[:, 0]).all()
        assert np.isnan(logits[1]).all()
        assert np.isfinite(logits[0]).all()


def test_a_traced_token_id_out_of_range_makes_its_row_nan():
    decoder, params = Decoder(LLAMA), random_params(LLAMA)
    for outside in (-1, -LLAMA.vocab_size, LLAMA.vocab_size, 2**31 - 1):
        tokens = TOKENS.copy()
        tokens[1, 3] = outside
        logits = logits_of(decoder, params, tokens)
        assert np.isnan(logits[1]).all()
        assert np.isfinite(logits[0]).all()
        embedded = jax.jit(lambda t: decoder.apply(params, t, method="embed"))(tokens[1])
        assert np.isnan(embedded).all(axis=-1).tolist() == [i == 3 for i in range(T)]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[3, -1, 5]], "token id -1 is out of range; allowed: 0 to 130"),
        ([[3, 131, 5]], "token id 131 is out of range"),
        ([3, 1, 5], r"tokens have shape \(3,\); allowed: \(rows, tokens in a row\)"),
        ([[3], [1, 5]], "different lengths; pad them"),
        ([[3.0, 1.0]], "they must be whole numbers"),
        ([["a", "b"]], "they must be whole numbers"),
        (np.ones((2, 98), int), "98 tokens in a text; this model reads at most 97"),
        (np.zeros((2, 0), int), r"tokens have shape \(2, 0\)"),
    ],
)
def test_tokens_that_cannot_be_read_are_refused_by_name(tokens, message):
    decoder, params = Decoder(LLAMA), random_params(LLAMA)
    with pytest.raises(TaskVecError, match=message):
        decoder.apply(params, tokens)
    with pytest.raises(TaskVecError, match=message):
        decoder.apply(params, tokens, 0, method="read")


def test_lists_of_ids_are_tokens_too():
    decoder, params = Decoder(LLAMA), random_params(LLAMA)
    np.testing.assert_array_equal(
        decoder.apply(params, TOKENS.tolist()), decoder.apply(params, TOKENS)
    )


def test_bare_tuples_lists_and_numpy_integers_are_welcome():
    decoder, params = Decoder(LLAMA), random_params(LLAMA)
    vector = vector_for(LLAMA)
    want = decoder.apply(params, TOKENS, Override(jnp.int32(2), jnp.int32(3), jnp.asarray(vector)))
    for override in ((2, 3, vector), (np.int64(2), [3, 3], vector.tolist()), [2, 3, vector]):
        np.testing.assert_array_equal(decoder.apply(params, TOKENS, override), want)


@pytest.mark.parametrize("name", TINY)
def test_parameter_tree_has_the_documented_names_and_shapes(name):
    c = TINY[name]
    shapes = leaf_shapes(c)
    L, D, H, G, K, F, V = (
        c.num_layers,
        c.width,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        c.mlp_width,
        c.vocab_size,
    )
    expected = {
        "embed/embedding": (V, D),
        "layers/attn_norm/scale": (L, D),
        "layers/attn/query/kernel": (L, D, H, K),
        "layers/attn/key/kernel": (L, D, G, K),
        "layers/attn/value/kernel": (L, D, G, K),
        "layers/attn/out/kernel": (L, H, K, D),
        "layers/mlp_norm/scale": (L, D),
        "layers/mlp/up/kernel": (L, D, F),
        "layers/mlp/down/kernel": (L, F, D),
        "final_norm/scale": (D,),
    }
    assert {path: shapes[path] for path in expected} == expected
    assert ("unembed/kernel" in shapes) is not c.tied_unembed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "bert"}, "family is 'bert'; allowed: gemma, gemma2"),
        ({"num_kv_heads": 4}, "does not divide"),
        ({"rope_dim": 13}, "must be even"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"attention_softcap": 0.0}, "attention_softcap is 0.0; it must be above 0"),
        ({"window_layers": (True,), "sliding_window": 4}, "a bool for each of 5 layers"),
        ({"window_rope_base": 5.0}, "window_rope_base needs window_layers"),
        ({"learned_positions": True}, "or 0 with learned positions"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_an_impossible_config_is_refused(change, message):
    with pytest.raises(TaskVecError, match=message):
        dataclasses.replace(LLAMA, **change)


@pytest.mark.parametrize("dtype", first_is_quick(["bfloat16", "float16"]))
def test_half_precision_stays_close_and_its_residual_stream_is_float32(dtype):
    for config in (LLAMA, TINY["pythia-parallel"]):
        params = random_params(config)
        half = dataclasses.replace(config, dtype=dtype)
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        residuals, logits = Decoder(half).apply(cast, TOKENS, 6, method="read")
        want, _ = Decoder(config).apply(params, TOKENS, 6, method="read")
        assert residuals.dtype == logits.dtype == jnp.float32
        error = np.linalg.norm(residuals - want) / np.linalg.norm(want)
        assert error < (0.03 if dtype == "bfloat16" else 0.004)
