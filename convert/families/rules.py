"""Tables of rules: which source tensor fills which leaves of the parameter tree, and how.

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
from typing import NamedTuple, Protocol

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import leaf_shapes

Shapes = Mapping[str, tuple[int, ...]]
Split = Callable[[DecoderConfig, np.ndarray], tuple[np.ndarray, ...]]
Join = Callable[..., np.ndarray]  # (config, *leaves) -> source tensor
SHOWN_PROBLEMS = 12


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
        """Refuses files that contradict one another about these tensors; others do not count."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantized where it is quantized."""
        ...


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
    """Every source tensor of a model of this config, by the names of a table.

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
    """Compares the names and shapes of a source with a table, before any tensor is read.

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
