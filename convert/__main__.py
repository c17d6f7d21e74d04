"""Converts a model once, so that every later run restores it without its source.

    python -m convert --model=llama-7b                        checkpoints/llama-7b
    python -m convert --model=runA/final                      checkpoints/final-<hash of the path>
    python -m convert --model=EleutherAI/pythia-70m --revision=step1000
    python -m convert --model=PATH --out=DIRECTORY --dtype=bfloat16 --verify
    python -m convert --model=llama-30b --plan                numbers only, no network

Tensors go one by one from the source to the device, so peak memory is the model plus a little;
what is written appears under its name only when it is complete. Several processes (--coordinator)
convert together, each the shards it holds by --mesh, to a disk that all of them see.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags

import taskvec_jax.models.checkpoint as checkpoint
from taskvec_jax.distributed.plan import PLANNED_BATCH, plan_lines
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.names import checkpoint_path, describe, from_hub_or_wheel

from . import cli as command
from .cli import FLAGS, console


def target() -> Path:
    """Where the converted model goes: --out, or under its key in the checkpoints directory.

    Raises:
      TaskVecError: no such model.
    """
    if FLAGS.out:
        return Path(FLAGS.out)
    from_hub_or_wheel(FLAGS.model, FLAGS.revision)
    return checkpoint_path(FLAGS.model, FLAGS.revision)


def main() -> None:
    """Converts, or plans, as the flags ask."""
    if FLAGS.plan:
        for line in plan_lines(*describe(FLAGS.model, FLAGS.revision)):
            console.print(line, markup=False)
        return
    if FLAGS.verify and jax.process_count() > 1:
        raise TaskVecError(
            "--verify needs the model in one process; leave it out, and run python -m"
            " convert.verify --model=OUT in a single one afterwards"
        )
    out = target()
    command.reporting(
        lambda report: convert_model(
            FLAGS.model,
            out,
            dtype=FLAGS.dtype,
            revision=FLAGS.revision,
            progress=report,
            mesh=command.mesh_from_flags(PLANNED_BATCH),
        )
    )
    manifest = checkpoint.read_manifest(out)
    console.print(
        f"{out}: {checkpoint.read_config(out).dtype}, weights sha256"
        f" {manifest['weights_sha256'][:16]}"
    )
    if FLAGS.verify:
        from .verify.report import report  # torch, where it is installed, is slow to import

        report(str(out), FLAGS.dtype or "bfloat16")


if __name__ == "__main__":
    command.define_model_flags(None)
    command.define_mesh_flags()
    flags.DEFINE_string(
        "out", None, "directory of the converted model; checkpoints/<key> when left out"
    )
    flags.DEFINE_bool("verify", False, "print the parity certificate afterwards")
    flags.DEFINE_bool("plan", False, "say what the model needs, and do nothing")
    command.run(main)
