"""Settings made before JAX starts: a faulty fusion off, and the CPU alone where nothing else is.

jaxlib 0.10.2 on a CPU, the newest for Python 3.11, sums wrongly where it fuses a matrix-vector
product, a square and a sum over more than 32,768 rows (jax-ml/jax#39103). The fusion is turned off
by a flag that must be in XLA_FLAGS before JAX computes for the first time. Single products still go
to the library of kernels whose fusions these are, because a CPU's bfloat16 instructions are used
only there. Other releases may not know the flag, and an unknown one ends the process, so only this
release is given it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import MutableMapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.errors import TaskVecError

AFFECTED = ("0.10.2",)
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
VALUE = "individual_dot"
ROWS = 40_000  # of the known case
JAXLIB = importlib.metadata.version("jaxlib")
# Files of /dev where there is an accelerator: Google's, NVIDIA's, AMD's, one behind Windows.
ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia*", "kfd", "dxg")
PLATFORMS = "jax_platforms"  # the option whose default is JAX_PLATFORMS


def turn_off_wrong_fusion(
    environment: MutableMapping[str, str] = os.environ, version: str = JAXLIB
) -> None:
    """Adds the flag to XLA_FLAGS, once, if this release of jaxlib needs it.

    What the user has set stays: other flags, this flag with any value, and the path of a file of
    flags, which cannot be added to.
    """
    flags = environment.get("XLA_FLAGS", "").strip()
    if version not in AFFECTED or FLAG in flags or (flags and not flags.startswith("-")):
        return
    environment["XLA_FLAGS"] = f"{flags} {FLAG}={VALUE}".strip()


def keep_to_the_cpu(devices: Path = Path("/dev")) -> None:
    """Tells JAX to use the CPU where libtpu is installed but the machine has no accelerator.

    libtpu is there to compile for TPUs that are elsewhere. Left alone, JAX looks for a TPU whenever
    it starts and prints libtpu's errors. What the user has set (JAX_PLATFORMS) stays.

    Args:
      devices: the directory of device files.
    """
    if importlib.util.find_spec("libtpu") is None or getattr(jax.config, PLATFORMS):
        return
    if not any(next(devices.glob(name), None) for name in ACCELERATORS):
        jax.config.update(PLATFORMS, "cpu")


@functools.cache
def check_sums() -> None:
    """Computes the known case on the default device, once a process.

    It takes 0.11 to 0.15 s of CPU time, nearly all of it compilation.

    Raises:
      TaskVecError: the sums are wrong.
    """
    rows = np.arange(3 * ROWS, dtype=np.float32).reshape(ROWS, 3) % 7  # small: the sums are exact
    sums = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    worst = float(np.abs(np.asarray(sums) - (rows**2).sum(axis=1)).max())
    if not worst <= 1.0:  # of up to 97; products may be in bfloat16, where these numbers are exact
        raise TaskVecError(
            f"jaxlib {JAXLIB} sums wrongly on this machine (off by {worst:g} in a known case,"
            f" jax-ml/jax#39103): set XLA_FLAGS={FLAG}={VALUE} before Python starts, or"
            " import taskvec_jax before anything computes with JAX, or install another release,"
            " such as jax 0.10.1"
        )


turn_off_wrong_fusion()
keep_to_the_cpu()
