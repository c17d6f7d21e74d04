"""Memory and speed of conversion: a synthetic checkpoint of 2.2 GB, read, converted, written.

    python -m experiments.bench.conversion
    python -m experiments.bench.conversion --layers=2 --width=256 --scratch=/tmp
    python -m experiments.bench.conversion --formats=bin,pth,gguf
    python -m experiments.bench.conversion --processes=4

Makes a sharded Hugging Face directory of random LLaMA weights (TinyLlama's shape unless flags say
otherwise), then, each in a process of its own: reads all its tensors with the safetensors package
and throws them away; converts it in memory; converts it and writes the checkpoint; restores that.
Prints seconds, GB/s and peak resident memory beside the bound of a conversion, 1.25 x the converted
tree + 300 MB, and writes conversion_benchmark.json under --out. Needs 5 GB of disk in --scratch.
--formats takes the same weights from other files: pytorch_model.bin in four, Meta's
consolidated.*.pth in two (torch writes both, and is not there when they are read), GGUF in Q8_0.

With --processes, that many processes that meet over localhost then convert, write and restore it
with the model split between them: the most that any of them took, less what it takes for a tiny
model, beside its share of the tree and the largest tensor.

Expected: see BUILD_NOTES.md.

Time: 2 minutes (2 cores, most of it making the checkpoint).
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags

from experiments.bench import synthetic_model
from experiments.bench.memory import process_peak
from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from experiments.run.results import prepare_out, write_json
from taskvec_jax.distributed.plan import parameter_count
from taskvec_jax.errors import TaskVecError

MB = 1e6


def main() -> None:
    """Runs the benchmark the flags ask for."""
    if FLAGS.width < 64 or FLAGS.width % 64:
        raise TaskVecError(f"--width is {FLAGS.width}; allowed: multiples of 64")
    out, dtype = prepare_out(FLAGS.out), FLAGS.dtype
    config = synthetic_model.make_config(FLAGS.layers, FLAGS.width, FLAGS.vocabulary)
    size = 2 * parameter_count(config)
    results: dict[str, Any] = {"bytes": size, "layers": FLAGS.layers, "width": FLAGS.width}
    for kind in FLAGS.formats:
        with tempfile.TemporaryDirectory(dir=FLAGS.scratch) as scratch:
            source = synthetic_model.write(Path(scratch) / "source", config, kind)
            on_disk = sum(file.stat().st_size for file in source.parent.rglob("*.*"))
            console.print(f"made {on_disk / MB:.0f} MB of weights as {kind}")
            results[kind] = in_stages(source, Path(scratch) / "converted", kind, dtype, size)
            if FLAGS.processes > 1:
                results[kind]["shared"] = by_several(source, Path(scratch), kind, dtype, size)
    results |= {"dtype": dtype, "cores": os.cpu_count(), "machine": platform.processor()}
    write_json(out / "conversion_benchmark.json", results)
    over = [
        f"{name} of {kind}"
        for kind in FLAGS.formats
        for name in ("convert", "convert_and_write")
        if results[kind][name]["peak_bytes"] > results[kind][name]["bound_bytes"]
    ]
    if over:
        raise TaskVecError(f"{', '.join(over)} took more memory than allowed; see the table")


def known(kind: str) -> None:
    """Refuses a format that is none.

    Raises:
      TaskVecError: it says what is allowed.
    """
    if kind not in synthetic_model.KINDS:
        raise TaskVecError(f"no format {kind!r}; allowed: {', '.join(synthetic_model.KINDS)}")


def in_stages(source: Path, converted: Path, kind: str, dtype: str, size: int) -> dict[str, Any]:
    """Stage -> seconds, speed and memory of it, each in a process of its own.

    Args:
      source: what is converted.
      converted: where the checkpoint is written.
      kind: one of `synthetic_model.KINDS`.
      dtype: of the converted tree.
      size: of the weights in bfloat16, bytes.
    """
    stages: list[tuple[str, Callable[..., None], tuple[str, ...], str]] = [
        ("raw_read", raw_read, (str(source),), "bfloat16"),
        ("convert", convert_in_memory, (str(source), dtype), dtype),
        ("convert_and_write", convert_to_disk, (str(source), str(converted), dtype), dtype),
        ("restore", restore, (str(converted),), dtype),
    ]
    results = {}
    for name, work, arguments, stored in stages:
        if name == "raw_read" and kind != "safetensors":
            continue
        tree = size * np.dtype(_numpy_dtype(stored)).itemsize / 2
        bound = 1.25 * tree + 300 * MB
        seconds, peak = measured(work, *arguments)
        results[name] = {
            "seconds": seconds,
            "gigabytes_per_second": size / seconds / 1e9,
            "peak_bytes": peak,
            "bound_bytes": bound,
            "tree_bytes": tree,
        }
        console.print(
            f"{name:<18} {seconds:6.1f} s  {size / seconds / 1e9:5.2f} GB/s of bfloat16  peak"
            f" {peak / MB:6.0f} MB  bound {bound / MB:6.0f} MB"
        )
    return results


def by_several(source: Path, scratch: Path, kind: str, dtype: str, size: int) -> dict[str, Any]:
    """Conversion and restore by --processes processes, of the source and of a tiny model.

    Args:
      source: what is converted.
      scratch: a directory for more.
      kind: one of `synthetic_model.KINDS`.
      dtype: of the converted tree.
      size: of the weights in bfloat16, bytes.
    """
    count = FLAGS.processes
    width = np.dtype(_numpy_dtype(dtype)).itemsize / 2  # of a number, against the source's
    largest = 2 * FLAGS.width * max(FLAGS.vocabulary, FLAGS.width * 11 // 4)
    share = size * width / count
    out: dict[str, Any] = {
        "processes": count,
        "share_bytes": share,
        "tensor_bytes": largest,
    }
    small = synthetic_model.make_config(1, 64 * count, 512)
    tiny = synthetic_model.write(scratch / "tiny", small, kind)
    for name, work in (("convert_and_write", convert_shares), ("restore", restore_shares)):
        runtime = measured_together(count, work, str(tiny), str(scratch / "tiny_shares"), dtype)
        seconds, peak = measured_together(count, work, str(source), str(scratch / "shares"), dtype)
        out[name] = {"seconds": seconds, "peak_bytes": peak, "runtime_bytes": runtime[1]}
        console.print(
            f"{name} by {count} processes: {seconds:.1f} s; peak of the largest {peak / MB:.0f} MB,"
            f" {(peak - runtime[1]) / MB:.0f} MB above a tiny model's; share {share / MB:.0f} MB,"
            f" largest tensor {largest / MB:.0f} MB"
        )
    return out


def _numpy_dtype(dtype: str) -> Any:
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype


def measured(work: Callable[..., None], *arguments: Any) -> tuple[float, int]:
    """Seconds and peak resident bytes of some work in a fresh process.

    The process has no torch: transformers imports it (230 MB) wherever it finds it.

    Raises:
      TaskVecError: the process failed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise TaskVecError(f"{work.__name__} failed; its own message is above") from None
    finally:
        process.join()


def measured_together(count: int, work: Callable[..., None], *arguments: str) -> tuple[float, int]:
    """`measured`, of several processes that meet: the longest, and the largest peak."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"localhost:{free.getsockname()[1]}"
    with ThreadPoolExecutor(count) as pool:
        found = list(
            pool.map(
                lambda i: measured(_in_company, where, str(count), str(i), work, *arguments),
                range(count),
            )
        )
    return max(seconds for seconds, _ in found), max(peak for _, peak in found)


def _in_company(
    where: str, count: str, index: str, work: Callable[..., None], *arguments: str
) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(where, int(count), int(index))
    work(*arguments)


def _measure(pipe: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    started = time.monotonic()
    work(*arguments)
    seconds = time.monotonic() - started
    peak = process_peak()
    if peak is None:  # a Mac, which counts bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((seconds, peak))


def raw_read(source: str) -> None:
    """Every tensor through the safetensors package, and thrown away: the speed to aim at."""
    import safetensors

    for path in sorted(Path(source).glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name).reshape(-1).view(np.uint8)
                tensor[::4096].max()  # a mapped page is read when it is touched


def convert_in_memory(source: str, dtype: str) -> None:
    """Source to parameters on the device."""
    import jax

    from convert import convert

    device = jax.devices()[0]
    convert(Path(source), dtype, place=lambda path, leaf: jax.device_put(leaf, device))


def convert_to_disk(source: str, out: str, dtype: str) -> None:
    """Source to a converted checkpoint."""
    from taskvec_jax.models.converting import convert_model

    convert_model(source, Path(out), dtype=dtype)


def restore(path: str) -> None:
    """Converted checkpoint to parameters on the device."""
    from taskvec_jax.models import checkpoint

    checkpoint.restore(Path(path))


def convert_shares(source: str, out: str, dtype: str) -> None:
    """`convert_to_disk`, the model split between the processes."""
    import jax

    from taskvec_jax.distributed.sharding import MeshShape, make_mesh
    from taskvec_jax.models.converting import convert_model

    mesh = make_mesh(MeshShape(model=jax.process_count()))
    convert_model(source, Path(out), dtype=dtype, mesh=mesh)


def restore_shares(source: str, path: str, dtype: str) -> None:
    """`restore`, the model split between the processes."""
    import jax

    from taskvec_jax.distributed.sharding import MeshShape, make_mesh
    from taskvec_jax.models import checkpoint

    del source
    mesh = make_mesh(MeshShape(model=jax.process_count()))
    checkpoint.restore(Path(path), dtype, mesh)


if __name__ == "__main__":
    flags.DEFINE_integer("layers", 22, "of the synthetic model", lower_bound=1)
    flags.DEFINE_integer("width", 2048, "of the synthetic model; a multiple of 64")
    flags.DEFINE_integer("vocabulary", 32000, "of the synthetic model", lower_bound=16)
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of the converted tree")
    command.define_list(
        "formats", ["safetensors"], f"of the source: {', '.join(synthetic_model.KINDS)}", known
    )
    flags.DEFINE_integer("processes", 1, "that share it; 1: not measured", lower_bound=1)
    flags.DEFINE_string("scratch", None, "directory for 5 GB of files; the system's when left out")
    flags.DEFINE_string("out", "results/conversion_benchmark", "directory for results")
    command.run(main)
