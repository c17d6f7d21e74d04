"""Int8 weights: what is lost is the rounding of kernels, and nothing else changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import hf
import jax
import numpy as np
import pytest
from conftest import LLAMA, PYTHIA, TINY, logits_of, model_of, random_params, read_of
from slow import first_is_quick
from tiny_checkpoint import save_tiny

from taskvec_jax.distributed.plan import plan_lines, sweep_bytes, weight_bytes
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import NAMED_MODELS
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Override, flatten, leaf_types, unflatten
from taskvec_jax.transformer.quantization import input_axes, quantize, quantize_kernel, quantized
from taskvec_jax.vectors import sweep

TOKENS = np.array([[3, 17, 101, 5, 29, 64, 8], [90, 2, 2, 41, 77, 13, 120]], np.int32)
GPTJ = dataclasses.replace(
    PYTHIA, family="gptj", attention_bias=False, unembed_bias=True, num_layers=3
)
ALL = {name: TINY[name] for name in ("pythia-parallel", "llama-grouped-tied")} | {"gptj": GPTJ}


def in_axes(path: str) -> tuple[int, ...]:
    """The axes of a kernel in the tree that are summed over."""
    stacked = int(path.startswith("layers/"))
    return tuple(range(stacked, stacked + input_axes(path)))


def dequantized(leaves: dict[str, Any]) -> dict[str, Any]:
    """The kernels that an int8 tree stands for."""
    out = {}
    for path, leaf in leaves.items():
        if path.endswith("kernel_scale"):
            continue
        if quantized(path):
            scale = np.expand_dims(np.asarray(leaves[path + "_scale"]), in_axes(path))
            leaf = np.float32(leaf) * scale
        out[path] = leaf
    return out


@pytest.fixture(params=first_is_quick(ALL, 2), scope="module")
def both(request) -> tuple[DecoderConfig, Any, DecoderConfig, Any]:
    """A decoder of each family, whole and in int8."""
    config = ALL[request.param]
    params = random_params(config)
    return config, params, *quantize(config, params)


def test_no_weight_moves_by_more_than_half_a_step_and_the_rest_not_at_all(both):
    _, params, config, small = both
    whole, leaves = flatten(params), flatten(small)
    for path, kernel in dequantized(leaves).items():
        if not quantized(path):
            np.testing.assert_array_equal(kernel, whole[path])
            continue
        step = np.expand_dims(np.asarray(leaves[path + "_scale"]), in_axes(path))
        assert (np.abs(whole[path] - kernel) <= step / 2 * (1 + 1e-4)).all()
        used = np.abs(np.int32(leaves[path])).max(axis=in_axes(path))
        assert (used == 127).all(), "a channel has range unused"
    types = {path: (leaf.shape, leaf.dtype) for path, leaf in leaf_types(config).items()}
    assert types == {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def test_an_int8_decoder_is_the_decoder_of_the_rounded_weights(both):
    whole, _, config, small = both
    rounded = unflatten(dequantized(flatten(small)))
    want = logits_of(Decoder(whole), rounded, TOKENS)
    got = logits_of(Decoder(config), small, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_logits_stay_close_to_the_whole_weights(both):
    whole, params, config, small = both
    want = logits_of(Decoder(whole), params, TOKENS)
    got = logits_of(Decoder(config), small, TOKENS)
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.03


def test_in_int8_too_an_override_of_its_own_residual_changes_nothing(both):
    _, _, config, small = both
    decoder, last = Decoder(config), np.array([6, 3])
    residuals, logits = read_of(decoder, small, TOKENS, last)
    for layer in (0, config.num_layers - 1):
        own = Override(np.int32(layer), last, residuals[layer])
        np.testing.assert_array_equal(read_of(decoder, small, TOKENS, last, own)[1], logits)
        other = Override(np.int32(layer), last, -residuals[layer])
        assert (read_of(decoder, small, TOKENS, last, other)[1] != logits).any(axis=-1).all()


def test_the_sweep_in_int8_equals_that_of_the_rounded_weights(both, tokenizer):
    whole, _, config, small = both
    if whole.family == "pythia":
        return  # the blocks of the other two hold every part of it
    rng = np.random.RandomState(4)
    queries = [rng.randint(0, whole.vocab_size, n).tolist() for n in (4, 3, 4)]
    theta = rng.standard_normal((3, whole.num_layers, whole.width)).astype(np.float32)

    def swept(config: DecoderConfig, params: Any) -> sweep.Answers:
        model = Model("tiny", Decoder(config), params, tokenizer, config, "none")
        return sweep.sweep_layers(model, queries, theta, 3)

    got = swept(config, small)
    want = swept(whole, unflatten(dequantized(flatten(small))))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.logits, want.logits, rtol=1e-5, atol=1e-5)


def test_a_channel_of_zeros_stays_one():
    kernel, scale = quantize_kernel(np.array([[0.0, 1.0], [0.0, -3.0]], np.float32), 1)
    np.testing.assert_array_equal(kernel, [[0, 42], [0, -127]])
    assert np.isfinite(scale).all()


def test_int8_kernels_go_with_half_precision():
    dtype = "bfloat16"
    config, params = dataclasses.replace(LLAMA, dtype=dtype), random_params(LLAMA)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    small_config, small = quantize(config, params)
    want = logits_of(Decoder(config), params, TOKENS)
    got = logits_of(Decoder(small_config), small, TOKENS)
    assert got.dtype == np.float32
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.05


def test_the_tree_takes_the_bytes_that_are_planned(both):
    _, _, config, small = both
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(small))
    assert held == weight_bytes(config, config.dtype)


def test_7b_sweeps_on_16_gb_and_30b_on_80_in_int8():
    for name, size in (("llama-7b", 16), ("llama-30b", 80)):
        config = NAMED_MODELS[name].config
        int8 = dataclasses.replace(config, dtype="bfloat16", quantization="int8")
        assert weight_bytes(config, "int8") == weight_bytes(int8, "bfloat16")
        assert weight_bytes(config, "int8") < 0.53 * weight_bytes(config, "bfloat16")
        assert weight_bytes(config, "int8") + sweep_bytes(int8) < size * 1e9
        line = next(line for line in plan_lines(*describe(name)) if line.startswith(f"1 x {size}"))
        assert "int8" in line
        assert line.endswith(", fits")


def test_loading_quantises_converted_and_foreign_weights_alike(tmp_path, tokenizer):
    model = load_model(save_tiny(tmp_path / "ours", tokenizer), quantization="int8")
    restored = checkpoint.restore(tmp_path / "ours")
    config, params = quantize(restored.config, restored.params)
    assert model.config == config
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(model.params)[path], leaf)
    directory = hf.save(hf.random_model(hf.gptj()), tmp_path / "hf")
    foreign, whole = load_model(directory, quantization="int8"), load_model(directory)
    want = flatten(quantize(whole.config, whole.params)[1])
    assert flatten(foreign.params).keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(flatten(foreign.params)[path], leaf)


def test_unknown_weights_are_refused(tokenizer):
    with pytest.raises(TaskVecError, match="quantization is 'int2'; allowed: none, int8, int4"):
        load_model("smollm2-135m-instruct", quantization="int2")
    with pytest.raises(TaskVecError, match="quantization is 'int2'"):
        model_of(dataclasses.replace(LLAMA, quantization="int2"), tokenizer)
