"""Named arrays on disk with a few plain values about them, such as the state of a training.

<name>/arrays/       Orbax tree
<name>/about.json    the plain values
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory
from taskvec_jax.models.atomic import replacing, unwritable, writing
from taskvec_jax.models.checkpoint import handler, read_json, too_little_memory, unreadable

ABOUT = "about.json"


def save_arrays(path: Path, arrays: dict[str, Any], about: dict[str, Any]) -> None:
    """Writes named arrays, with a few plain values about them; `path` is replaced at the very end.

    Raises:
      TaskVecError: the directory cannot be written, or the disk is full.
    """
    import orbax.checkpoint as ocp  # slow to import

    with writing(path), replacing(path) as made:
        try:
            with ocp.Checkpointer(handler([leaf.nbytes for leaf in arrays.values()])) as writer:
                writer.save((made / "arrays").absolute(), ocp.args.PyTreeSave(arrays))
            (made / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        except OSError as error:
            raise TaskVecError(unwritable(path, error)) from None
        except Exception as error:  # what TensorStore raises for a full disk
            if is_out_of_memory(error):
                raise too_little_memory(path, "write", error) from None
            raise TaskVecError(f"{path}: cannot be written ({first_line(error)})") from None


def restore_arrays(path: Path, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save_arrays` wrote: arrays of the names, shapes and dtypes of `like`.

    Raises:
      TaskVecError: nothing whole there, or arrays of other names or shapes.
    """
    import orbax.checkpoint as ocp  # slow to import

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in like.items()
    }
    about = read_json(path, ABOUT)
    arguments = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
    )
    where = (path / "arrays").absolute()
    with ocp.Checkpointer(handler()) as reader:
        try:
            saved = reader.metadata(where).item_metadata.tree
        except Exception as error:  # Orbax raises many kinds for a damaged directory
            raise unreadable(path, "damaged", error, "delete it") from None
        wrong = [
            f"{name} is {tuple(saved[name].shape) if name in saved else 'missing'}, expected"
            f" {target[name].shape if name in target else 'nothing'}"
            for name in sorted(target.keys() | saved.keys())
            if name not in saved
            or name not in target
            or tuple(saved[name].shape) != target[name].shape
        ]
        if wrong:
            raise TaskVecError(
                f"{path}: a checkpoint of another shape ({'; '.join(wrong[:3])}); choose another"
                " directory, or the settings it was made with"
            )
        try:
            return reader.restore(where, arguments), about
        except Exception as error:
            raise unreadable(path, "damaged", error, "delete it") from None
