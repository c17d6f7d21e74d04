"""An array and its place in a model: what `TaskVector` writes, without where it came from.

Shapes: D width (K, the size of a head, at the site "head"), n layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from taskvec_jax.errors import TaskVecError, short_repr
from taskvec_jax.transformer.edits import ALL, SITES, Edit, add, replace

OPERATIONS = ("replace", "add")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Placed:
    """An array, its place in a model and what is done with it there.

    Attributes:
      array: float32 [D]; [n, D] where it has one for each of n layers.
      layer: 0-based, the output of block l; a tuple of n layers in rising order for [n, D].
      site: "resid", "attn_out", "mlp_out" or "head" (see transformer/edits.py).
      position: of the token in a text, negative from its end; or "all".
      operation: "replace", or "add".
      head: at the site "head", which.

    Raises:
      TaskVecError: shapes that do not fit, values that are not finite, or an unknown site,
        operation or position.
    """

    array: np.ndarray
    layer: int | tuple[int, ...]
    site: str = "resid"
    position: int | str = -1
    operation: str = "replace"
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", _checked_layers(self.layer))
        object.__setattr__(self, "array", self.checked("array", self.array))
        if self.operation not in OPERATIONS:
            raise TaskVecError(f"operation is {self.operation!r}; allowed: {', '.join(OPERATIONS)}")
        if self.site not in SITES:
            raise TaskVecError(f"site is {self.site!r}; allowed: {', '.join(SITES)}")
        if self.position != ALL and not isinstance(self.position, int | np.integer):
            raise TaskVecError(
                f"position is {short_repr(self.position)}; it must be a whole number, or {ALL!r}"
            )
        if (self.site == "head") != (self.head is not None):
            raise TaskVecError(
                f"site is {self.site!r} and head is {self.head}; the site 'head' takes a head, and"
                " no other site does"
            )

    def checked(self, name: str, value: Any) -> np.ndarray:
        """A float32 array with one row for each layer; [D] where the layer is an int.

        Raises:
          TaskVecError: another shape, or values that are not finite.
        """
        value = np.asarray(value, np.float32)
        lead = () if isinstance(self.layer, int) else (len(self.layer),)
        if value.ndim != 1 + len(lead) or value.shape[:-1] != lead:
            wanted = ", ".join([*map(str, lead), "D"])
            raise TaskVecError(
                f"{name} has shape {value.shape}; allowed: ({wanted}), because layer is"
                f" {short_repr(self.layer)}"
            )
        if not np.isfinite(value).all():
            raise TaskVecError(f"{name} is not finite")
        return value

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it has an array for."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer

    @property
    def width(self) -> int:
        """Its last axis."""
        return self.array.shape[-1]

    @property
    def layers_told(self) -> str:
        """Its layers for people: `layer 3`, `5 layers, 0 to 4`."""
        if len(self.layers) == 1:
            return f"layer {self.layers[0]}"
        return f"{len(self.layers)} layers, {self.layers[0]} to {self.layers[-1]}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype, copy=True if copy else None)

    def rows(self) -> dict[int, np.ndarray]:
        """Layer -> its vector [D]."""
        return dict(zip(self.layers, np.atleast_2d(self.array), strict=True))

    def at(self, layer: int) -> Self:
        """The vector of one of its layers.

        Raises:
          TaskVecError: it has none for this layer.
        """
        if layer not in self.layers:
            raise TaskVecError(f"layer {layer}: this vector has {self.layers_told}; take one")
        if isinstance(self.layer, int):
            return self
        return dataclasses.replace(self, layer=layer, **self.arrays_at(self.layers.index(layer)))

    def arrays_at(self, row: int) -> dict[str, Any]:
        """Its arrays, by name, of one of several layers."""
        return {"array": self.array[row]}

    def edits(self) -> tuple[Edit, ...]:
        """What it does, as edits (see transformer/edits.py): one, or for several layers several.

        Raises:
          TaskVecError: it would replace the state after several layers, where all but the last
            would be lost.
        """
        if self.operation == "replace" and len(self.layers) > 1:
            raise TaskVecError(
                f"this vector has {self.layers_told}, and replacing the state after all of them"
                " would leave only the last; take one: vector.at(LAYER)"
            )
        make = replace if self.operation == "replace" else add
        return tuple(
            make(row, layer=layer, position=self.position, site=self.site, head=self.head)
            for layer, row in self.rows().items()
        )


def _checked_layers(layer: Any) -> int | tuple[int, ...]:
    """An int, or a tuple of layers in rising order.

    Raises:
      TaskVecError: something else.
    """
    several = isinstance(layer, list | tuple | range | np.ndarray)
    found: Sequence[Any] = tuple(layer) if several else (layer,)
    whole = all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in found)
    if not whole or not found or list(found) != sorted(set(found)) or found[0] < 0:
        raise TaskVecError(
            f"layer is {short_repr(layer)}; allowed: a layer counted from 0, or several in rising"
            " order"
        )
    return tuple(int(one) for one in found) if several else int(layer)
