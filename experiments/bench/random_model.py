"""Models of a known shape with random weights."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from taskvec_jax.distributed.plan import in_precision
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS
from taskvec_jax.transformer.decoder import Decoder, leaf_shapes, unflatten
from taskvec_jax.transformer.quantization import quantize_leaf


def random_model(name: str, dtype: str, num_layers: int | None = None) -> Model:
    """A model's shape with random weights, and the default model's tokenizer.

    Args:
      name: a known name, or the path of a model, of which only the shape is read.
      dtype: of the parameters; "int8": int8 kernels and the rest in bfloat16.

    Raises:
      TaskVecError: no such name and no such path.
    """
    check_shape(name)
    tokenizer = load_model(DEFAULT_MODEL, "bfloat16").tokenizer
    known = describe(name)[1]
    final = in_precision(known, dtype)
    config = dataclasses.replace(
        final,
        quantization="none",
        vocab_size=max(known.vocab_size, tokenizer.vocab_size),
        num_layers=num_layers or known.num_layers,
    )

    @functools.partial(jax.jit, static_argnums=(1,))
    def leaf(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(rng, shape, jnp.dtype(config.dtype))

    shapes = leaf_shapes(config)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves: dict[str, jax.Array] = {}
    for key, (path, shape) in zip(keys, shapes.items(), strict=True):
        whole = jnp.ones(shape, config.dtype) if path.endswith("scale") else leaf(key, shape)
        leaves |= quantize_leaf(path, whole, final.quantization)
    config = dataclasses.replace(config, quantization=final.quantization)
    return Model(f"random {name}", Decoder(config), unflatten(leaves), tokenizer, config, "random")


def check_shape(name: str) -> None:
    """Refuses a --shape that is neither a known name nor a path.

    Raises:
      TaskVecError: it is neither.
    """
    if name not in NAMED_MODELS and not Path(name).exists():
        raise TaskVecError(f"--shape={name}; allowed: a path, or {', '.join(NAMED_MODELS)}")
