"""The memory plan against XLA's compilers for TPUs and GPUs: models, devices and precisions.

    python -m experiments.bench.plan_matrix
    python -m experiments.bench.plan_matrix --targets=gpu:h100:1 --models=gemma-2-2b

Runs mesh_plan once for each target, model and precision, each in a process of its own because a
process compiles for one target, with all devices on `model`; prints a table of what the compiler
says beside the plan, and writes plan_matrix.json under --out: the records of mesh_plan.json. What
is there already is not compiled again. Both compilers must be installed (see mesh_plan).

Most of the time is the TPU's compiler's.

Time: 1.5 hours (the whole matrix, two cores with nothing beside it).
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from convert import cli as command
from convert.cli import FLAGS, console
from experiments.bench.run_programs import SWEEP
from experiments.run.results import prepare_out, write_json
from taskvec_jax.distributed.plan import GB
from taskvec_jax.distributed.targets import Target
from taskvec_jax.errors import TaskVecError

PRECISIONS = {  # name -> flags of mesh_plan
    "bfloat16": ("--dtype=bfloat16",),
    "float32": ("--dtype=float32",),
    "int8": ("--dtype=bfloat16", "--quantization=int8"),
}


def compiled(target: Target, model: str, precision: str, out: Path) -> list[dict[str, Any]]:
    """The records of one run of mesh_plan, from its file where there is one.

    Raises:
      TaskVecError: it failed; its last line.
    """
    place = out / "_".join((str(target).replace(":", "-"), model, precision))
    path = place / "mesh_plan.json"
    if path.is_file():
        records = json.loads(path.read_text())
        if [record["program"] for record in records] == list(SWEEP):
            return records
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.bench.mesh_plan", f"--target={target}"),
            *(f"--models={model}", f"--meshes=data:1,model:{target.devices}", f"--out={place}"),
            *(f"--programs={','.join(SWEEP)}", *PRECISIONS[precision]),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise TaskVecError(
            f"{target} {model} {precision}: {lines[-1] if lines else 'mesh_plan failed'}"
        )
    return json.loads(path.read_text())


def row(record: dict[str, Any]) -> str:
    """A line of the table."""
    needed, planned = record["compiler_bytes"], record["plan_bytes"]
    said = "not told" if needed is None else f"{needed / GB:.3f}, {planned / GB:.3f}"
    off = "" if needed is None else f" ({planned / needed - 1:+.1%})"
    return (
        f"| {record['program']} | {said}{off} | {'fits' if record['fits'] else 'does not fit'} |"
        f" {_number(record['flops'], 1e12)} | {_number(record['bytes'], GB)} |"
        f" {_number(record['seconds_at_roofline'], 1e-3)} | {record['bound'] or '-'} |"
    )


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def main() -> None:
    """Prints the table as it grows."""
    targets = [Target.parse(text) for text in FLAGS.targets]
    out = prepare_out(FLAGS.out)
    records: list[dict[str, Any]] = []
    console.print(
        "| program | compiler, plan (GB a device) | | TFLOP | GB moved | ms at best | bound by |",
        markup=False,
    )
    for target, model, precision in itertools.product(targets, FLAGS.models, PRECISIONS):
        console.print(f"{target} {model} {precision}", markup=False)
        found = compiled(target, model, precision, out)
        for record in found:
            console.print(row(record), markup=False)
        records += found
        write_json(out / "plan_matrix.json", records)


if __name__ == "__main__":
    command.define_list(
        "targets", ["tpu:v5e:1x1", "tpu:v5e:2x4", "gpu:h100:1", "gpu:h100:8"], "see mesh_plan"
    )
    command.define_list("models", ["llama-7b", "pythia-12b", "gemma-2-2b"], "names or paths")
    flags.DEFINE_string("out", "results/plan_matrix", "directory for plan_matrix.json")
    command.run(main)
