"""Whether the converted model that is kept on disk is the one that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskvec_jax.distributed.processes import decided_by_first
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint, foreign, origin
from taskvec_jax.models.registry import NAMED_MODELS, JoinedFile, Shipped, WheelFile


def is_kept(name: str, path: Path, revision: str | None, dtype: str) -> bool:
    """Whether a fetched model is there as it should be, to be loaded in a dtype.

    Raises:
      TaskVecError: another model is there.
    """

    def look() -> bool:
        if not checkpoint.is_checkpoint(path):
            return False
        if name in NAMED_MODELS and isinstance(NAMED_MODELS[name].source, Shipped):
            return True
        manifest = checkpoint.read_manifest(path)
        rounded = manifest.get("rounded_from") and checkpoint.read_config(path).dtype != dtype
        return is_of(path, manifest, name, revision) and not rounded

    return decided_by_first(look)


def asked_of(name: str, revision: str | None) -> dict[str, Any]:
    """What the manifest of a model that is fetched says of its source, before it is fetched."""
    source = NAMED_MODELS[name].source if name in NAMED_MODELS else name
    assert not isinstance(source, Shipped)  # it is there from the start
    if isinstance(source, WheelFile | JoinedFile):
        return {"source": source.requirement, "file_sha256": source.sha256}
    return {"source": source, "revision": revision or "default"}


def is_of(path: Path, manifest: dict[str, Any], name: str, revision: str | None) -> bool:
    """Whether a converted model is of a name and revision; False if the revision has moved on.

    The network is not asked: a branch has moved on when the hub's own cache holds a newer commit
    of it, whole.

    Raises:
      TaskVecError: it is of another source.
    """
    asked = asked_of(name, revision)
    if any(manifest.get(key) != value for key, value in asked.items()):
        raise another(path, manifest, origin.say(asked))
    if "commit" not in manifest:
        return True
    latest = foreign.cached_snapshot(asked["source"], revision)
    if latest is None or latest.name == manifest["commit"]:
        return True
    try:
        foreign.open_model(latest, None)
    except TaskVecError:
        return True  # not all of it is here, or it cannot be read: what was converted stays
    return False


def another(path: Path, manifest: dict[str, Any], asked: str) -> TaskVecError:
    """The error for a directory that holds a model of another source."""
    return TaskVecError(
        f"{path}: the model there was made from {origin.say(manifest)}, not from {asked}; choose"
        f" another directory (python -m convert --out, TASKVEC_CHECKPOINTS), use it as it is"
        f" (--model={path}), or delete it"
    )
