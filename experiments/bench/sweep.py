"""How fast the sweep is, and against what: one run, paired and repeated.

    python -m experiments.bench.sweep
    python -m experiments.bench.sweep --tasks=algorithmic_to_upper,linguistic_antonyms --repeats=5
    python -m experiments.bench.sweep --dtypes=bfloat16 --stages=layer_loop,packed --nodepths
    python -m experiments.bench.sweep --shape=llama-7b --dtypes=bfloat16,int8 \
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
* torch_loop: the same, spared the logits that nothing reads.

Every step must give the same answers. Seconds are medians of repeats in which the steps take
turns; compilation is told apart. Writes benchmark.json and benchmark.png under --out.

Expected on 2 cores for the default model and all 18 tasks: see BUILD_NOTES.md; about 40 minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.bench import work
from experiments.bench.memory import process_peak
from experiments.page import figures
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import FLAGS, console
from experiments.run.own_tasks import tokenizer_of
from experiments.run.results import prepare_out, provenance, write_json
from experiments.run.start import fitting_tasks, tell_left_out
from taskvec_jax.distributed.plan import in_precision
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.judging import Judge
from taskvec_jax.evaluation.protocol import Settings, best_layer, draw_prompts
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS
from taskvec_jax.prompting.prompts import Prompt, fit
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.config import DTYPES
from taskvec_jax.transformer.decoder import Decoder, leaf_shapes, unflatten
from taskvec_jax.transformer.quantization import quantize_leaf
from taskvec_jax.vectors import sweep, task_vectors
from taskvec_jax.vectors.programs import NUM_GROUPS, top, wavefront_schedule

TORCH_STAGES = {"torch_paper": 0, "torch_loop": 1}  # of how many last tokens logits are computed
STAGES = (
    "layer_loop",
    "naive",
    "prefix_cache",
    "wavefront",
    "shared_demonstrations",
    "packed",
    *TORCH_STAGES,
)
# Dense bfloat16 FLOP/s by the vendors' data sheets, by part of the device's kind; the first counts.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}
GEMM_ROWS = (2048, 4096)
DEPTHS = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Part:
    """One task's prompts as token ids.

    Attributes:
      texts: rows of texts, dev first: dummy prompts, and for test prompts the ICL prompt too.
      queries: zero-shot queries, dev first.
      prompts: the dev prompts, to judge answers by.
      judge: of the task; None for random weights, where nothing is right.
    """

    texts: list[list[list[int]]]
    queries: list[list[int]]
    prompts: list[Prompt]
    judge: Judge

    @property
    def half(self) -> int:
        """How many rows are dev."""
        return len(self.queries) // 2

    def choose_layer(self, swept: np.ndarray) -> int:
        """Best layer by dev answers int [N, L]."""
        return best_layer(self.judge.correct(self.prompts, swept).mean(axis=0))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Predicted tokens: ICL [N], dev by layer [N, L], test at the best layer [N]."""

    icl: np.ndarray
    swept: np.ndarray
    test: np.ndarray
    layer: int


Stage = Callable[[Model, Part, int], Outcome]


def prepare(model: Model, task: Task, settings: Settings) -> Part:
    """Draws and tokenizes one task's prompts."""
    fitted = fit(task, model.tokenizer)
    dev, test = (draw_prompts(fitted, settings, split) for split in ("dev", "test"))
    encode = model.tokenizer.encode_all
    texts = [encode(p.dummies()) for p in dev] + [encode([*p.dummies(), p.icl()]) for p in test]
    queries = encode([p.zero_shot() for p in [*dev, *test]])
    return Part(texts, queries, dev, Judge(model, fitted))


def batches(rows: Sequence[Any], batch_size: int) -> list[list[Any]]:
    """Consecutive batches of exactly `batch_size`, the last one filled with its last row."""
    filled = [*rows, *[rows[-1]] * (-len(rows) % batch_size)]
    return [filled[i : i + batch_size] for i in range(0, len(filled), batch_size)]


@functools.partial(jax.jit, static_argnums=0)
def full_read(decoder: Decoder, params: Any, tokens: jax.Array, last: jax.Array):
    """Residuals [B, L, D] and answers [B] by a full forward."""
    residuals, logits = decoder.apply(params, tokens, last, method="read")
    return jnp.swapaxes(residuals, 0, 1), top(logits)[0]


@functools.partial(jax.jit, static_argnums=0)
def full_inject(decoder: Decoder, params: Any, tokens, last, layer, theta) -> jax.Array:
    """Answers [B] by a full forward with one injection."""
    logits = task_vectors.inject_theta(decoder, params, tokens, last, layer, theta)
    return top(logits)[0]


@functools.partial(jax.jit, static_argnums=0)
def full_sweep(decoder: Decoder, params: Any, tokens, last, theta) -> jax.Array:
    """Answers [L, B] by the definition."""
    return top(task_vectors.layer_sweep(decoder, params, tokens, last, theta))[0]


def read_full(model: Model, part: Part, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Theta [2N, L, D] and ICL answers [N], every text from its first token."""
    flat = [text for row in part.texts for text in row]
    residuals, answers = [], []
    for batch in batches(flat, batch_size):
        tokens, last = model.tokenizer.pad(batch)
        read, answer = full_read(model.decoder, model.params, tokens, last)
        residuals.append(np.asarray(read))
        answers.append(np.asarray(answer))
    residual, answer = np.concatenate(residuals), np.concatenate(answers)
    theta, icl, start = [], [], 0
    for i, row in enumerate(part.texts):
        dummies = len(row) - (i >= part.half)
        theta.append(residual[start : start + dummies].mean(axis=0))
        if i >= part.half:
            icl.append(answer[start + dummies])
        start += len(row)
    return np.stack(theta), np.array(icl)


def looped(model: Model, part: Part, batch_size: int, *, vmapped: bool) -> Outcome:
    """Full forwards for everything; layers in a loop or by vmap."""
    theta, icl = read_full(model, part, batch_size)
    layers, half = range(model.config.num_layers), part.half

    def inject(rows: range, layer: int) -> np.ndarray:
        out = []
        for batch in batches(list(rows), batch_size):
            tokens, last = model.tokenizer.pad([part.queries[i] for i in batch])
            out.append(
                full_inject(
                    model.decoder, model.params, tokens, last, np.int32(layer), theta[batch, layer]
                )
            )
        return np.concatenate([np.asarray(x) for x in out])[: len(rows)]

    if vmapped:
        out = []
        for batch in batches(list(range(half)), batch_size):
            tokens, last = model.tokenizer.pad([part.queries[i] for i in batch])
            out.append(full_sweep(model.decoder, model.params, tokens, last, theta[batch]))
        swept = np.concatenate([np.asarray(x).T for x in out])[:half]
    else:
        swept = np.stack([inject(range(half), layer) for layer in layers], axis=1)
    layer = part.choose_layer(swept)
    return Outcome(icl, swept, inject(range(half, 2 * half), layer), layer)


def by_rows(
    model: Model, part: Part, batch_size: int, *, groups: int, share: bool, sort: bool
) -> Outcome:
    """The engine's programs, with or without its savings."""
    half, n = part.half, len(part.texts)
    if not share:
        theta, icl = read_full(model, part, batch_size)
    else:
        rows = batch_size if sort else n  # sorted chunks, or one padded batch a task
        residuals, answers = sweep.read_texts(model, part.texts, rows)
        dummies = len(part.texts[0])
        theta, icl = residuals[:, :dummies].mean(axis=1), answers.tokens[half:, -1]
    num_layers = model.config.num_layers
    schedule = wavefront_schedule(num_layers, groups)
    swept = sweep.inject_vectors(
        model, part.queries[:half], theta[:half], np.arange(num_layers), batch_size, schedule
    ).tokens[:, 1:]
    layer = part.choose_layer(swept)
    test = sweep.inject_vectors(
        model, part.queries[half:], theta[half:, layer : layer + 1], np.array([layer]), batch_size
    ).tokens[:, 1]
    return Outcome(icl, swept, test, layer)


JAX_STAGES: dict[str, Stage] = {
    "layer_loop": functools.partial(looped, vmapped=False),
    "naive": functools.partial(looped, vmapped=True),
    "prefix_cache": functools.partial(by_rows, groups=1, share=False, sort=False),
    "wavefront": functools.partial(by_rows, groups=NUM_GROUPS, share=False, sort=False),
    "shared_demonstrations": functools.partial(by_rows, groups=NUM_GROUPS, share=True, sort=False),
    "packed": functools.partial(by_rows, groups=NUM_GROUPS, share=True, sort=True),
}


def torch_stage(model: Model, logits_to_keep: int) -> Stage:
    """A step of `TORCH_STAGES`, on the same weights."""
    from experiments.bench import torch_loop  # needs torch

    loop = torch_loop.TorchLoop(model, logits_to_keep)
    return lambda _, part, batch_size: Outcome(*torch_loop.run(loop, part, batch_size))


def needed_flops(model: Model, part: Part, layer: int) -> int:
    """What the task must compute, padding and repetition left out."""
    c, half = model.config, part.half
    total = sum(work.reading_flops(c, row, int(i >= half)) for i, row in enumerate(part.texts))
    every = range(c.num_layers)
    total += sum(work.injection_flops(c, len(q), every) for q in part.queries[:half])
    return total + sum(work.injection_flops(c, len(q), [layer]) for q in part.queries[half:])


def reset_peak_memory() -> None:
    """Starts the kernel's count of this process's peak memory anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_flops(device_kind: str) -> float | None:
    """The vendor's dense bfloat16 peak of a device, or None for one that is not known here."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device_kind), None)


def peak_memory() -> int | None:
    """Peak bytes of the device, or of this process on a CPU; None where it is not told.

    Of a process since the last reset; a device counts from its start and cannot be reset.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return process_peak()


def gemm_rate(model: Model) -> float:
    """Best FLOP/s of a matrix product of the model's own sizes, in the parameter dtype."""
    c, best = model.config, 0.0
    multiply = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=c.stream_dtype))
    for rows in GEMM_ROWS:
        for inner, outer in ((c.width, c.mlp_width), (c.mlp_width, c.width)):
            a = jax.random.normal(jax.random.key(0), (rows, inner), c.dtype)
            b = jax.random.normal(jax.random.key(1), (inner, outer), c.dtype)
            multiply(a, b).block_until_ready()
            for _ in range(5):
                start = time.perf_counter()
                multiply(a, b).block_until_ready()
                seconds = time.perf_counter() - start
                best = max(best, 2 * rows * inner * outer / seconds)
    return best


def random_model(name: str, dtype: str, num_layers: int | None = None) -> Model:
    """A model's shape with random weights, and the default model's tokenizer.

    Args:
      name: a known name, or the path of a model, of which only the shape is read.
      dtype: of the parameters; "int8": int8 kernels and the rest in bfloat16.

    Raises:
      TaskVecError: no such name and no such path.
    """
    check_shape(name)
    tokenizer = load_model(DEFAULT_MODEL, "bfloat16").tokenizer
    known = describe(name)[1]
    final = in_precision(known, dtype)
    config = dataclasses.replace(
        final,
        quantization="none",
        vocab_size=max(known.vocab_size, tokenizer.vocab_size),
        num_layers=num_layers or known.num_layers,
    )

    @functools.partial(jax.jit, static_argnums=(1,))
    def leaf(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(rng, shape, jnp.dtype(config.dtype))

    shapes = leaf_shapes(config)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves: dict[str, jax.Array] = {}
    for key, (path, shape) in zip(keys, shapes.items(), strict=True):
        whole = jnp.ones(shape, config.dtype) if path.endswith("scale") else leaf(key, shape)
        leaves |= quantize_leaf(path, whole) if final.quantization == "int8" else {path: whole}
    config = dataclasses.replace(config, quantization=final.quantization)
    return Model(f"random {name}", Decoder(config), unflatten(leaves), tokenizer, config, "random")


def check_shape(name: str) -> None:
    """Refuses a --shape that is neither a known name nor a path.

    Raises:
      TaskVecError: it is neither.
    """
    if name not in NAMED_MODELS and not Path(name).exists():
        raise TaskVecError(f"--shape={name}; allowed: a path, or {', '.join(NAMED_MODELS)}")


def agreement(outcome: Outcome, reference: Outcome) -> float:
    """Share of dev answers over all layers, and ICL answers, that are the same."""
    same = np.concatenate(
        [(outcome.swept == reference.swept).ravel(), outcome.icl == reference.icl]
    )
    return float(same.mean())


def measure(
    model: Model, parts: list[Part], stages: dict[str, Stage], repeats: int, batch_size: int
) -> dict[str, Any]:
    """Times every stage over all parts, in turns.

    Returns:
      stage -> {cold_seconds, steady_seconds (median), runs, agreement, peak_bytes}.
    """
    result: dict[str, Any] = {}
    outcomes: dict[str, list[Outcome]] = {}
    with command.progress_bar() as bar:
        row = bar.add_task("benchmark", total=(1 + repeats) * len(stages) * len(parts))
        for turn in range(1 + repeats):
            for name, stage in stages.items():
                reset_peak_memory()
                start = time.perf_counter()
                outcome = []
                for part in parts:
                    bar.update(row, description=f"{name}, turn {turn}")
                    outcome.append(stage(model, part, batch_size))
                    bar.advance(row)
                seconds = time.perf_counter() - start
                entry = result.setdefault(name, {"runs": []})
                if turn == 0:
                    outcomes[name] = outcome
                    entry["first_seconds"] = seconds
                else:
                    entry["runs"].append(seconds)
                entry["peak_bytes"] = peak_memory()
    reference = outcomes.get("packed") or next(iter(outcomes.values()))
    for name, entry in result.items():
        entry["steady_seconds"] = statistics.median(entry["runs"])
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
    in_torch = [name for name in FLAGS.stages if name in TORCH_STAGES]
    if in_torch and dtype == "float32" and not FLAGS.shape:
        if importlib.util.find_spec("torch"):
            stages |= {name: torch_stage(model, TORCH_STAGES[name]) for name in in_torch}
        else:
            console.print(f"torch is not installed: no {in_torch[0]} (pip install -e '.[test]')")
    rate = gemm_rate(model)
    result = measure(model, parts, stages, FLAGS.repeats, settings.batch_size)
    rate = max(rate, gemm_rate(model))
    flops = sum(
        needed_flops(model, part, layer)
        for part, layer in zip(parts, result["layers"], strict=True)
    )
    vendor = peak_flops(jax.devices()[0].device_kind)
    for entry in result["stages"].values():
        speed = flops / entry["steady_seconds"]
        entry["fraction_of_gemm_peak"] = speed / rate
        entry["model_flops_utilisation"] = vendor and speed / vendor
    scaling = []
    if FLAGS.depths:
        shape = FLAGS.shape or FLAGS.model
        if shape in NAMED_MODELS:
            scaling = depth_scaling(shape, dtype, parts[0], settings.batch_size)
    return {
        **result,
        "gemm_flops_per_second": rate,
        "needed_flops": flops,
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)),
        "vendor_flops_per_second": vendor,
        "depth_scaling": scaling,
    }


def headline(by_dtype: dict[str, Any]) -> dict[str, Any]:
    """The figures to quote, per dtype; speed-ups over torch are over its float32."""

    def seconds_of(dtype: str, stage: str) -> float | None:
        return by_dtype.get(dtype, {}).get("stages", {}).get(stage, {}).get("steady_seconds")

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
            "steady_fraction_of_gemm_peak": packed["fraction_of_gemm_peak"],
            "model_flops_utilisation": packed["model_flops_utilisation"],
            "peak_bytes": packed["peak_bytes"],
            "speedup_over_layer_loop": loop and loop / steady,
        }
        for stage in TORCH_STAGES:
            seconds = seconds_of("float32", stage)
            lines[dtype][f"speedup_over_{stage}"] = seconds and seconds / steady
            lines[dtype][f"cold_speedup_over_{stage}"] = seconds and seconds / cold
    return lines


def print_table(dtype: str, result: dict[str, Any]) -> None:
    """One line a stage."""
    rate, flops = result["gemm_flops_per_second"], result["needed_flops"]
    console.print(
        f"[bold]{dtype}[/bold]: {result['weight_bytes'] / 1e9:.2f} GB of weights, GEMM"
        f" {rate / 1e9:.0f} GFLOP/s, needed {flops / 1e12:.1f} TFLOP"
    )
    console.print(f"{'stage':<24}{'steady s':>10}{'compile s':>11}{'of GEMM':>9}{'GB':>7}  agrees")
    for name, entry in result["stages"].items():
        peak = entry["peak_bytes"]
        console.print(
            f"{name:<24}{entry['steady_seconds']:>10.1f}{entry['compile_seconds']:>11.1f}"
            f"{entry['fraction_of_gemm_peak']:>9.2f}{(peak or 0) / 1e9:>7.2f}"
            f"  {entry['agreement_with_packed']:.4f}"
            + (f"  MFU {share:.1%}" if (share := entry["model_flops_utilisation"]) else "")
        )


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Seconds of every step, one bar a dtype, and the sweep alone by depth.

    Args:
      result: the content of benchmark.json.
      stem: path without its ending; .png and .svg are written.
    """
    dtypes = result["dtypes"]
    names = list(dict.fromkeys(name for d in dtypes.values() for name in d["stages"]))
    scaling = {dtype: d["depth_scaling"] for dtype, d in dtypes.items() if d["depth_scaling"]}
    with figures.theme("light"):
        ratios = {"gridspec_kw": {"width_ratios": [2, 1]}} if scaling else {}
        figure, panels = figures.canvas(8 + 4 * bool(scaling), 5, 1, 1 + bool(scaling), **ratios)
        axes, height = panels[0], 0.8 / len(dtypes)
        for i, (dtype, entry) in enumerate(dtypes.items()):
            rows = [row for row, name in enumerate(names) if name in entry["stages"]]
            stages = [entry["stages"][names[row]] for row in rows]
            places = [row + (i - (len(dtypes) - 1) / 2) * height for row in rows]
            bars = axes.barh(
                places,
                [stage["steady_seconds"] for stage in stages],
                height,
                color=figures.COLOURS[i],
                label=dtype,
            )
            axes.bar_label(
                bars,
                [f"{s['steady_seconds']:.1f} s, {s['fraction_of_gemm_peak']:.0%}" for s in stages],
                padding=4,
                fontsize=8,
            )
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set(
            xlabel="seconds, steady, and the share of the GEMM peak spent on needed work",
            title=f"{result['model']}: {len(result['settings']['tasks'])} tasks",
        )
        axes.legend(loc="lower right")
        for i, (dtype, rows) in enumerate(scaling.items()):
            panels[1].plot(
                [row["half_square"] for row in rows],
                [row["seconds"] for row in rows],
                "o-",
                color=figures.COLOURS[i],
                label=dtype,
            )
            panels[1].set(
                xlabel="layers² / 2",
                ylabel="seconds",
                title="the sweep alone, by depth",
                xlim=(0, None),
                ylim=(0, None),
            )
            panels[1].legend()
        return figures.save(figure, stem)


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
    command.define_list("stages", list(STAGES), "which steps to time")
    flags.DEFINE_integer("repeats", 3, "timed turns after the one that compiles")
    flags.DEFINE_boolean("depths", True, "also time the sweep alone at several depths")
    flags.DEFINE_string("out", "results/benchmark", "directory for results")
    command.define_prompt_flags()
    command.run(main)
