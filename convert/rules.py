"""Conversion as data: a table of rules, applied from a source to our tree and back.

A rule ties one source tensor of a layer (or of the whole model) to the leaves it fills. Every
source tensor must be used exactly once and every leaf filled exactly once; all mismatches of a
model are collected and reported in one message.

Shapes: L layers, D width, H heads, G key/value heads, K head size, F MLP width, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from taskvec_jax.config import DecoderConfig
from taskvec_jax.decoder import leaf_shapes, unflatten
from taskvec_jax.errors import TaskVecError

Shapes = Mapping[str, tuple[int, ...]]
Split = Callable[[DecoderConfig, np.ndarray], tuple[np.ndarray, ...]]
Join = Callable[..., np.ndarray]  # (config, *leaves) -> source tensor


class Rule(NamedTuple):
    """One source tensor and the leaves it fills.

    Attributes:
      source: its name; `{layer}` stands for the 0-based layer.
      leaves: paths in our tree, without the leading "params/"; those under "layers/" are stacked.
      split: source tensor -> one array a leaf (without the leading L).
      join: one array a leaf -> source tensor, the inverse of `split`.
    """

    source: str
    leaves: tuple[str, ...]
    split: Split
    join: Join


class Source(Protocol):
    """Named tensors that can be read one at a time."""

    @property
    def where(self) -> str:
        """The file or directory, for messages."""
        ...

    def shapes(self) -> Shapes:
        """Name -> shape of every tensor, without reading any."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised, in the dtype it is stored in."""
        ...


def same(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    del config
    return (x,)


def unsame(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    del config
    return x


def transposed(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[out, in] -> [in, out]."""
    del config
    return (x.T,)


def untransposed(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    del config
    return x.T


def heads_out(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[heads * K, D] -> [D, heads, K]."""
    return (x.T.reshape(x.shape[1], -1, config.head_dim),)


def unheads_out(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    del config
    return x.reshape(x.shape[0], -1).T


def heads_in(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[D, H * K] -> [H, K, D]."""
    return (x.T.reshape(-1, config.head_dim, x.shape[0]),)


def unheads_in(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    del config
    return x.reshape(-1, x.shape[-1]).T


def heads_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[heads * K] -> [heads, K]."""
    return (x.reshape(-1, config.head_dim),)


def unheads_bias(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    del config
    return x.reshape(-1)


def _layers(rule: Rule, config: DecoderConfig) -> Iterable[int | None]:
    return range(config.num_layers) if "{layer}" in rule.source else [None]


def to_tree(
    table: tuple[Rule, ...],
    config: DecoderConfig,
    source: Source,
    *,
    ignored: re.Pattern[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Reads a source into our parameter tree, one tensor at a time.

    Args:
      table: the rules of this family and format.
      config: shapes the tree must have, and the dtype it is cast to.
      source: where tensors come from.
      ignored: source names that carry no weights (buffers written by old releases).
      progress: called with (tensors done, tensors in all).

    Returns:
      {"params": nested dict of NumPy arrays in `config.dtype`}.

    Raises:
      TaskVecError: missing, unknown or mis-shaped tensors (all in one message), or a tensor that
        is not finite.
    """
    wanted = leaf_shapes(config)
    rules = [rule for rule in table if all(leaf in wanted for leaf in rule.leaves)]
    filled = [leaf for rule in rules for leaf in rule.leaves]
    if sorted(filled) != sorted(wanted):
        raise TaskVecError(
            f"{source.where}: the conversion table does not fill every leaf once:"
            f" {sorted(set(wanted) ^ set(filled))}"
        )
    plan = {
        rule.source.format(layer=layer): (rule, layer)
        for rule in rules
        for layer in _layers(rule, config)
    }
    present = {name: shape for name, shape in source.shapes().items() if not ignored.search(name)}
    problems = [f"missing {name}" for name in plan if name not in present]
    problems += [f"unknown {name} {present[name]}" for name in present if name not in plan]
    for name in plan.keys() & present.keys():
        rule, layer = plan[name]
        shapes = [wanted[leaf][layer is not None :] for leaf in rule.leaves]
        blanks = [np.broadcast_to(np.int8(0), shape) for shape in shapes]
        expected = np.shape(rule.join(config, *blanks))
        if expected != tuple(present[name]):
            problems.append(f"{name} has shape {tuple(present[name])}, expected {expected}")
    if problems:
        shown = "; ".join(problems[:12]) + (
            f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        )
        raise TaskVecError(
            f"{source.where}: the weights do not match the configuration: {shown}."
            " Check that the config belongs to these weights and that the download is complete"
        )

    dtype = jnp.dtype(config.dtype)
    leaves = {path: np.empty(shape, dtype) for path, shape in wanted.items()}
    for done, (name, (rule, layer)) in enumerate(plan.items(), start=1):
        tensor = source.read(name)
        if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
            raise TaskVecError(
                f"{source.where}: tensor {name} has values that are not finite;"
                " the file is damaged, fetch it again"
            )
        for path, part in zip(rule.leaves, rule.split(config, tensor), strict=True):
            if layer is None:
                leaves[path][...] = part
            else:
                leaves[path][layer] = part
        progress(done, len(plan))
    return unflatten(leaves)
