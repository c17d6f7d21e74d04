"""A small Pythia trained from scratch on a mixture of in-context tasks.

    python -m experiments.small_pythia.train --out=results/train_small
    python -m experiments.small_pythia.train --out=results/train_small_plain --vector_loss=0

The architecture is Pythia's (GPT-NeoX), a million parameters; the tasks and the vocabulary are in
`experiments.small_pythia.mixture`. Loss on the answers alone; AdamW, linear warm-up, cosine,
clipped gradients.
--vector_loss=W adds W times the vector-prompting loss (Yang et al. 2025, arXiv 2501.09240): the
answer of a zero-shot query whose arrow is overwritten, after --vector_layer, with theta of the
row's own demonstrations and another query.

--mesh=data:N,model:M splits the rows of a step, and the parameters, over devices; the losses are
those of one device but for float noise, and a run may go on on another mesh.

Writes under --out: log.jsonl (a line every --log_every steps), step<N>/ (converted models on the
way, for `experiments.emergence`), state/ (what a killed run goes on from: the same command again),
model/ (the final model in bfloat16), train_small.json and train_small.png/.svg.
The model shipped as `pythia-icl-small` is model/ of the first command, and train_small.json.

Expected: ICL 0.98 by step 360 and 1.00 at the end (625 s on 2 cores shared with twenty other
processes, 2,090 tokens/s). Without the vector-prompting loss, after 600 steps, ICL 0.93 and no task
vector at any layer: at most 0.27, which is the zero-shot baseline (320 s).

Time: 10 minutes (2 cores shared with other work).
"""

# Long because: a command with twenty flags, its log and its resuming.

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import FLAGS, console
from experiments.run.results import prepare_out, provenance, write_json
from experiments.run.writing import told, write_whole
from experiments.small_pythia import training
from experiments.small_pythia.mixture import (
    HELD_OUT,
    TRAINING_TASKS,
    Mixture,
    build_tokenizer,
    summary,
)
from experiments.small_pythia.training import Measures, State, Training
from taskvec_jax.distributed.sharding import MeshShape, make_mesh
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models import checkpoint
from taskvec_jax.models.atomic import writing
from taskvec_jax.models.hashing import hashes
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import pythia
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Params
from taskvec_jax.vectors.sweep import read_texts

NAME = "train_small"
EARLY = (32, 64, 128, 256)  # kept steps before a tenth of the run
TENTHS = 10  # of the run, each kept
MAX_LENGTH = 256


def small_pythia(vocab_size: int, num_layers: int, width: int, num_heads: int) -> DecoderConfig:
    """A Pythia of these sizes: a quarter of each head rotates.

    Raises:
      TaskVecError: heads that do not divide the width, or that cannot rotate.
    """
    if num_heads < 1 or width % num_heads or (width // num_heads) % 8:
        raise TaskVecError(
            f"--width={width} over --num_heads={num_heads}: each head must be a multiple of 8 wide"
            " (a quarter of it rotates, in pairs), such as --width=128 --num_heads=4"
        )
    return pythia(vocab_size, num_layers, width, num_heads, max_length=MAX_LENGTH)


def kept_steps(steps: int) -> list[int]:
    """The steps whose models are kept: few early ones, doubling, then each tenth of the run."""
    tenths = {round(steps * i / TENTHS) for i in range(1, TENTHS + 1)}
    return sorted({0, *(step for step in EARLY if step < min(tenths)), *tenths})


class Log:
    """log.jsonl: what a run measured; lines after the step it goes on from are taken back."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in self.read() if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last one does not count."""
        if not self.path.exists():
            return []
        lines = []
        for line in self.path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                lines.append(json.loads(line))
        return lines

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line."""
        with told(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclasses.dataclass
class Recorder:
    """Keeps models, states and the log of a run.

    Attributes:
      out: the run's directory.
      config: of the model.
      settings: what decides the weights.
      tokenizer: the vocabulary.
      log: where lines go.
      log_every, save_every: in steps.
      tokens_of: step (0-based) -> tokens of its rows.
      about: what the manifests of kept models say.
    """

    out: Path
    config: DecoderConfig
    settings: Training
    tokenizer: Tokenizer
    log: Log
    log_every: int
    save_every: int
    tokens_of: Any
    about: dict[str, Any]
    held: list[Measures] = dataclasses.field(default_factory=list)
    tokens: int = 0
    since: float = dataclasses.field(default_factory=time.monotonic)

    def step(self, state: State, measures: Measures) -> None:
        """Called after each step."""
        self.held.append(measures)
        self.tokens += self.tokens_of(state.step - 1)
        if state.step % self.log_every == 0 or state.step == self.settings.steps:
            self._write(state.step)
        if state.step in kept_steps(self.settings.steps):
            self.keep(state)
        if state.step % self.save_every == 0 or state.step == self.settings.steps:
            training.save_state(self.out / "state", state)

    def _write(self, step: int) -> None:
        seconds = time.monotonic() - self.since
        means = {
            name: round(float(np.mean([getattr(m, name) for m in self.held])), 6)
            for name in Measures._fields
        }
        line = {
            "step": step,
            **means,
            "learning_rate": training.learning_rate(self.settings, step - 1),
            "tokens": self.tokens,
            "seconds": round(seconds, 3),
        }
        self.log.add(line)
        console.print(
            f"step {step:>6}  loss {means['loss']:.4f}  accuracy {means['accuracy']:.3f}"
            f"  with theta {means['vector_accuracy']:.3f}  {self.tokens / seconds:,.0f} tokens/s",
            markup=False,
        )
        self.held, self.tokens, self.since = [], 0, time.monotonic()

    def keep(self, state: State) -> None:
        """Writes the model of a step as a converted model."""
        save_model(
            self.out / f"step{state.step}",
            self.config,
            state.params,
            self.tokenizer,
            {**self.about, "step": state.step},
        )


def save_model(
    path: Path, config: DecoderConfig, params: Params, tokenizer: Tokenizer, about: dict[str, Any]
) -> None:
    """Writes a converted model in the dtype of `config`."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(config.dtype)), params)
    leaves, whole = hashes(params)
    manifest = {**about, "leaves_sha256": leaves, "weights_sha256": whole}
    with writing(path):
        checkpoint.save(path, config, params, tokenizer, manifest)


def icl_accuracy(model: Model, tasks: list[Task], settings: Settings) -> dict[str, float]:
    """In-context accuracy on test prompts, task by task."""
    found = {}
    for task in tasks:
        scorer = scorer_of(model, task, settings)
        prompts = draw_prompts(scorer.fitted, settings, "test")
        texts = [model.tokenizer.encode_all([prompt.icl()]) for prompt in prompts]
        _, said = read_texts(model, texts, settings.batch_size)
        found[task.name] = float(scorer.by_first_token(prompts, said.tokens[:, 0]).mean())
    return found


def go_on_from(out: Path, config: DecoderConfig, settings: Training, about: Any) -> State:
    """The state a run starts from: fresh, or the last one saved.

    Raises:
      TaskVecError: the directory holds a run of other settings.
    """
    fresh = training.initial_state(config, settings)
    record = out / "run.json"
    if record.exists():
        other, mine = json.loads(record.read_text()), json.loads(json.dumps(about))
        if other != mine:
            differing = sorted(key for key in {*mine, *other} if mine.get(key) != other.get(key))
            raise TaskVecError(
                f"{out} holds a run of other settings ({', '.join(differing)} differ); choose"
                " another --out, or the settings it was begun with"
            )
    else:
        write_json(record, about)
    with writing(out / "state"):
        pass  # a run killed while it replaced the state has left it beside its place
    if not (out / "state").exists():
        return fresh
    return training.restore_state(out / "state", fresh)


def main() -> None:
    """Trains the model the flags ask for, or goes on training it."""
    tokenizer = build_tokenizer()
    config = small_pythia(tokenizer.vocab_size, FLAGS.num_layers, FLAGS.width, FLAGS.num_heads)
    for name in ("steps", "batch_size", "log_every", "save_every"):
        if getattr(FLAGS, name) < 1:
            raise TaskVecError(f"--{name}={getattr(FLAGS, name)}; it must be at least 1")
    if not 0 <= FLAGS.warmup < FLAGS.steps:
        raise TaskVecError(
            f"--warmup={FLAGS.warmup} with --steps={FLAGS.steps}: the learning rate must rise in"
            f" fewer steps than there are; allowed: --warmup=0 to --warmup={FLAGS.steps - 1}, such"
            f" as --warmup={FLAGS.steps // 10}"
        )
    if FLAGS.vector_loss and not 0 <= FLAGS.vector_layer < FLAGS.num_layers:
        raise TaskVecError(
            f"--vector_layer={FLAGS.vector_layer} is out of range; allowed: 0 to"
            f" {FLAGS.num_layers - 1}, counted from 0"
        )
    settings = Training(**{f.name: getattr(FLAGS, f.name) for f in dataclasses.fields(Training)})
    about = {
        "config": config.to_dict(),
        "training": dataclasses.asdict(settings),
        "batch_size": FLAGS.batch_size,
        "tokenizer_sha256": tokenizer.sha256,
        "tasks": [task.name for task in TRAINING_TASKS],
    }
    mesh = make_mesh(MeshShape.parse(FLAGS.mesh)) if FLAGS.mesh else None
    training.check_rows(mesh, FLAGS.batch_size)
    out = prepare_out(FLAGS.out)
    state = go_on_from(out, config, settings, about)
    mixture = Mixture(tokenizer, settings.seed, FLAGS.batch_size)
    origin = {"model": NAME, "source": "experiments.small_pythia.train", "made_with": about}
    recorder = Recorder(
        out,
        config,
        settings,
        tokenizer,
        Log(out / "log.jsonl", state.step),
        FLAGS.log_every,
        FLAGS.save_every,
        mixture.tokens_of,
        origin,
    )
    if state.step:
        console.print(f"going on from step {state.step}")
    else:
        recorder.keep(state)
    try:
        state = training.run(config, settings, state, mixture.batch, recorder.step, mesh)
    except TaskVecError as error:
        raise TaskVecError(f"{error}; what was good is kept in {out / 'state'}") from None
    shipped = dataclasses.replace(config, dtype="bfloat16")
    save_model(out / "model", shipped, state.params, tokenizer, {**origin, "step": state.step})
    finish(out, about, tokenizer, recorder.log.read(), mesh)


def finish(
    out: Path, about: dict[str, Any], tokenizer: Tokenizer, lines: Any, mesh: Mesh | None
) -> None:
    """Scores the final model as it was written, and writes the result and its figure."""
    restored = checkpoint.restore(out / "model", "float32", mesh)
    model = Model(
        NAME,
        Decoder(restored.config),
        restored.params,
        tokenizer,
        restored.config,
        restored.manifest["weights_sha256"],
        mesh,
    )
    scores = icl_accuracy(model, [*TRAINING_TASKS, HELD_OUT], Settings())
    held_out = scores.pop(HELD_OUT.name)
    seconds = sum(line["seconds"] for line in lines)
    result = {
        "experiment": NAME,
        **identity.of_model(model),
        "model": "pythia-icl-small",
        "made_with": about,
        "icl": scores,
        "mean_icl": float(np.mean(list(scores.values()))),
        "held_out_icl": held_out,
        "seconds": seconds,
        "tokens_per_second": sum(line["tokens"] for line in lines) / seconds,
        "log": lines,
        "provenance": provenance(model, about["training"]["seed"], seconds),
    }
    write_json(out / f"{NAME}.json", result)
    from experiments.page import figures  # matplotlib is slow to import

    with figures.theme("light"):
        figures.save(draw(result), out / NAME)
    console.print(f"ICL of the final model in bfloat16: {summary(scores)}", markup=False)
    console.print(
        f"mean {result['mean_icl']:.3f}; held-out bijection {held_out:.2f};"
        f" {seconds:.0f} s, {result['tokens_per_second']:,.0f} tokens/s; wrote {out}",
        markup=False,
    )


def draw(result: dict[str, Any]) -> Any:
    """Loss and accuracy by step."""
    from experiments.page import charts, figures

    lines = result["log"]
    steps = [line["step"] for line in lines]
    figure, (left, right) = figures.canvas(figures.WIDTH, 3.0, 1, 2)
    left.plot(steps, [line["answer_loss"] for line in lines], color=figures.ink(), label="loss")
    left.set(xlabel="step", ylabel="nats", yscale="log")
    left.set_title("loss of the answers")
    charts.curve(right, steps, [line["accuracy"] for line in lines], "icl")
    shown = ["icl"]
    if result["made_with"]["training"]["vector_loss"]:
        vector = [line["vector_accuracy"] for line in lines]
        charts.curve(right, steps, vector, "task_vector")
        shown.append("task_vector")
    right.set_xlabel("step")
    charts.shares(right)
    right.set_title("share of answers that are right, on training rows")
    key = figures.key_of(shown, icl="in context", task_vector="zero-shot, theta injected")
    title = (
        f"After {steps[-1]:,} steps {lines[-1]['accuracy']:.2f} of the answers are right in context"
        if lines
        else "Training"
    )
    return figures.finish(figure, result, title, key)


if __name__ == "__main__":
    defaults = Training(steps=1200)
    flags.DEFINE_string("out", "results/train_small", "Directory of the run.")
    flags.DEFINE_integer("steps", defaults.steps, "Steps of the optimiser.")
    flags.DEFINE_integer("batch_size", 32, "Rows of a step.")
    flags.DEFINE_integer("seed", defaults.seed, "Seed of the weights and of the rows.")
    flags.DEFINE_integer("num_layers", 6, "Layers of the model.")
    flags.DEFINE_integer("width", 128, "Width of the model.")
    flags.DEFINE_integer("num_heads", 4, "Heads of the model.")
    flags.DEFINE_float("learning_rate", defaults.learning_rate, "Learning rate at its highest.")
    flags.DEFINE_integer("warmup", defaults.warmup, "Steps over which the learning rate rises.")
    flags.DEFINE_float("weight_decay", defaults.weight_decay, "Weight decay of AdamW.")
    flags.DEFINE_float("clip", defaults.clip, "Largest norm of a gradient.")
    flags.DEFINE_float("vector_loss", 0.5, "Weight of the vector-prompting loss; 0: none.")
    flags.DEFINE_integer("vector_layer", 2, "Layer at which that loss reads and writes theta.")
    flags.DEFINE_string(
        "mesh",
        None,
        "data:N,model:M, devices that rows and parameters are split over; unset: one",
    )
    flags.DEFINE_integer("log_every", 50, "Steps between lines of the log.")
    flags.DEFINE_integer(
        "save_every", 200, "Steps between the states that a killed run goes on from."
    )
    command.run(main)
