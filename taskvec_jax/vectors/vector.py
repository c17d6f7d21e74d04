# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""A vector one can keep: what it is, where it is written, and where it came from.

>>> from taskvec_jax import Task, extract_vector
>>> task = Task.from_pairs("next", [(a, chr(ord(a) + 1)) for a in "abcdefghij"])
>>> vector = extract_vector(model, task, layer=2, settings=settings)
>>> vector
TaskVector(replace resid after layer 2, position -1; width 128, norm ...)
  mean theta of own_next over 4 prompts, of pythia-icl-small
>>> model.generate("example:h->", max_new_tokens=1, edits=vector)
['i']
>>> TaskVector.load(vector.save(folder / "next.safetensors"), model).layer
2

Shapes: D width (K, the size of a head, at the site "head"), n layers of one vector.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.edits import ALL
from taskvec_jax.vectors import control_vector, vector_file
from taskvec_jax.vectors.placed import Placed
from taskvec_jax.vectors.provenance import Origin

PLACE = ("layer", "site", "position", "operation", "head")
FORMATS = ("gguf",)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TaskVector(Placed):
    """A vector, its place in a model (see `Placed`), and where it came from.

    It is welcome wherever edits are: `model.generate(texts, edits=vector)`.

    Attributes, besides those of `Placed`:
      origin: where it came from.
      zero_shot: as array, the mean state at its place without demonstrations, which `as_addition`
        takes away; None: not known.

    Raises:
      TaskVecError: as of `Placed`, or a zero_shot of another shape.
    """

    origin: Origin = dataclasses.field(default_factory=Origin)
    zero_shot: np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_shot is not None:
            mean = self.checked("zero_shot", self.zero_shot)
            if mean.shape != self.array.shape:
                raise TaskVecError(
                    f"zero_shot has shape {mean.shape} and array {self.array.shape}; they must be"
                    " the same"
                )
            object.__setattr__(self, "zero_shot", mean)

    def __repr__(self) -> str:
        norm = np.linalg.norm(np.atleast_2d(self.array), axis=-1).mean()
        told = [self.origin.made, self.origin.model and f"of {self.origin.model}"]
        return (
            f"TaskVector({self.operation} {self.site} after {self.layers_told}, position"
            f" {self.position}; width {self.width}, norm {norm:.3g})\n"
            f"  {', '.join(filter(None, told)) or 'of unknown origin'}"
        )

    def arrays_at(self, row: int) -> dict[str, Any]:
        """Its arrays, by name, of one of several layers."""
        mean = None if self.zero_shot is None else self.zero_shot[row]
        return {**super().arrays_at(row), "zero_shot": mean}

    def as_addition(self, position: int | str = ALL) -> TaskVector:
        """Another operation: what replacing changes on average, to be ADDED, at `position`.

        That is array - zero_shot. Where the state would have been the mean zero-shot one, adding it
        at the last token gives what replacing gives; everywhere else it does not.

        Raises:
          TaskVecError: the mean zero-shot state is not known.
        """
        if self.operation == "add":
            return dataclasses.replace(self, position=position)
        if self.zero_shot is None:
            raise TaskVecError(
                "this vector does not hold the mean zero-shot state at its place, which must be"
                " taken away before it can be added; make it with extract_vector(model, task), or"
                " give zero_shot="
            )
        made = f"({self.origin.made}) minus the mean zero-shot state, to be added"
        return dataclasses.replace(
            self,
            array=self.array - self.zero_shot,
            operation="add",
            position=position,
            zero_shot=None,
            origin=dataclasses.replace(self.origin, made=made),
        )

    def __add__(self, other: Any) -> TaskVector:
        return NotImplemented if not isinstance(other, TaskVector) else combined((self, other), sum)

    def __sub__(self, other: Any) -> TaskVector:
        return NotImplemented if not isinstance(other, TaskVector) else self + -1.0 * other

    def __mul__(self, factor: Any) -> TaskVector:
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        made = f"{float(factor):g} * ({self.origin.made})"
        return combined((self,), lambda rows: rows[0] * float(factor), made)

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> TaskVector:
        return self * (1.0 / factor)

    @staticmethod
    def mean(vectors: Sequence[TaskVector]) -> TaskVector:
        """The mean of vectors of one place in one model.

        Raises:
          TaskVecError: there is none, or they do not go together.
        """
        made = f"mean of {len(vectors)}: " + ", ".join(one.origin.made for one in vectors)
        return combined(vectors, lambda rows: np.mean(rows, axis=0), made)

    def check_model(self, model: Model) -> None:
        """Refuses another model than the one the vector came from.

        Raises:
          TaskVecError: it names both.
        """
        mine, here = self.origin, Origin.of(model)
        differing = [
            f"{name} {getattr(mine, name)[:8]} and {getattr(here, name)[:8]}"
            for name in ("weights_sha256", "tokenizer_sha256")
            if getattr(mine, name) not in ("", getattr(here, name))
        ]
        if differing:
            raise TaskVecError(
                f"this vector is of {mine.model!r} and the model is {model.name!r}"
                f" ({', '.join(differing)}); to use it all the same: vector.on(model), or"
                " TaskVector.load(path, model, any_model=True)"
            )

    def on(self, model: Model) -> TaskVector:
        """The same vector for another model, which is then told as the one it belongs to.

        Raises:
          TaskVecError: its width or its layers are not there in that model.
        """
        width = model.config.head_dim if self.site == "head" else model.config.width
        if self.width != width or self.layers[-1] >= model.config.num_layers:
            raise TaskVecError(
                f"this vector is of width {self.width} after {self.layers_told}; allowed on"
                f" {model.name}: width {width}, layers 0 to {model.config.num_layers - 1}"
            )
        mine, here = self.origin, Origin.of(model)
        told = mine.made
        if mine.weights_sha256 != here.weights_sha256:
            told = f"{told}, read from {mine.model or 'an unknown model'}"
        kept = {name: getattr(mine, name) for name in ("task", "prompts", "settings", "versions")}
        return dataclasses.replace(self, origin=dataclasses.replace(here, made=told, **kept))

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file with everything it knows as metadata (see vector_file.py).

        Raises:
          TaskVecError: it cannot be written.
        """
        tensors = {vector_file.TENSOR: self.array}
        if self.zero_shot is not None:
            tensors["zero_shot"] = self.zero_shot
        about = {name: getattr(self, name) for name in PLACE}
        vector_file.save(Path(path), tensors, about | {"origin": dataclasses.asdict(self.origin)})
        return Path(path)

    @staticmethod
    def load(
        path: str | Path, model: Model | None = None, *, any_model: bool = False
    ) -> TaskVector:
        """Reads what `save` wrote.

        Args:
          model: the model it is to be used on; None: checked when it is used.
          any_model: take it though it is of another model.

        Raises:
          TaskVecError: no such file, not a vector's, or a vector of another model.
        """
        tensors, about = vector_file.load(Path(path))
        try:
            origin = Origin.from_dict(about["origin"])
            place = {name: about[name] for name in PLACE}
        except (KeyError, TypeError) as error:
            raise TaskVecError(f"{path}: its metadata is damaged ({error})") from None
        vector = TaskVector(
            tensors[vector_file.TENSOR],
            **place,
            origin=origin,
            zero_shot=tensors.get("zero_shot"),
        )
        if model is None:
            return vector
        if any_model:
            return vector.on(model)
        vector.check_model(model)
        return vector

    def export(self, path: str | Path, format: str = "gguf", *, as_addition: bool = False) -> Path:
        """Writes a control vector that llama.cpp and repeng read (see control_vector.py).

        Args:
          format: "gguf".
          as_addition: those programs add, at every position; what this vector does is not that,
            unless it is added at "all", and is refused unless this is True: then the file holds
            `self.as_addition()`.

        Raises:
          TaskVecError: the format, the operation, the site or a layer that such a file cannot say;
            or it cannot be written.
        """
        if format not in FORMATS:
            raise TaskVecError(f"format is {format!r}; allowed: {', '.join(FORMATS)}")
        if self.site != "resid":
            raise TaskVecError(
                f"site is {self.site!r}; a control vector is added to the residual stream, 'resid'"
            )
        doing = "REPLACES the state" if self.operation == "replace" else "is ADDED"
        alike = self.operation == "add" and self.position == ALL
        if not alike and not as_addition:
            raise TaskVecError(
                f"this vector {doing} at position {self.position}, and a control vector is ADDED at"
                " every position; with as_addition=True the file holds what is added (for a vector"
                " that replaces, itself minus the mean zero-shot state), which is another operation"
                " and gives other answers"
            )
        added = self.as_addition()
        origin = added.origin
        was = "" if alike else f"; NOT the same operation: the vector {doing} at {self.position}"
        control_vector.save(
            Path(path),
            added.rows(),
            family=origin.family,
            description=f"{origin.made}; to be added at every position{was}",
            about={"model": origin.model, "weights_sha256": origin.weights_sha256},
        )
        return Path(path)


def combined(
    vectors: Sequence[TaskVector], of: Callable[[Sequence[Any]], Any], made: str = ""
) -> TaskVector:
    """A vector made from others of the same place in the same model; its mean zero-shot state is
    the mean of theirs.

    Args:
      of: makes an array from their arrays.
      made: how it is told; their own words with + between when left out.

    Raises:
      TaskVecError: there is none, or they do not go together; it says what differs.
    """
    if not vectors:
        raise TaskVecError("there is no vector to combine")
    first = vectors[0]
    for other in vectors[1:]:
        differing = [
            f"{name} {getattr(first, name)} and {getattr(other, name)}"
            for name in ("layer", "site", "position", "operation", "head", "width")
            if getattr(first, name) != getattr(other, name)
        ]
        if first.origin.weights_sha256 != other.origin.weights_sha256:
            differing.append(f"model {first.origin.model} and {other.origin.model}")
        if differing:
            raise TaskVecError(f"the vectors do not go together: {'; '.join(differing)}")
    means = [one.zero_shot for one in vectors if one.zero_shot is not None]
    tasks = dict.fromkeys(one.origin.task for one in vectors if one.origin.task)
    origin = dataclasses.replace(
        first.origin,
        task=" + ".join(tasks),
        prompts=tuple(dict.fromkeys(text for one in vectors for text in one.origin.prompts)),
        settings=first.origin.settings if len(tasks) < 2 else {},
        made=made or " + ".join(one.origin.made for one in vectors),
    )
    return dataclasses.replace(
        first,
        array=of([one.array for one in vectors]),
        zero_shot=np.mean(means, axis=0) if len(means) == len(vectors) else None,
        origin=origin,
    )
