"""Four-bit weights: what is lost is the rounding of kernels in groups, and nothing else changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA, logits_of, random_params

from taskvec_jax.distributed.plan import weight_bytes
from taskvec_jax.distributed.sharding import split_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.generating import generate
from taskvec_jax.models.registry import NAMED_MODELS
from taskvec_jax.transformer.decoder import Decoder, flatten, leaf_types, unflatten
from taskvec_jax.transformer.linear import group_size, pack, unpack
from taskvec_jax.transformer.quantization import (
    input_axes,
    quantize,
    quantize_kernel_4,
    quantized,
)

TOKENS = np.array([[3, 17, 101, 5, 29, 64, 8], [90, 2, 2, 41, 77, 13, 120]], np.int32)
CONFIG = dataclasses.replace(LLAMA, width=80, mlp_width=96, num_layers=2, tied_unembed=False)


def dequantized(leaves: dict[str, Any]) -> dict[str, Any]:
    """The kernels that an int4 tree stands for, number by number."""
    out = {}
    for path, leaf in leaves.items():
        if path.endswith("kernel_scale"):
            continue
        if quantized(path):
            axis = int(path.startswith("layers/")) + input_axes(path) - 1
            packed = np.moveaxis(np.asarray(leaf), axis, 0)
            scale = np.moveaxis(np.asarray(leaves[path + "_scale"], np.float32), axis, 0)
            numbers = np.zeros((2 * len(packed), *packed.shape[1:]), np.float32)
            numbers[::2], numbers[1::2] = packed % 16 - 8.0, packed // 16 - 8.0
            size = len(numbers) // len(scale)
            for i in range(len(numbers)):
                numbers[i] *= scale[i // size]
            leaf = np.moveaxis(numbers, 0, axis)
        out[path] = leaf
    return out


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any, Any]:
    params = random_params(CONFIG)
    return params, *quantize(CONFIG, params, "int4")


def test_an_int4_decoder_is_the_decoder_of_the_rounded_weights(both: tuple[Any, Any, Any]) -> None:
    params, config, small = both
    rounded = dequantized(flatten(small))
    want = logits_of(Decoder(CONFIG), unflatten(rounded), TOKENS)
    got = logits_of(Decoder(config), small, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    whole = logits_of(Decoder(CONFIG), params, TOKENS)
    assert 0 < np.linalg.norm(want - whole) / np.linalg.norm(whole) < 0.3


def test_a_group_loses_no_more_than_with_the_scale_of_its_largest_weight(
    both: tuple[Any, Any, Any],
) -> None:
    params, config, small = both
    leaves = flatten(small)
    types = {path: (leaf.shape, leaf.dtype) for path, leaf in leaf_types(config).items()}
    assert types == {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    for path, kernel in dequantized(leaves).items():
        exact = np.asarray(flatten(params)[path])
        if not quantized(path):
            np.testing.assert_array_equal(kernel, exact)
            continue
        axis = int(path.startswith("layers/")) + input_axes(path) - 1
        groups = leaves[path + "_scale"].shape[axis]
        shape = (*exact.shape[:axis], groups, -1, *exact.shape[axis + 1 :])
        exact, kernel = exact.reshape(shape), kernel.reshape(shape)
        step = np.abs(exact).max(axis + 1, keepdims=True) / 7
        step = np.asarray(step.astype(jnp.bfloat16), np.float32)
        plain = np.clip(np.round(exact / step), -8, 7) * step
        lost, before = (((x - exact) ** 2).sum(axis + 1) for x in (kernel, plain))
        assert (lost <= before * (1 + 1e-4)).all(), path
        assert lost.mean() < 0.85 * before.mean(), path


def test_a_group_of_zeros_and_one_of_a_single_weight_are_kept() -> None:
    kernel = np.zeros((64, 3), np.float32)
    kernel[40, 1], kernel[50, 2] = 0.5, -2.0
    packed, scale = quantize_kernel_4(jnp.asarray(kernel), 1)
    numbers = np.asarray(unpack(packed, 0), np.float32).reshape(2, 32, 3)
    got = (numbers * np.asarray(scale, np.float32)[:, None]).reshape(64, 3)
    np.testing.assert_allclose(got, kernel, rtol=1e-2, atol=0)


def test_the_tree_takes_the_bytes_that_are_planned_a_little_over_4_bits_a_weight(
    both: tuple[Any, Any, Any],
) -> None:
    _, config, small = both
    held = sum(leaf.nbytes for leaf in flatten(small).values())
    assert held == weight_bytes(config, config.dtype)
    for name in ("llama-7b", "qwen2.5-7b"):
        large = NAMED_MODELS[name].config
        embedding = 2 * large.vocab_size * large.width
        kernels = weight_bytes(large, "bfloat16") - embedding
        assert (weight_bytes(large, "int4") - embedding) / kernels < 0.285  # 4.5 bits of 16


def test_generation_with_int4_weights_is_that_of_the_rounded_ones(
    both: tuple[Any, Any, Any],
) -> None:
    _, config, small = both
    rounded = unflatten({k: jnp.asarray(v) for k, v in dequantized(flatten(small)).items()})
    prompts = [[3, 5, 8], [9]]
    got = generate(config, small, prompts, max_new_tokens=5)
    assert got == generate(CONFIG, rounded, prompts, max_new_tokens=5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_packing_is_undone_by_unpacking(axis: int) -> None:
    numbers = np.random.RandomState(0).randint(-8, 8, (4, 6, 2)).astype(np.int8)
    packed = pack(jnp.asarray(numbers), axis)
    assert packed.nbytes == numbers.nbytes // 2
    np.testing.assert_array_equal(unpack(packed, axis), numbers)


def test_groups_divide_the_inputs() -> None:
    sizes = {64: 32, 128: 32, 576: 32, 896: 32, 80: 20, 14: 14, 106: 106}
    assert {inputs: group_size(inputs) for inputs in sizes} == sizes


def test_scales_are_split_as_their_kernels_are_where_their_groups_divide() -> None:
    config = dataclasses.replace(NAMED_MODELS["llama-7b"].config, quantization="int4")
    types = leaf_types(config)
    for path in types:
        if path.endswith("kernel"):
            kernel, scale = (
                split_of(config, at, types[at].shape, 8) for at in (path, path + "_scale")
            )
            assert kernel is not None
            assert scale is not None
            assert kernel.axis == scale.axis, path
            assert scale.over.items() <= kernel.over.items(), path
            assert kernel.shards <= 2 * scale.shards, path


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(TaskVecError, match=r"int4 packs inputs in pairs, and .* mlp_width 53"):
        dataclasses.replace(LLAMA, quantization="int4")
