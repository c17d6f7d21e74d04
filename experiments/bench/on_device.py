"""What the device at hand does: the numbers of an accelerator in one table.

    python -m experiments.bench.on_device
    python -m experiments.bench.on_device --shape=llama-7b --dtype=bfloat16 --batch_size=50

On the first device, whatever it is:

* the certificate: the default model in float32 against stored numbers of Hugging Face;
* a model of the given shape with random weights: model-FLOPs utilisation of reading rows of
  demonstrations and of the layer sweep (needed work by the vendor's peak in bfloat16; padding
  counts for nothing), and new tokens a second;
* peak memory against the plan;
* where torch sees the same device, Hugging Face's model of that shape: seconds of a layer loop,
  which runs the query's last token once for each layer, against the sweep's.

Seconds are medians of --repeats turns after one that compiles. Writes on_device.json under --out.
Made for a GPU or TPU with 20 GB or more; nobody has run it on one yet (2026-11-26). Aims on an
H100: at least half of the peak in reading, two fifths in the sweep, 30 times torch's loop.

Time: not known yet.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from convert.verify.goldens import check_goldens
from experiments.bench.machine import peak_flops, peak_memory
from experiments.bench.memory import reset_peak_memory
from experiments.bench.random_model import check_shape, random_model
from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from experiments.run.results import prepare_out, provenance, write_json
from taskvec_jax.distributed.footprint import PROGRAMS, RowSizes, program_bytes
from taskvec_jax.distributed.plan import GB, device_kind
from taskvec_jax.models import generating
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import DEFAULT_MODEL
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.vectors import sweep
from taskvec_jax.vectors.flops import injection_flops, reading_flops

DEMONSTRATIONS, BRANCH, BRANCHES = 80, 10, 3  # tokens of a row that is read, and of each branch
QUERY = 12  # tokens of a zero-shot query


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median of some turns, after one that compiles."""
    work()
    turns = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        turns.append(time.perf_counter() - start)
    return statistics.median(turns)


def texts_of(config: DecoderConfig, rows: int) -> tuple[list[list[list[int]]], list[list[int]]]:
    """Rows of texts that begin alike, and zero-shot queries, of random tokens."""
    rng = np.random.RandomState(0)

    def draw(count: int) -> list[int]:
        return rng.randint(0, config.vocab_size, count).tolist()

    read = []
    for _ in range(rows):
        begin = draw(DEMONSTRATIONS)
        read.append([begin + draw(BRANCH) for _ in range(BRANCHES)])
    return read, [draw(QUERY) for _ in range(rows)]


def measure(model: Model, rows: int, repeats: int, new_tokens: int) -> dict[str, Any]:
    """Reading, the sweep and generation of a model, and the memory they took."""
    config = model.config
    read, queries = texts_of(config, rows)
    shape = (rows, config.num_layers, config.width)
    theta = np.random.RandomState(1).standard_normal(shape).astype(np.float32)
    reset_peak_memory()
    reading = seconds(lambda: sweep.read_texts(model, read, rows), repeats)
    sweeping = seconds(lambda: sweep.sweep_layers(model, queries, theta, rows), repeats)
    generated = seconds(
        lambda: generating.generate(
            config, model.params, queries, max_new_tokens=new_tokens, mesh=model.mesh
        ),
        repeats,
    )
    layers = range(config.num_layers)
    flops = {
        "reading": sum(reading_flops(config, texts, len(texts)) for texts in read),
        "sweep": sum(injection_flops(config, len(query), layers) for query in queries),
    }
    longest = sweep.row_length(DEMONSTRATIONS + BRANCH * BRANCHES)
    sizes = RowSizes(longest, sweep.query_length(QUERY), BRANCHES)
    planned = max(
        program_bytes(config, program, rows, None, sizes, device_kind()) for program in PROGRAMS
    )
    return {
        "reading_seconds": reading,
        "sweep_seconds": sweeping,
        "reading_flops": flops["reading"],
        "sweep_flops": flops["sweep"],
        "tokens_per_second": rows * new_tokens / generated,
        "peak_bytes": peak_memory(),
        "planned_bytes": planned,
    }


def torch_loop_seconds(config: DecoderConfig, rows: int, repeats: int) -> float | None:
    """Seconds of a layer loop in Hugging Face's model of this shape, in bfloat16 on the same card.

    None where torch is not installed or sees no such card.
    """
    if importlib.util.find_spec("torch") is None:
        return None
    from experiments.bench import torch_loop  # needs torch

    return torch_loop.random_loop_seconds(config, rows, QUERY, repeats)


def _share(flops: float, taken: float, peak: float | None) -> str:
    speed = f"{flops / taken / 1e12:.3g} TFLOP/s"
    return speed if peak is None else f"{speed}, {flops / taken / peak:.1%} of the vendor's peak"


def main() -> None:
    """Prints a line a measurement, and writes on_device.json."""
    check_shape(FLAGS.shape)
    out = prepare_out(FLAGS.out)
    started = time.monotonic()
    kind = jax.devices()[0].device_kind
    peak = peak_flops(kind)
    certified = load_model(FLAGS.model, "float32")
    worst = check_goldens(certified)
    console.print(
        f"{kind}: {FLAGS.model} in float32 is Hugging Face's within {worst:.1e} of each site",
        markup=False,
    )
    about = provenance(certified, 0, 0.0)
    del certified
    model = random_model(FLAGS.shape, FLAGS.dtype, FLAGS.layers)
    found = measure(model, FLAGS.batch_size, FLAGS.repeats, FLAGS.new_tokens)
    config = model.config
    del model
    loop = torch_loop_seconds(config, FLAGS.batch_size, FLAGS.repeats) if FLAGS.torch else None
    console.print(
        f"random {FLAGS.shape}, {FLAGS.dtype}, {config.num_layers} layers, {FLAGS.batch_size} rows:"
        f" reading {_share(found['reading_flops'], found['reading_seconds'], peak)}; sweep"
        f" {_share(found['sweep_flops'], found['sweep_seconds'], peak)};"
        f" {found['tokens_per_second']:.0f} new tokens a second; peak memory"
        f" {(found['peak_bytes'] or 0) / GB:.2f} GB, plan {found['planned_bytes'] / GB:.2f} GB",
        markup=False,
    )
    if loop is not None:
        console.print(
            f"torch's layer loop takes {loop:.3g} s, {loop / found['sweep_seconds']:.1f} times the"
            " sweep",
            markup=False,
        )
    about["seconds"] = round(time.monotonic() - started, 3)
    result = {
        "shape": FLAGS.shape,
        "dtype": FLAGS.dtype,
        "layers": config.num_layers,
        "batch_size": FLAGS.batch_size,
        "device": kind,
        "vendor_flops_per_second": peak,
        "certificate": worst,
        **found,
        "torch_loop_seconds": loop,
        "provenance": about,
    }
    write_json(out / "on_device.json", result)


if __name__ == "__main__":
    flags.DEFINE_string("model", DEFAULT_MODEL, "whose float32 numbers are compared")
    flags.DEFINE_string("shape", "llama-7b", "random weights of this model's shape are timed")
    flags.DEFINE_string("dtype", "bfloat16", "of the parameters; int8: of the kernels")
    flags.DEFINE_integer(
        "layers", None, "how many; those of the shape when left out", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 50, "rows a call", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 64, "of a row", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "timed turns", lower_bound=1)
    flags.DEFINE_bool("torch", True, "also time torch's loop, where torch sees the device")
    flags.DEFINE_string("out", "results/on_device", "directory for results")
    command.run(main)
