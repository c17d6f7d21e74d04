"""Memory and speed of conversion: a synthetic checkpoint of 2.2 GB, read, converted, written.

    python -m experiments.conversion_benchmark
    python -m experiments.conversion_benchmark --layers=2 --width=256 --scratch=/tmp
    python -m experiments.conversion_benchmark --processes=4

Makes a sharded Hugging Face directory of random LLaMA weights (TinyLlama's shape unless flags say
otherwise), then, each in a process of its own: reads all its tensors with the safetensors package
and throws them away; converts it in memory; converts it and writes the checkpoint; restores that.
Prints seconds, GB/s and peak resident memory beside the bound of a conversion, 1.25 x the converted
tree + 300 MB, and writes conversion_benchmark.json under --out. Needs 5 GB of disk in --scratch.

With --processes, that many processes that meet over localhost then convert, write and restore it
with the model split between them: the most that any of them took, less what it takes for a tiny
model, beside its share of the tree and the largest tensor.

Expected on 2 cores: about 2 minutes, most of it making the checkpoint; see BUILD_NOTES.md.
"""

from __future__ import annotations

import json
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

from experiments import command
from experiments.command import FLAGS, console
from taskvec_jax.errors import TaskVecError

MB = 1e6
SHARDS = 4
POOL = 1 << 23  # random numbers the weights are cut from


def main() -> None:
    """Runs the benchmark the flags ask for."""
    out, dtype = command.prepare_out(FLAGS.out), FLAGS.dtype
    with tempfile.TemporaryDirectory(dir=FLAGS.scratch) as scratch:
        source = Path(scratch) / "source"
        size = make_checkpoint(source, FLAGS.layers, FLAGS.width, FLAGS.vocabulary)
        console.print(f"made {size / MB:.0f} MB of bfloat16 weights in {SHARDS} files")
        results: dict[str, Any] = {"bytes": size, "layers": FLAGS.layers, "width": FLAGS.width}
        converted = str(Path(scratch) / "converted")
        stages: list[tuple[str, Callable[..., None], tuple[str, ...], str]] = [
            ("raw_read", raw_read, (str(source),), "bfloat16"),
            ("convert", convert_in_memory, (str(source), dtype), dtype),
            ("convert_and_write", convert_to_disk, (str(source), converted, dtype), dtype),
            ("restore", restore, (converted,), dtype),
        ]
        for name, work, arguments, kind in stages:
            tree = size * np.dtype(_numpy_dtype(kind)).itemsize / 2
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
                f"{name:<18} {seconds:6.1f} s  {size / seconds / 1e9:5.2f} GB/s of source  peak"
                f" {peak / MB:6.0f} MB  bound {bound / MB:6.0f} MB"
            )
        if FLAGS.processes > 1:
            results["shared"] = by_several(source, Path(scratch), dtype, size)
    results |= {"dtype": dtype, "cores": os.cpu_count(), "machine": platform.processor()}
    command.write_json(out / "conversion_benchmark.json", results)
    over = [
        name
        for name in ("convert", "convert_and_write")
        if results[name]["peak_bytes"] > results[name]["bound_bytes"]
    ]
    if over:
        raise TaskVecError(f"{', '.join(over)} took more memory than allowed; see the table")


def by_several(source: Path, scratch: Path, dtype: str, size: int) -> dict[str, Any]:
    """Conversion and restore by --processes processes, of the source and of a tiny model.

    Args:
      size: bytes of the source.
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
    tiny = scratch / "tiny"
    make_checkpoint(tiny, 1, 64 * count, 512)
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


def make_checkpoint(directory: Path, layers: int, width: int, vocabulary: int) -> int:
    """Writes a sharded Hugging Face directory of random LLaMA weights; returns their bytes."""
    import tokenizers

    from convert import llama, rules, safetensors_file
    from taskvec_jax.config import DecoderConfig

    config = DecoderConfig(
        family="llama",
        vocab_size=vocabulary,
        num_layers=layers,
        width=width,
        num_heads=width // 64,
        num_kv_heads=width // 64 // 4 or 1,
        head_dim=64,
        mlp_width=width * 11 // 4,
        norm_eps=1e-5,
        rope_base=10_000.0,
        rope_dim=64,
        max_length=2048,
        dtype="bfloat16",
    )
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(llama.config_to_hf(config)))
    vocab = {f"w{i}": i for i in range(vocabulary)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0"))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    shapes = {
        step.name: rules.source_shape(config, step)
        for step in rules.applicable_steps(llama.HF, config)
    }
    rng = np.random.default_rng(0)
    pool = (rng.standard_normal(POOL, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    def random(shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        start = int(rng.integers(POOL))
        return np.resize(np.roll(pool, start), count).reshape(shape)

    index: dict[str, str] = {}
    names = list(shapes)
    for i in range(SHARDS):
        file = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[i * len(names) // SHARDS : (i + 1) * len(names) // SHARDS]
        safetensors_file.write(
            directory / file,
            ml_dtypes.bfloat16,
            [(name, shapes[name], lambda name=name: random(shapes[name])) for name in part],
        )
        index |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return 2 * sum(int(np.prod(shape)) for shape in shapes.values())


def measured(work: Callable[..., None], *arguments: Any) -> tuple[float, int]:
    """Seconds and peak resident bytes of some work in a fresh process.

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
    # Nothing here needs torch, but transformers imports it (230 MB) wherever it is installed.
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    started = time.monotonic()
    work(*arguments)
    seconds = time.monotonic() - started
    pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


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
    from taskvec_jax.loading import convert_model

    convert_model(source, Path(out), dtype=dtype)


def restore(path: str) -> None:
    """Converted checkpoint to parameters on the device."""
    from taskvec_jax import checkpoint

    checkpoint.restore(Path(path))


def convert_shares(source: str, out: str, dtype: str) -> None:
    """`convert_to_disk`, the model split between the processes."""
    import jax

    from taskvec_jax.loading import convert_model
    from taskvec_jax.sharding import MeshShape, make_mesh

    mesh = make_mesh(MeshShape(model=jax.process_count()))
    convert_model(source, Path(out), dtype=dtype, mesh=mesh)


def restore_shares(source: str, path: str, dtype: str) -> None:
    """`restore`, the model split between the processes."""
    import jax

    from taskvec_jax import checkpoint
    from taskvec_jax.sharding import MeshShape, make_mesh

    del source
    mesh = make_mesh(MeshShape(model=jax.process_count()))
    checkpoint.restore(Path(path), dtype, mesh)


if __name__ == "__main__":
    flags.DEFINE_integer("layers", 22, "of the synthetic model")
    flags.DEFINE_integer("width", 2048, "of the synthetic model; a multiple of 64")
    flags.DEFINE_integer("vocabulary", 32000, "of the synthetic model")
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of the converted tree")
    flags.DEFINE_integer("processes", 1, "that share the model; 1: no sharing is measured")
    flags.DEFINE_string("scratch", None, "directory for 5 GB of files; the system's when left out")
    flags.DEFINE_string("out", "results/conversion_benchmark", "directory for results")
    command.run(main)
