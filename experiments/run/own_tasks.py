"""The tasks that a model was trained on, which are what it is run on unless others are named.

The manifest of a model that `train_small` made lists them; their pairs are in `mixture`.
"""

from __future__ import annotations

import json
from pathlib import Path

from taskvec_jax.distributed.processes import all_or_none, from_first_process, is_first_process
from taskvec_jax.models import checkpoint
from taskvec_jax.models.names import checkpoint_path, from_hub_or_wheel
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import Task


def converted_path(model: str, revision: str | None) -> Path | None:
    """Where a model lies converted; None where it does not yet.

    Raises:
      TaskVecError: no such model.
    """
    fetched = from_hub_or_wheel(model, revision)
    path = checkpoint_path(model, revision) if fetched else Path(model)
    return path if checkpoint.is_checkpoint(path) else None


def tokenizer_of(model: str, revision: str | None) -> Tokenizer | None:
    """The tokenizer of a model that is converted; None of one that is not yet."""
    path = converted_path(model, revision)
    if path is None:
        return None
    return checkpoint.read_tokenizer(path, checkpoint.read_config(path))


def trained_on(model: str, revision: str | None) -> list[str]:
    """Names of the tasks that a model was trained on; none of a model that does not say.

    Raises:
      TaskVecError: no such model, or its manifest cannot be read.
    """
    names: list[str] = []
    with all_or_none():
        if is_first_process() and (path := converted_path(model, revision)) is not None:
            made_with = checkpoint.read_manifest(path).get("made_with")
            if isinstance(made_with, dict):
                names = [name for name in made_with.get("tasks", ()) if isinstance(name, str)]
    return json.loads(from_first_process(json.dumps(names).encode()))


def own_tasks(model: str, revision: str | None) -> tuple[list[Task], list[str]]:
    """The tasks that a model adds to those every experiment has, and the names of its own ones.

    Both are empty for a model that was not trained on tasks of `mixture`.

    Raises:
      TaskVecError: as of `trained_on`.
    """
    names = trained_on(model, revision)
    if not names:
        return [], []
    from experiments.small_pythia import mixture  # imports what training needs

    known = {task.name for task in (*mixture.TASKS, *mixture.TRAINING_TASKS)}
    own = [name for name in names if name in known]
    return (mixture.TASKS if own else []), own
