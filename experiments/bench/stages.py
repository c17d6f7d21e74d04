"""The steps that the benchmark times: from a loop over layers to the packed sweep.

All of them do the same work on the prompts of one task (a `Part`) and give an `Outcome`.

Shapes: N dev (or test) prompts, B rows of a batch, L layers, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.decoder import Decoder
from taskvec_jax.vectors import flops, sweep, task_vectors
from taskvec_jax.vectors.programs import NUM_GROUPS, top, wavefront_schedule


class TorchWay(NamedTuple):
    """How torch does the same work (`torch_loop`).

    Attributes:
      packages: it needs.
      beside: the dtypes of ours whose turns it takes part in.
      logits_to_keep: of how many last tokens logits are computed; 0: of all.
      dtype: of its parameters.
      compiled: whether its blocks go through torch.compile.
      traced: whether nnsight reads and writes states, instead of hooks and a cache.
    """

    packages: tuple[str, ...] = ("torch",)
    beside: tuple[str, ...] = ("float32",)
    logits_to_keep: int = 1
    dtype: str = "float32"
    compiled: bool = False
    traced: bool = False


TORCH_STAGES = {
    "torch_paper": TorchWay(beside=("float32", "bfloat16"), logits_to_keep=0),
    "torch_loop": TorchWay(),
    "torch_compiled": TorchWay(compiled=True),
    "torch_bfloat16": TorchWay(beside=("bfloat16",), dtype="bfloat16"),
    "nnsight": TorchWay(packages=("torch", "nnsight"), traced=True),
}
STAGES = (
    "layer_loop",
    "naive",
    "prefix_cache",
    "wavefront",
    "shared_demonstrations",
    "packed",
    *TORCH_STAGES,
)
ACCOUNTED = ("shared_demonstrations", "packed")  # all of whose work enters the account
BY_NAME = ("torch_compiled", "nnsight")  # minutes of compiling, and a package: only if asked for


@dataclasses.dataclass(frozen=True)
class Part:
    """One task's prompts as token ids.

    Attributes:
      texts: rows of texts, dev first: dummy prompts, and for test prompts the ICL prompt too.
      queries: zero-shot queries, dev first.
      prompts: the dev prompts, to judge answers by.
      scorer: of the task.
    """

    texts: list[list[list[int]]]
    queries: list[list[int]]
    prompts: list[Prompt]
    scorer: Scorer

    @property
    def half(self) -> int:
        """How many rows are dev."""
        return len(self.queries) // 2

    def choose_layer(self, swept: np.ndarray) -> int:
        """Best layer by dev answers int [N, L]."""
        return best_layer(self.scorer.by_first_token(self.prompts, swept).mean(axis=0))


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
    scorer = scorer_of(model, task, settings)
    dev, test = (draw_prompts(scorer.fitted, settings, split) for split in ("dev", "test"))
    encode = model.tokenizer.encode_all
    texts = [encode(p.dummies()) for p in dev] + [encode([*p.dummies(), p.icl()]) for p in test]
    queries = encode([p.zero_shot() for p in [*dev, *test]])
    return Part(texts, queries, dev, scorer)


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
        dummies = len(part.texts[0])
        residuals, answers = sweep.read_texts(model, part.texts, rows, unanswered=dummies)
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


def needed_flops(model: Model, part: Part, layer: int) -> int:
    """What the task must compute, padding and repetition left out."""
    c, half = model.config, part.half
    total = sum(flops.reading_flops(c, row, int(i >= half)) for i, row in enumerate(part.texts))
    every = range(c.num_layers)
    total += sum(flops.injection_flops(c, len(q), every) for q in part.queries[:half])
    return total + sum(flops.injection_flops(c, len(q), [layer]) for q in part.queries[half:])


def agreement(outcome: Outcome, reference: Outcome) -> float:
    """Share of dev answers over all layers, and ICL answers, that are the same."""
    same = np.concatenate(
        [(outcome.swept == reference.swept).ravel(), outcome.icl == reference.icl]
    )
    return float(same.mean())
