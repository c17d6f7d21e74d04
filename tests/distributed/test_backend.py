"""The compiler's known fault is turned off or told, and no TPU is looked for where none can be."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from taskvec_jax.distributed import backend
from taskvec_jax.distributed.backend import (
    FLAG,
    PLATFORMS,
    VALUE,
    check_sums,
    turn_off_wrong_fusion,
)
from taskvec_jax.errors import TaskVecError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, f"{FLAG}={VALUE}"),
        ("", f"{FLAG}={VALUE}"),
        ("--xla_one=2", f"--xla_one=2 {FLAG}={VALUE}"),
        (f"{FLAG}=LIBRARY_FUSION_TYPE_DOT", f"{FLAG}=LIBRARY_FUSION_TYPE_DOT"),
        ("/home/me/flags.txt", "/home/me/flags.txt"),
    ],
)
def test_the_flag_is_added_once_and_what_the_user_set_stays(before, after):
    environment = {} if before is None else {"XLA_FLAGS": before}
    for _ in range(2):
        turn_off_wrong_fusion(environment, "0.10.2")
        assert environment["XLA_FLAGS"] == after


@pytest.mark.parametrize("version", ["0.10.1", "0.10.20", "0.11.0"])
def test_releases_that_may_not_know_the_flag_are_not_given_it(version):
    environment: dict[str, str] = {}
    turn_off_wrong_fusion(environment, version)
    assert environment == {}


@pytest.mark.parametrize(
    ("file", "set_by_user", "after"),
    [
        (None, None, "cpu"),
        ("vfio/vfio", None, "cpu"),
        *((name, None, None) for name in ("accel0", "vfio/0", "nvidia0", "kfd", "dxg")),
        (None, "cuda,cpu", "cuda,cpu"),
    ],
)
def test_a_tpu_is_looked_for_only_where_there_may_be_one(
    file, set_by_user, after, tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    before = getattr(jax.config, PLATFORMS)
    try:
        jax.config.update(PLATFORMS, set_by_user)
        backend.keep_to_the_cpu(tmp_path)
        assert getattr(jax.config, PLATFORMS) == after
    finally:
        jax.config.update(PLATFORMS, before)


def test_starting_with_the_tpus_compiler_installed_prints_nothing():
    code = "import taskvec_jax, jax; jax.devices()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_sums_are_right_in_this_process():
    check_sums.cache_clear()
    check_sums()


def test_a_machine_that_sums_wrongly_is_refused_with_the_way_out(monkeypatch):
    check_sums.cache_clear()
    monkeypatch.setattr(backend.jnp, "eye", lambda size: 1.5 * backend.np.eye(size))
    with pytest.raises(TaskVecError, match=r"sums wrongly .* set XLA_FLAGS=--xla_cpu_experimental"):
        check_sums()


@pytest.mark.skipif(backend.JAXLIB not in backend.AFFECTED, reason="this release is right")
def test_jax_that_started_before_the_flag_is_refused_when_a_model_is_loaded():
    script = (
        "import jax.numpy as jnp; jnp.zeros(3).block_until_ready()\n"
        "from taskvec_jax import TaskVecError, load_model\n"
        "try: load_model('pythia-icl-small')\n"
        "except TaskVecError as error: print(error)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert "import taskvec_jax before anything computes with JAX" in run.stdout
