"""Conversion as data: a table of rules, applied from a source to our tree and back.

A rule ties one source tensor of a layer (or of the whole model) to the leaves it fills. Every
source tensor must be used exactly once and every leaf filled exactly once; all mismatches of a
model are collected and reported in one message.

Shapes: L layers, D width, H heads, G key/value heads, K head size, F MLP width, V vocabulary.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Params, flatten, leaf_shapes, unflatten

Shapes = Mapping[str, tuple[int, ...]]
Split = Callable[[DecoderConfig, np.ndarray], tuple[np.ndarray, ...]]
Join = Callable[..., np.ndarray]  # (config, *leaves) -> source tensor
Place = Callable[[str, np.ndarray], Any]  # (leaf path, host array) -> the array that is kept
Share = Callable[[str, tuple[int, ...]], tuple[slice, ...]]  # (leaf path, shape) -> what is wanted
SHOWN_PROBLEMS = 12
TILE = 256  # rows and columns copied together
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all ones: infinite, or not a number
CHUNK = 1 << 20  # numbers looked at together, so that a look costs no memory to speak of


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

    def dtypes(self) -> Mapping[str, str]:
        """Name -> NumPy's name of the dtype that `read` gives."""
        ...

    def check_used(self, names: Iterable[str]) -> None:
        """Refuses if the files contradict one another about these tensors; others do not count."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantized where it is quantized."""
        ...


def whole(path: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The `Share` of a process that wants everything."""
    del path
    return tuple(slice(0, n) for n in shape)


def same(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """Stored as we keep it."""
    del config
    return (x,)


def unsame(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `same`."""
    del config
    return x


def transposed(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[out, in] -> [in, out]."""
    del config
    return (x.T,)


def untransposed(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `transposed`."""
    del config
    return x.T


def heads_out(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[heads * K, D] -> [D, heads, K]."""
    return (x.reshape(-1, config.head_dim, x.shape[1]).transpose(2, 0, 1),)


def unheads_out(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `heads_out`."""
    del config
    return x.reshape(x.shape[0], -1).T


def heads_in(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[D, H * K] -> [H, K, D]."""
    return (x.reshape(x.shape[0], -1, config.head_dim).transpose(1, 2, 0),)


def unheads_in(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `heads_in`."""
    del config
    return x.reshape(-1, x.shape[-1]).T


def heads_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[heads * K] -> [heads, K]."""
    return (x.reshape(-1, config.head_dim),)


def unheads_bias(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `heads_bias`."""
    del config
    return x.reshape(-1)


class Step(NamedTuple):
    """One source tensor of a conversion.

    Attributes:
      rule: what is done with it.
      layer: 0-based, or None for a tensor of the whole model.
      name: of the tensor.
    """

    rule: Rule
    layer: int | None
    name: str


@functools.lru_cache(maxsize=64)
def wanted_leaves(config: DecoderConfig) -> Shapes:
    """Path -> shape of every parameter; `leaf_shapes`, traced once a config."""
    return MappingProxyType(leaf_shapes(config))


def _rules(table: tuple[Rule, ...], config: DecoderConfig, where: str) -> list[Rule]:
    """The rules of a table that apply to this model; together they fill every leaf once."""
    wanted = wanted_leaves(config)
    rules = [rule for rule in table if all(leaf in wanted for leaf in rule.leaves)]
    filled = [leaf for rule in rules for leaf in rule.leaves]
    if sorted(filled) != sorted(wanted):
        raise TaskVecError(
            f"{where}: the conversion table does not fill every leaf once:"
            f" {sorted(set(wanted) ^ set(filled))}"
        )
    return rules


def _steps(rules: list[Rule], config: DecoderConfig) -> Iterator[Step]:
    """Rule by rule, so that a leaf is complete, and can leave the host, before the next begins."""
    for rule in rules:
        layers = range(config.num_layers) if "{layer}" in rule.source else [None]
        for layer in layers:
            yield Step(rule, layer, rule.source.format(layer=layer))


def applicable_steps(table: tuple[Rule, ...], config: DecoderConfig) -> list[Step]:
    """Every source tensor that a model of this config has in the words of a table.

    Raises:
      TaskVecError: the table does not fill every leaf once.
    """
    return list(_steps(_rules(table, config, "this model"), config))


def source_shape(config: DecoderConfig, step: Step) -> tuple[int, ...]:
    """Shape of a source tensor: its rule applied backwards, to arrays that take no memory."""
    wanted = wanted_leaves(config)
    shapes = [wanted[leaf][step.layer is not None :] for leaf in step.rule.leaves]
    return np.shape(
        step.rule.join(
            config,
            *(
                np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), shape, [0] * len(shape))
                for shape in shapes
            ),
        )
    )


def check(
    table: tuple[Rule, ...],
    config: DecoderConfig,
    source: Source,
    ignored: re.Pattern[str],
    tied: tuple[str, str] | None = None,
) -> list[Step]:
    """Holds the names and shapes of a source against a table, before anything is read.

    Returns:
      The steps of the conversion, in order.

    Raises:
      TaskVecError: missing, unknown or mis-shaped tensors, all in one message.
    """
    present = {name: shape for name, shape in source.shapes().items() if not ignored.search(name)}
    if config.num_layers > len(present):
        raise TaskVecError(
            f"{source.where}: the config asks for {config.num_layers} layers, the weights hold"
            f" {len(present)} tensors; the config belongs to another model, or the download is"
            " not complete"
        )
    rules = _rules(table, config, source.where)
    steps = list(_steps(rules, config))
    names = {step.name for step in steps}
    if tied and config.tied_unembed:
        names |= {tied[0]} & present.keys()
    problems = [f"missing {step.name}" for step in steps if step.name not in present]
    problems += [f"unknown {name} {present[name]}" for name in present if name not in names]
    expected: dict[str, tuple[int, ...]] = {}  # every layer of a rule has the same shape
    for step in steps:
        if step.name not in present:
            continue
        shape = expected.get(step.rule.source) or source_shape(config, step)
        expected[step.rule.source] = shape
        if shape != tuple(present[step.name]):
            problems.append(f"{step.name} has shape {present[step.name]}, expected {shape}")
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        shown = "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {rest} more" if rest > 0 else "")
        raise TaskVecError(
            f"{source.where}: the weights do not match the configuration: {shown}."
            " Check that the config belongs to these weights and that the download is complete"
        )
    return steps


def to_tree(
    table: tuple[Rule, ...],
    config: DecoderConfig,
    source: Source,
    *,
    ignored: re.Pattern[str],
    tied: tuple[str, str] | None = None,
    place: Place = lambda path, leaf: leaf,
    progress: Callable[[int, int], None] = lambda done, total: None,
    share: Share = whole,
) -> Params:
    """Reads a source into our parameter tree, one tensor at a time.

    Args:
      table: the rules of this family and format.
      config: shapes the tree must have, and the dtype it is cast to.
      source: where tensors come from.
      ignored: source names that carry no weights (buffers written by old releases).
      tied: (unembedding, embedding): the names of a tied pair of which both may be stored.
      place: called with each leaf as soon as it is complete; what it returns is kept instead.
        The host needs room for one rule's leaves and one tensor if it moves them elsewhere.
      progress: called with (tensors done, tensors in all).
      share: the box of each leaf that is filled, and given to `place`; layers are never split.

    Returns:
      {"params": nested dict of what `place` returned; NumPy arrays in `config.dtype` by default}.

    Raises:
      TaskVecError: missing, unknown or mis-shaped tensors (all in one message), a tensor that is
        not finite or overflows in `config.dtype`, or a tied pair that differs.
    """
    steps = check(table, config, source, ignored, tied)
    wanted, dtype = wanted_leaves(config), jnp.dtype(config.dtype)
    leaves: dict[str, Any] = {}
    filling: dict[str, np.ndarray] = {}
    boxes = {path: share(path, shape) for path, shape in wanted.items()}
    for done, step in enumerate(steps, start=1):
        rule, layer, name = step
        if not layer:  # the first layer, or no layers
            filling = {
                path: aligned(tuple(s.stop - s.start for s in boxes[path]), dtype)
                for path in rule.leaves
            }
        tensor = source.read(name)
        _check_kind(source, name, tensor)
        if tied and config.tied_unembed and name == tied[1] and tied[0] in source.shapes():
            _check_tied(source, tied, tensor)
        for path, part in zip(rule.leaves, rule.split(config, tensor), strict=True):
            target = filling[path] if layer is None else filling[path][layer]
            _cast(target, part[boxes[path][layer is not None :]])
            _check_finite(source, name, tensor, target)
        del tensor
        if layer in (None, config.num_layers - 1):
            for path in rule.leaves:
                leaves[path] = place(path, filling.pop(path))
        progress(done, len(steps))
    return unflatten(leaves)


def from_tree(
    table: tuple[Rule, ...], config: DecoderConfig, params: Params
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """The inverse of `to_tree`: (name, shape, tensor) of every source tensor, in table order.

    The tensor is made when it is called for, so that one at a time need exist.
    """
    leaves = flatten(params)

    def tensor(step: Step) -> np.ndarray:
        parts = [leaves[path] for path in step.rule.leaves]
        if step.layer is not None:
            parts = [part[step.layer] for part in parts]
        return np.ascontiguousarray(step.rule.join(config, *map(np.asarray, parts)))

    for step in applicable_steps(table, config):
        yield step.name, source_shape(config, step), functools.partial(tensor, step)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array at a 64-byte boundary: JAX takes it over on a CPU instead of copying it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _cast(target: np.ndarray, part: np.ndarray) -> None:
    """Copies and casts; overflow is looked for afterwards.

    A transposed part is copied in tiles, which stay in the processor's cache: 7 times faster.
    """
    fast = int(np.argmin(part.strides)) if part.ndim else 0
    with np.errstate(over="ignore", invalid="ignore"):
        if part.ndim < 2 or fast == part.ndim - 1:
            target[...] = part
            return
        index: list[slice] = [slice(None)] * part.ndim
        for i in range(0, part.shape[fast], TILE):
            index[fast] = slice(i, i + TILE)
            for j in range(0, part.shape[-1], TILE):
                index[-1] = slice(j, j + TILE)
                target[tuple(index)] = part[tuple(index)]


def all_finite(x: np.ndarray) -> bool:
    """Whether every number is; in chunks, so that no large temporary is made."""
    flat = x.reshape(-1)
    chunks = (flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK))
    if x.dtype.name not in _EXPONENTS:
        return all(np.isfinite(chunk).all() for chunk in chunks)
    exponent = np.uint16(_EXPONENTS[x.dtype.name])  # looking at bits is faster in half precision
    return not any(((chunk.view(np.uint16) & exponent) == exponent).any() for chunk in chunks)


def _check_kind(source: Source, name: str, tensor: np.ndarray) -> None:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise TaskVecError(
            f"{source.where}: tensor {name} is of type {tensor.dtype}; allowed: floating point"
            " numbers. Quantized Hugging Face weights are not supported: use the original ones"
        )


def _check_finite(source: Source, name: str, tensor: np.ndarray, target: np.ndarray) -> None:
    if all_finite(target):
        return
    if all_finite(tensor):
        raise TaskVecError(
            f"{source.where}: tensor {name} overflows in {target.dtype}; use --dtype=float32 or"
            " --dtype=bfloat16"
        )
    raise TaskVecError(
        f"{source.where}: tensor {name} has values that are not finite; the file is damaged,"
        " fetch it again"
    )


def _check_tied(source: Source, tied: tuple[str, str], embedding: np.ndarray) -> None:
    """Some releases store a tied unembedding once more: it must then be the same numbers."""
    unembedding = source.read(tied[0])
    if not np.array_equal(unembedding, embedding):
        raise TaskVecError(
            f"{source.where}: the config ties {tied[0]} to {tied[1]}, but the two differ; set"
            " tie_word_embeddings to false in its config.json if they were trained apart"
        )
