"""taskvec_jax.models.names"""

from __future__ import annotations

from pathlib import Path

from taskvec_jax.models import checkpoint, foreign
from taskvec_jax.models.loading import checkpoint_path, from_hub_or_wheel
from taskvec_jax.models.registry import NAMED_MODELS
from taskvec_jax.transformer.config import DecoderConfig


def describe(name_or_path: str, revision: str | None = None) -> tuple[str, DecoderConfig]:
    """Name and shapes of a model, without reading its weights.

    What the registry names, under its name or its repository's, needs no network; of another model
    of the hub the config alone is fetched.

    Args:
      name_or_path, revision: as for `loading.load_model`.

    Raises:
      TaskVecError: no such model, or its config is not here and cannot be fetched.
    """
    fetched = from_hub_or_wheel(name_or_path, revision)
    if fetched:
        for name, known in NAMED_MODELS.items():
            if name_or_path in (name, known.source):
                return name_or_path, known.config
        name, path = name_or_path, checkpoint_path(name_or_path, revision)
    else:
        name, path = Path(name_or_path).name, Path(name_or_path)
    if checkpoint.is_checkpoint(path):
        return name, checkpoint.read_config(path)
    source = foreign.fetch_config(name_or_path, revision) if fetched else path
    return name, foreign.read_config(source)
