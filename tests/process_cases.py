"""What tests/test_sharding.py runs in several processes at once, which meet through gloo.

    python tests/process_cases.py PORT PROCESSES ID SCRATCH      prints one JSON object

SCRATCH holds hub/, a cache of the Hugging Face hub with the model some/model, and damaged/, the
same model with a value that is not finite where only the second process reads it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

SCRATCH = Path(sys.argv[4])
os.environ["TASKVEC_CHECKPOINTS"] = str(SCRATCH / "checkpoints")
os.environ["HF_HUB_CACHE"] = str(SCRATCH / "hub")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.modules["torch"] = None  # type: ignore[assignment]  # transformers is slow to import with it

import jax
import numpy as np

from experiments.run import preemption
from taskvec_jax.distributed import plan, sharding
from taskvec_jax.distributed.processes import least
from taskvec_jax.distributed.sharding import MeshShape
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import converting, loading
from taskvec_jax.models.model import Model
from taskvec_jax.vectors import sweep
from taskvec_jax.vectors.rows import Rows

INDEX, SECOND = int(sys.argv[3]), 1


def conversion() -> dict[str, Any]:
    """A model converted on first use, each process with its own shards."""
    mesh = sharding.make_mesh(MeshShape(model=jax.process_count()))
    model = loading.load_model("some/model", mesh=mesh)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model.params))
    share = plan.share_bytes(model.config, model.config.dtype, jax.process_count())
    return {"sha256": model.weights_sha256, "held": held, "share": share}


def refusals() -> list[str]:
    """What is said of a source that only the second process can see is damaged.

    When it is converted, and when it is quantized, for which the first process needs the second.
    """
    mesh = sharding.make_mesh(MeshShape(model=jax.process_count()))
    damaged, said = SCRATCH / "damaged", []
    for read in (
        lambda: converting.convert_model(damaged, SCRATCH / "checkpoints" / "no", mesh=mesh),
        lambda: loading.load_model(damaged, mesh=mesh, quantization="int8"),
    ):
        try:
            read()
            said.append("accepted")
        except TaskVecError as error:
            said.append(str(error))
    return said


def halving(model: Model) -> dict[str, Any]:
    """A sweep in which only the second process runs out of memory, with more than 2 rows."""
    rng = np.random.RandomState(1)
    texts = [[rng.randint(0, model.config.vocab_size, n).tolist()] for n in (7, 9, 3, 5, 8, 2)]
    want, _ = sweep.read_texts(model, texts, 6)
    program, calls = sweep.read_rows, []

    def refusing(config: Any, params: Any, rows: Rows, grading: Any = None, **more: Any) -> Any:
        calls.append(len(rows.tokens))
        if INDEX == SECOND and calls[-1] > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return program(config, params, rows, grading, **more)

    sweep.read_rows = refusing
    got, _ = sweep.read_texts(model, texts, 6)
    return {"calls": calls, "moved": float(np.max(np.abs(got - want)) / np.max(np.abs(want)))}


def stopping() -> list[str]:
    """What `stop_if_asked` does before and after SIGTERM comes to the second process."""
    preemption.listen()
    did = []
    for asked in (False, True):
        if asked and INDEX == SECOND:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            preemption.stop_if_asked()
            did.append("goes on")
        except SystemExit as stop:
            did.append(f"exits {stop.code}")
    return did


def main() -> None:
    """Meets the others, and tells what happened."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[1]}", int(sys.argv[2]), INDEX)
    preemption.console.file = sys.stderr
    found = conversion()
    data = sharding.make_mesh(MeshShape(data=jax.process_count()))
    found |= {
        "refusals": refusals(),
        # Prompts on data: with parameters split, the others would wait inside the program.
        "halving": halving(loading.load_model("some/model", mesh=data)),
        "stopping": stopping(),
        "least": least(7 - INDEX),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
