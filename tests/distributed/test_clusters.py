"""Several processes that a cluster started find one another without flags."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from absl import flags

from convert import cli
from taskvec_jax.distributed import processes
from taskvec_jax.errors import TaskVecError


def bus(path: Path, vendor: str, device: str) -> Path:
    """A PCI bus with one device, as the kernel shows it."""
    (path / "0000:00:04.0").mkdir(parents=True)
    (path / "0000:00:04.0" / "vendor").write_text(f"{vendor}\n")
    (path / "0000:00:04.0" / "device").write_text(f"{device}\n")
    return path


def test_a_cluster_is_found_where_it_started_several_processes(tmp_path):
    step = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
    nothing = tmp_path / "no-such-bus"
    assert processes.found_cluster(step, nothing) == "Slurm"
    # One task, and the script of a job of several tasks, which runs once.
    assert processes.found_cluster(step | {"SLURM_STEP_NUM_TASKS": "1"}, nothing) is None
    assert processes.found_cluster({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, nothing) is None
    assert processes.found_cluster({"TPU_WORKER_HOSTNAMES": "a,b"}, nothing) == "Cloud TPU"
    assert processes.found_cluster({"TPU_WORKER_HOSTNAMES": "localhost"}, nothing) is None
    assert processes.found_cluster({}, bus(tmp_path / "v5e", "0x1ae0", "0x0063")) == "Cloud TPU"
    network_card = bus(tmp_path / "nic", "0x1ae0", "0x0042")
    assert processes.found_cluster({}, network_card) is None


@pytest.fixture
def joined(monkeypatch):
    """The calls of jax.distributed.initialize, with flags as on an empty command line."""
    values = flags.FlagValues()
    for name in ("coordinator", "num_processes", "process_id"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    values(["command"])
    monkeypatch.setattr(cli, "FLAGS", values)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    return calls


def test_processes_of_a_cluster_join_by_themselves_and_others_do_not(joined, monkeypatch):
    monkeypatch.setattr(cli, "found_cluster", lambda: None)
    cli.join_processes()
    assert joined == []
    monkeypatch.setattr(cli, "found_cluster", lambda: "Slurm")
    cli.join_processes()
    assert joined == [(None, None, None)]


def test_processes_of_a_cluster_that_do_not_meet_are_told_the_way_out(joined, monkeypatch):
    def fail(*_):
        raise RuntimeError("DEADLINE_EXCEEDED: barrier timed out")

    monkeypatch.setattr(cli, "found_cluster", lambda: "Slurm")
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(TaskVecError, match=r"auto: .*DEADLINE.* by Slurm: .*--coordinator=HOST"):
        cli.join_processes()
