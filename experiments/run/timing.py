"""About how long a run takes here, from one timed call of each program."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.reading import draw_prompts, read_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.sweep import sweep_layers

# Sweeps of one split's queries over all layers. The layer sweep: theta and a random vector on dev.
# The main results besides: theta on test, and on dev three controls and each other task's theta.
SWEEPS, MORE_SWEEPS = 2, 4


def estimate(
    model: Model, task: Task, settings: Settings, *, num_tasks: int, num_known: int
) -> dict[str, float]:
    """Seconds of the layer sweep and of the main results, compilation left out.

    Args:
      task: whose prompts are timed; others are taken to be as long.
      num_tasks, num_known: tasks of the run, and tasks that lend their thetas.

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings.
    """
    size = settings.batch_size
    scorer = scorer_of(model, task, settings)
    few = dataclasses.replace(settings, num_prompts=size)
    prompts = draw_prompts(scorer.fitted, few, "dev")
    queries = model.tokenizer.encode_all([prompt.zero_shot() for prompt in prompts])
    wanted = scorer.wanted(prompts, settings.seed)
    theta, _ = read_prompts(scorer, prompts, size, wanted)
    reading = _seconds(lambda: read_prompts(scorer, prompts, size, wanted)) / size
    sweeping = _seconds(lambda: sweep_layers(model, queries, theta, size, grading=wanted)) / size
    n = num_tasks * settings.num_prompts
    plain = n * (2 * reading + SWEEPS * sweeping)
    others = max(0, num_known - 1)
    more = n * (2 * reading + (MORE_SWEEPS + others) * sweeping)
    return {"layer_sweep": plain, "main_results": plain + more}


def _seconds(call: Callable[[], Any]) -> float:
    call()  # compiles
    started = time.monotonic()
    call()
    return time.monotonic() - started
