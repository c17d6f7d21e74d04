"""Where a vector came from: the model, the task or prompts, the settings, the versions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from taskvec_jax.models.model import Model

PACKAGES = ("taskvec-jax", "jax", "numpy")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a vector came from.

    Attributes:
      model: its name, as it was loaded; "" where it is not known.
      weights_sha256, tokenizer_sha256: hashes of the model's weights and tokenizer.
      family, num_layers: of the model's config.
      task: name of the task; "" where it was read from prompts.
      prompts: the texts it was read from.
      settings: how the prompts were drawn, or how the vector was learned; plain values.
      versions: of the packages it was made with.
      made: how, in words.
    """

    model: str = ""
    weights_sha256: str = ""
    tokenizer_sha256: str = ""
    family: str = ""
    num_layers: int = 0
    task: str = ""
    prompts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    made: str = ""

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        task: str = "",
        prompts: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        made: str = "",
    ) -> Origin:
        """The origin of what is read from a model now."""
        return cls(
            model.name,
            model.weights_sha256,
            model.tokenizer.sha256,
            model.config.family,
            model.config.num_layers,
            task,
            tuple(prompts),
            dict(settings or {}),
            versions(),
            made,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """Reads what `dataclasses.asdict` gave; what is not known is left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        return cls(**{**known, "prompts": tuple(values.get("prompts", ()))})


def versions() -> dict[str, str]:
    """Versions of the packages that make vectors, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from its source tree
            found[name] = "not installed"
    return found
