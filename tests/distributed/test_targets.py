"""Accelerators by name."""

from __future__ import annotations

import pytest

from taskvec_jax.distributed.targets import CHIPS, Target, chip_of
from taskvec_jax.errors import TaskVecError


@pytest.mark.parametrize(
    ("text", "devices", "hosts"),
    [
        ("tpu:v5e:1x1", 1, 1),
        ("tpu:v5e:2x4", 8, 1),
        ("tpu:v5e:4x8", 32, 8),
        ("tpu:v4:2x2x2", 8, 2),
        ("tpu:v6e:4x4", 16, 4),
        ("gpu:h200:1", 1, 1),
        ("gpu:a100-80:4", 4, 1),
        ("gpu:h100:16", 16, 2),
    ],
)
def test_a_target_has_as_many_devices_and_hosts_as_it_is_sold_with(text, devices, hosts):
    target = Target.parse(text)
    assert (target.devices, target.hosts, str(target)) == (devices, hosts, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "tpu", "tpu:v5e", "tpu:v3:2x2", "tpu:v5e:2x", "tpu:v5e:0x2", "tpu:v4:2x2x2x2"),
        *("gpu:h100:2x2", "gpu:h100:12", "gpu:h100:-1", "cuda:h100:1", "cpu:8"),
    ],
)
def test_a_target_that_is_not_known_is_refused_with_what_is(text):
    with pytest.raises(TaskVecError, match=r"target '.*'.*(allowed: cpu|it is like|whole hosts)"):
        Target.parse(text)


def test_a_chip_is_found_by_the_name_that_jax_gives_its_devices():
    names = {
        "TPU v5 lite": CHIPS["tpu"]["v5e"],
        "TPU v5": CHIPS["tpu"]["v5p"],
        "TPU v6 lite": CHIPS["tpu"]["v6e"],
        "TPU v4": CHIPS["tpu"]["v4"],
        "NVIDIA H100 80GB HBM3": CHIPS["gpu"]["h100"],
        "NVIDIA H100 PCIe": CHIPS["gpu"]["h100-pcie"],
        "NVIDIA H200": CHIPS["gpu"]["h200"],
        "NVIDIA A100-SXM4-40GB": CHIPS["gpu"]["a100-40"],
        "NVIDIA A100-SXM4-80GB": CHIPS["gpu"]["a100-80"],
        "cpu": None,
    }
    assert {name: chip_of(name) for name in names} == names


def test_full_precision_is_never_faster_and_every_way_has_a_rate():
    for chips in CHIPS.values():
        for name, chip in chips.items():
            rates = [chip.peak[how] for how in ("highest", "high", "default", "bfloat16")]
            assert rates == sorted(rates), name
            assert min(chip.memory, chip.bandwidth, chip.link) > 1e9, name
