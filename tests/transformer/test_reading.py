"""Reads at every site: against transformers' hooks, and against each other."""

from __future__ import annotations

import functools

import hooks
import jax
import numpy as np
import pytest
from conftest import LLAMA, random_params

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer import edits
from taskvec_jax.transformer.reading import READABLE, read_sites

TOKENS = np.array([[3, 17, 88, 5, 29, 64, 8], [90, 2, 2, 41, 77, 13, 99]], np.int32)
LENGTHS = np.array([7, 4], np.int32)
B, T = TOKENS.shape


@pytest.mark.parametrize("family", hooks.BLOCKS)
def test_every_site_of_every_family_is_what_a_hook_of_transformers_sees(family):
    reference, model = hooks.pair(family)
    c = model.config
    want = hooks.read_all(reference, c.num_heads, TOKENS)
    assert want.keys() == set(READABLE)
    for site in READABLE:
        got = read_sites(c, model.params, TOKENS, site=site, positions="all")
        hooks.assert_close(got, want[site])


@functools.cache
def params():
    return random_params(LLAMA)


def read(**choice):
    return np.asarray(read_sites(LLAMA, params(), TOKENS, LENGTHS, **choice))


@pytest.fixture(scope="module")
def everything():
    return {site: read(site=site, positions="all") for site in READABLE}


@pytest.mark.parametrize("site", READABLE)
def test_a_choice_of_layers_and_positions_is_a_slice_of_everything(site, everything):
    whole = everything[site]  # [B, T, L, ...]
    row = np.arange(B)
    several = read(site=site, layers=[3, 1, 3], positions=[-1, 0])
    want = np.stack([whole[row, LENGTHS - 1], whole[:, 0]], axis=1)[:, :, [3, 1, 3]]
    np.testing.assert_allclose(several, want, rtol=1e-6, atol=1e-6)
    one_a_row = read(site=site, layers=2, positions=np.array([5, 1]))
    np.testing.assert_allclose(one_a_row, whole[row, [5, 1]][:, [2]], rtol=1e-6, atol=1e-6)


def test_all_positions_are_nan_beyond_the_end_of_a_row_and_nowhere_else(everything):
    for site, values in everything.items():
        assert np.isfinite(values[0]).all(), site
        assert np.isfinite(values[1, :4]).all(), site
        assert np.isnan(values[1, 4:]).all(), site


def test_a_pattern_is_a_distribution_over_earlier_tokens(everything):
    pattern = everything["pattern"][0]  # [T, L, H, T]
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-5)
    for t in range(T):
        assert (pattern[t, ..., t + 1 :] == 0).all()


def test_what_is_read_holds_the_edit():
    vector = np.arange(LLAMA.width, dtype=np.float32)
    edit = edits.replace(vector, layer=1, position=-1, site="mlp_out")
    got = read(site="mlp_out", layers=[1], edits=edit)
    np.testing.assert_array_equal(got[:, 0], np.stack([vector, vector]))


def test_layers_that_are_not_asked_for_are_not_kept():
    """No array of the compiled program holds all positions of all layers."""
    L, D = LLAMA.num_layers, LLAMA.width
    one = jax.make_jaxpr(
        lambda p: read_sites(LLAMA, p, TOKENS, LENGTHS, layers=[2], positions="all")
    )(params())
    point = jax.make_jaxpr(lambda p: read_sites(LLAMA, p, TOKENS, LENGTHS))(params())
    everything = jax.make_jaxpr(lambda p: read_sites(LLAMA, p, TOKENS, LENGTHS, positions="all"))(
        params()
    )
    shape = f"f32[{L},{B},{T},{D}]"
    assert shape in str(everything)
    assert shape not in str(one)
    assert shape not in str(point)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"site": "mlp"}, "site is 'mlp'; allowed: resid, attn_out, mlp_out, head, pattern"),
        ({"layers": 5}, "layers 5 is out of range; allowed: 0 to 4"),
        ({"layers": [0, -1]}, "layers -1 is out of range"),
        ({"positions": 7}, "positions 7 is out of range in row 0"),
        ({"positions": 5}, "positions 5 is out of range in row 1, which has 4 tokens"),
        ({"positions": [0, -5]}, "positions -5 is out of range in row 1"),
        ({"positions": np.array([1, 2, 3])}, "one a row"),
        ({"positions": 0.5}, "whole number"),
        ({"layers": []}, "empty"),
    ],
)
def test_a_bad_choice_is_refused_by_name(choice, message):
    with pytest.raises(TaskVecError, match=message):
        read(**choice)


def test_traced_choices_that_are_out_of_range_read_as_nan():

    @jax.jit
    def run(layer, position):
        return read_sites(LLAMA, params(), TOKENS, LENGTHS, layers=layer, positions=position)

    assert np.isfinite(run(4, -4)).all()
    assert np.isnan(run(5, -1)).all()
    assert np.isnan(run(-1, -1)).all()
    beyond = run(0, 5)
    assert np.isfinite(beyond[0]).all()
    assert np.isnan(beyond[1]).all()
