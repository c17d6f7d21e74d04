"""Devices that are not there: what XLA's compilers for TPUs and GPUs need to compile for them.

    target = Target.parse("tpu:v5e:2x4")
    devices = devices_of(target)

What is compiled for such devices cannot be run. That it is compiled proves that every operation
exists there, and the compiler says how much memory it takes. Neither compiler needs its hardware:
that for TPUs is a Python package (libtpu, 0.7 GB on disk), that for GPUs JAX's CUDA plugin with
NVIDIA's libraries (3.8 GB). Where libtpu is installed and no TPU is there, JAX would look for one
whenever it starts and print errors; importing taskvec_jax keeps it from that.

A process compiles for one target: libtpu is told of it through the environment before it is loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from taskvec_jax.distributed.targets import GPUS_A_HOST, Target
from taskvec_jax.errors import TaskVecError, first_line

PLUGINS = {  # kind -> (module, how it is installed)
    "tpu": ("libtpu", "pip install 'taskvec-jax[tpu-compile]'   (or: pip install 'jax[tpu]')"),
    "gpu": ("jax_plugins.xla_cuda13", "pip install 'taskvec-jax[cuda]'   (4 GB on disk)"),
}


def devices_of(target: Target, most: int = 1) -> Sequence[Any]:
    """The devices of a target, for a mesh to compile for.

    Args:
      most: simulated devices, where the target is a CPU.

    Raises:
      TaskVecError: the compiler is not installed, or it does not know the target.
    """
    if target.chip.kind == "cpu":
        jax.config.update("jax_num_cpu_devices", most)
    jax.config.update("jax_platforms", "cpu")  # what is compiled for is not what runs here
    # A program for devices that are not here can be neither kept nor found again.
    jax.config.update("jax_enable_compilation_cache", False)
    if target.chip.kind == "cpu":
        return jax.devices()
    module, command = PLUGINS[target.chip.kind]
    if not _installed(module):
        raise TaskVecError(
            f"target {target}: its compiler is not installed; install it with: {command}"
        )
    try:
        topology = _tpu(target) if target.chip.kind == "tpu" else _gpu(target)
    except Exception as error:
        raise TaskVecError(
            f"target {target}: its compiler does not take it ({first_line(error)}); allowed are the"
            " shapes in which the chips are sold"
        ) from None
    devices = topology.devices
    if len(devices) != target.devices:
        raise TaskVecError(
            f"target {target}: the compiler makes {len(devices)} devices of it, not"
            f" {target.devices}"
        )
    return devices


def _installed(module: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(module) is not None
    return False


def _tpu(target: Target) -> Any:
    shape, number = "x".join(map(str, target.shape)), target.devices
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # do not wait for a cloud's metadata server
        "TPU_WORKER_HOSTNAMES": "localhost",
        # libtpu lets one process at a time in, because a chip has one user. Here no chip is used.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "TPU_ACCELERATOR_TYPE": target.chip.slice.format(n=number, cores=2 * number),
    }
    # Larger slices have hosts of 2x2 chips.
    host = (*target.shape, 1, 1)[:3] if target.hosts == 1 else (2, 2, 1)
    cores = {"chip_config_name": "megacore"} if target.name == "v4" else {}  # one device a chip
    return topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{target.chip.topology}:{shape}",
        chips_per_host_bounds=host,
        **cores,
    )


def _gpu(target: Target) -> Any:
    libraries = _cuda_directory()
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={libraries}"
    if "xla_gpu_cuda_data_dir" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    hosts = -(-target.devices // GPUS_A_HOST)
    shape = f"1x{hosts}x{target.devices // hosts}"
    return topologies.get_topology_desc(
        platform="cuda", topology_name=shape, topology=shape, target_config=_description(target)
    )


def _cuda_directory() -> Path:
    """Where NVIDIA's libraries of the plugin lie."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(place) / "cu13").is_dir():
            return found
    raise TaskVecError(
        f"NVIDIA's libraries are not beside the CUDA plugin; install both with: {PLUGINS['gpu'][1]}"
    )


def _description(target: Target) -> str:
    """XLA's GpuTargetConfigProto of a GPU, in text: what no GPU of its kind differs in."""
    chip, gpu = target.chip, target.chip.gpu
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": gpu["shared"],
        "threads_per_core_limit": 2048,
        "core_count": gpu["core_count"],
        "fpus_per_core": gpu["fpus_per_core"],
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": gpu["l2"],
        "clock_rate_ghz": gpu["clock_rate_ghz"],
        "device_memory_size": int(chip.memory),
        "shared_memory_per_block_optin": gpu["shared_block"],
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    capability = f"cuda_compute_capability {{ major: {gpu['major']} minor: {gpu['minor']} }}"
    lines = " ".join(f"{name}: {value}" for name, value in fields.items())
    return (
        f"gpu_device_info {{ {lines} {capability} }}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 patch: 0 }\n'
    )
