"""How fast the sweep is, and against what: one run, paired and repeated.

    python -m experiments.bench.sweep
    python -m experiments.bench.sweep --tasks=algorithmic_to_upper,linguistic_antonyms --repeats=5
    python -m experiments.bench.sweep --dtypes=bfloat16 --stages=layer_loop,packed --nodepths
    python -m experiments.bench.sweep --shape=llama-7b --dtypes=bfloat16,int8 \\
        --stages=layer_loop,packed --nodepths --tasks=algorithmic_to_upper,linguistic_antonyms

The last two are for a GPU or TPU: model-FLOPs utilisation (the share of the vendor's dense peak
that needed work takes; padding and repetition count for nothing), peak memory of the device (it
cannot be reset, so ask for one dtype and one stage to have its own), and the ratio to the same
work looped layer by layer.

The work is the paper's main experiment (theta of dev and test prompts, in-context answers, the
sweep over all layers on dev, the best layer on test), done in steps of improvement:

* layer_loop: every layer a call of its own, over full forwards of the zero-shot query;
* naive: the definition, a vmap over layers of full forwards;
* prefix_cache: only the last token is copied, the query's keys are shared, all copies from layer 0;
* wavefront: a copy joins when it is written;
* shared_demonstrations: prompts of one draw share their demonstrations' forward;
* packed: rows sorted by length and padded to few shapes (what every experiment uses);
* torch_paper: if torch is there, Hugging Face's model with a prefix cache, one call a layer, and
  logits of every token, which is how the paper's code works;
* torch_loop: the same, spared the logits that nothing reads;
* torch_bfloat16: that in bfloat16, in turns with ours in bfloat16;
* torch_compiled: torch_loop with torch.compile round its blocks, which takes minutes and a C++
  compiler; nnsight: a trace a layer over whole texts, as one writes it with that library. These two
  only where --stages names them.

Every step must give the same answers, but for bfloat16, where the share that agrees is told.
Seconds are medians of repeats in which the steps take turns; compilation is told apart. Ratios to
`packed`, and shares of the rate of a large matrix product measured before and after each turn, are
medians of those of single turns, with the lowest and the highest. `done` in the table is the work
that a stage's programs did, with padding and repetition, over what is needed. Writes benchmark.json
and benchmark.png under --out.

Expected on 2 cores for the default model and all 18 tasks: see BUILD_NOTES.md.

Time: 40 minutes (2 cores).
"""

# Long because: flags, turns and the figures to quote are one run.

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.bench.figure import draw, print_table
from experiments.bench.machine import peak_flops, peak_memory
from experiments.bench.memory import reset_peak_memory
from experiments.bench.random_model import check_shape, random_model
from experiments.bench.stages import (
    ACCOUNTED,
    BY_NAME,
    JAX_STAGES,
    STAGES,
    TORCH_STAGES,
    Outcome,
    Part,
    Stage,
    agreement,
    needed_flops,
    prepare,
)
from experiments.bench.turns import ratios
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import FLAGS, console
from experiments.run.gemm import gemm_rate
from experiments.run.own_tasks import tokenizer_of
from experiments.run.results import prepare_out, provenance, write_json
from experiments.run.start import fitting_tasks, tell_left_out
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.config import DTYPES
from taskvec_jax.vectors import sweep
from taskvec_jax.vectors.account import ACCOUNT
from taskvec_jax.vectors.programs import wavefront_schedule

DEPTHS = (8, 16, 32)


def measure(
    model: Model, parts: list[Part], stages: dict[str, Stage], repeats: int, batch_size: int
) -> dict[str, Any]:
    """Times every stage over all parts, in turns.

    Returns:
      stage -> {first_seconds, steady_seconds (median), runs, gemm_flops_per_second (in each of
      these turns: the better of a measurement right before and one right after), agreement,
      peak_bytes, done_flops (of one turn; None for stages that are not in `ACCOUNTED`)}, and
      times_packed {median, lowest, highest}: of the ratios of single turns to packed's.
    """
    result: dict[str, Any] = {}
    outcomes: dict[str, list[Outcome]] = {}
    with command.progress_bar() as bar:
        row = bar.add_task("benchmark", total=(1 + repeats) * len(stages) * len(parts))
        rate = gemm_rate(model)
        for turn in range(1 + repeats):
            for name, stage in stages.items():
                reset_peak_memory()
                before, start = ACCOUNT.now(), time.perf_counter()
                outcome = []
                for part in parts:
                    bar.update(row, description=f"{name}, turn {turn}")
                    outcome.append(stage(model, part, batch_size))
                    bar.advance(row)
                seconds = time.perf_counter() - start
                entry = result.setdefault(name, {"runs": [], "gemm_flops_per_second": []})
                entry["peak_bytes"] = peak_memory()
                rate_before, rate = rate, gemm_rate(model)
                if turn == 0:
                    outcomes[name] = outcome
                    entry["first_seconds"] = seconds
                    done = ACCOUNT.since(before).done
                    entry["done_flops"] = done if name in ACCOUNTED else None
                else:
                    entry["runs"].append(seconds)
                    entry["gemm_flops_per_second"].append(max(rate_before, rate))
    reference = outcomes.get("packed") or next(iter(outcomes.values()))
    for name, entry in result.items():
        entry["steady_seconds"] = statistics.median(entry["runs"])
        if "packed" in result:
            entry["times_packed"] = ratios(entry["runs"], result["packed"]["runs"])
        entry["compile_seconds"] = max(0.0, entry["first_seconds"] - entry["steady_seconds"])
        entry["agreement_with_packed"] = float(
            np.mean([agreement(o, r) for o, r in zip(outcomes[name], reference, strict=True)])
        )
    return {"stages": result, "layers": [o.layer for o in reference]}


def depth_scaling(name: str, dtype: str, part: Part, batch_size: int) -> list[dict[str, float]]:
    """Seconds of the sweep alone at several depths of random weights, and its layer steps."""
    rows = []
    for depth in DEPTHS:
        model = random_model(name, dtype, depth)
        theta = np.random.RandomState(0).standard_normal((part.half, depth, model.config.width))
        queries = part.queries[: part.half]
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            sweep.sweep_layers(model, queries, theta.astype(np.float32), batch_size)
            seconds.append(time.perf_counter() - start)
        schedule = wavefront_schedule(depth)
        starts = [0, *(end for end, _ in schedule)]
        steps = sum(
            alive * (end - start) for start, (end, alive) in zip(starts, schedule, strict=False)
        )
        rows.append(
            {
                "layers": depth,
                "seconds": statistics.median(seconds[1:]),
                "copy_layer_steps": steps,
                "half_square": depth * depth / 2,
            }
        )
    return rows


def torch_stages(model: Model, dtype: str) -> dict[str, Stage]:
    """The steps of `TORCH_STAGES` that are asked for and take turns with ours in a dtype, on the
    same weights; a line for each that lacks a package."""
    found: dict[str, Stage] = {}
    for name in FLAGS.stages:
        way = TORCH_STAGES.get(name)
        if way is None or dtype not in way.beside:
            continue
        if missing := [p for p in way.packages if not importlib.util.find_spec(p)]:
            way_out = "pip install -e '.[test]'" if missing[0] == "torch" else "pip install nnsight"
            console.print(f"{missing[0]} is not installed: no {name} ({way_out})", markup=False)
            continue
        from experiments.bench import torch_loop  # needs torch

        theirs = torch_loop.exported(model, way.dtype)
        if way.traced:
            from experiments.bench.nnsight_loop import NnsightLoop

            loop = NnsightLoop(theirs, way.logits_to_keep)
        else:
            loop = torch_loop.TorchLoop(theirs, way.logits_to_keep)
        if way.compiled:
            torch_loop.compile_blocks(loop)
        found[name] = lambda _, part, size, loop=loop: Outcome(*torch_loop.run(loop, part, size))
    return found


def run_dtype(dtype: str, tasks: list[Task], settings: Settings) -> dict[str, Any]:
    """All stages in one parameter dtype."""
    if FLAGS.shape:
        model = random_model(FLAGS.shape, dtype)
    elif dtype == "int8":
        model = load_model(FLAGS.model, "bfloat16", quantization="int8")
    else:
        model = load_model(FLAGS.model, dtype)
    settings = command.within_memory(settings, model, tasks)
    parts = [prepare(model, task, settings) for task in tasks]
    stages = {name: JAX_STAGES[name] for name in FLAGS.stages if name in JAX_STAGES}
    if not FLAGS.shape:
        stages |= torch_stages(model, dtype)
    result = measure(model, parts, stages, FLAGS.repeats, settings.batch_size)
    flops = sum(
        needed_flops(model, part, layer)
        for part, layer in zip(parts, result["layers"], strict=True)
    )
    vendor = peak_flops(jax.devices()[0].device_kind)
    for entry in result["stages"].values():
        speed = flops / entry["steady_seconds"]
        at_peak = [flops / rate for rate in entry["gemm_flops_per_second"]]
        entry["fraction_of_gemm_peak"] = ratios(at_peak, entry["runs"])
        entry["model_flops_utilisation"] = vendor and speed / vendor
        entry["done_over_needed"] = entry["done_flops"] and entry["done_flops"] / flops
    scaling = []
    if FLAGS.depths:
        shape = FLAGS.shape or FLAGS.model
        if shape in NAMED_MODELS:
            scaling = depth_scaling(shape, dtype, parts[0], settings.batch_size)
    return {
        **result,
        "gemm_flops_per_second": statistics.median(
            rate for entry in result["stages"].values() for rate in entry["gemm_flops_per_second"]
        ),
        "needed_flops": flops,
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)),
        "vendor_flops_per_second": vendor,
        "depth_scaling": scaling,
    }


def headline(by_dtype: dict[str, Any]) -> dict[str, Any]:
    """The figures to quote, per dtype."""

    def seconds_of(dtype: str, stage: str) -> float | None:
        """Of the turns taken with that dtype, or else of those with float32."""
        for beside in (dtype, "float32"):
            if found := by_dtype.get(beside, {}).get("stages", {}).get(stage):
                return found["steady_seconds"]
        return None

    lines = {}
    for dtype, result in by_dtype.items():
        packed = result["stages"].get("packed")
        if not packed:
            continue
        steady, cold = packed["steady_seconds"], packed["first_seconds"]
        loop = seconds_of(dtype, "layer_loop")
        lines[dtype] = {
            "steady_seconds": steady,
            "cold_seconds": cold,
            "steady_fraction_of_gemm_peak": packed["fraction_of_gemm_peak"]["median"],
            "model_flops_utilisation": packed["model_flops_utilisation"],
            "peak_bytes": packed["peak_bytes"],
            "speedup_over_layer_loop": loop and loop / steady,
        }
        for stage in TORCH_STAGES:
            seconds = seconds_of(dtype, stage)
            lines[dtype][f"speedup_over_{stage}"] = seconds and seconds / steady
            lines[dtype][f"cold_speedup_over_{stage}"] = seconds and seconds / cold
    return lines


def main() -> None:
    """Runs the benchmark the flags ask for."""
    settings = command.settings_from_flags()
    if unknown := [name for name in FLAGS.stages if name not in STAGES]:
        raise TaskVecError(f"unknown stage {unknown[0]!r}; allowed: {', '.join(STAGES)}")
    if unknown := [name for name in FLAGS.dtypes if name not in (*DTYPES, "int8")]:
        raise TaskVecError(f"--dtypes: unknown {unknown[0]!r}; allowed: {', '.join(DTYPES)}, int8")
    if FLAGS.repeats < 1:
        raise TaskVecError(f"--repeats={FLAGS.repeats}; it must be at least 1")
    if FLAGS.shape:
        check_shape(FLAGS.shape)
    describe(FLAGS.shape or FLAGS.model)
    model = DEFAULT_MODEL if FLAGS.shape else FLAGS.model  # whose tokenizer is used
    tasks = command.tasks_from_flags(model=model)
    if (tokenizer := tokenizer_of(model, None)) is not None:
        tasks, left_out = fitting_tasks(tokenizer, tasks, settings, must_fit=bool(FLAGS.tasks))
        tell_left_out(left_out)
    run = {"dtypes": FLAGS.dtypes, **identity.of_settings(settings)}
    name = f"random {FLAGS.shape}" if FLAGS.shape else FLAGS.model
    out = prepare_out(FLAGS.out, {"model": name, **run})
    started = time.monotonic()
    by_dtype = {}
    for dtype in FLAGS.dtypes:
        by_dtype[dtype] = run_dtype(dtype, tasks, settings)
        print_table(dtype, by_dtype[dtype])
    result = {
        "model": name,
        "revision": None,
        "run": run,
        "settings": {
            **dataclasses.asdict(settings),
            "tasks": [task.name for task in tasks],
            "repeats": FLAGS.repeats,
        },
        "provenance": provenance(load_model(model), settings.seed, time.monotonic() - started),
        "headline": headline(by_dtype),
        "dtypes": by_dtype,
    }
    write_json(out / "benchmark.json", result)
    drawn = draw(result, out / "benchmark")
    console.print("wrote " + ", ".join(map(str, [out / "benchmark.json", *drawn])))


if __name__ == "__main__":
    flags.DEFINE_string("model", DEFAULT_MODEL, "a known name or a path")
    flags.DEFINE_string("shape", None, "random weights of this model's shape instead")
    command.define_list(
        "dtypes", ["float32", "bfloat16"], "dtypes, one after the other; int8: kernels"
    )
    command.define_list(
        "stages", [name for name in STAGES if name not in BY_NAME], "which steps to time"
    )
    flags.DEFINE_integer("repeats", 3, "timed turns after the one that compiles")
    flags.DEFINE_boolean("depths", True, "also time the sweep alone at several depths")
    flags.DEFINE_string("out", "results/benchmark", "directory for results")
    command.define_prompt_flags()
    command.run(main)
