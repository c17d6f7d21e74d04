"""The check at a run's start: a prompt's own residual stream, written back, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import WANTED_STEP
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.templates import PAPER
from taskvec_jax.vectors.graded import Wanted
from taskvec_jax.vectors.patching import read_states
from taskvec_jax.vectors.sweep import read_texts, sweep_layers

# How far the top logit of a prompt may move when its own residual stream is written back, as a
# share of its size. In half precision ten times what was measured on the default model (8 prompts,
# all layers, 2026-11-26): 1.8e-3 in bfloat16, 5.2e-4 in float16.
IDENTITY_TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}


def check_injection(model: Model, batch_size: int) -> float:
    """Writes a prompt's own residual stream back after every layer: nothing may change.

    A prediction may change to a token whose logit was as high up to the tolerance: a tie that
    rounding decides.

    Returns:
      The largest difference of a top logit, over layers.

    Raises:
      TaskVecError: a prediction or a logit changed; the run would measure something else.
    """
    query = model.tokenizer.encode(PAPER.zero_shot("own residual"))
    residuals, _ = read_texts(model, [[query]], batch_size)
    # Graded scores are asked for because the run's own sweeps do: the same program serves both.
    grading = Wanted(np.zeros((1, WANTED_STEP), np.int32), np.zeros(1, np.int32))
    answers = sweep_layers(model, [query], residuals[:, 0], batch_size, grading)
    tokens, logits = answers.tokens[0], answers.logits[0]
    allowed = IDENTITY_TOLERANCE[model.config.dtype] * max(1.0, abs(float(logits[0])))
    differences = np.abs(logits[1:] - logits[0])
    worst = int(np.argmax(differences))
    found = ""
    if not differences[worst] <= allowed:
        found = f"layer {worst} moves its top logit by {differences[worst]:.3g}"
    elif (tokens[1:] != tokens[0]).any():
        distances = logits[0] - _logits_after(model, query)[tokens[1:]]  # [L]
        worst_change = int(np.argmax(distances))
        if not distances[worst_change] <= allowed:
            found = (
                f"layer {worst_change} changes its prediction to token"
                f" {tokens[1 + worst_change]}, whose logit was {distances[worst_change]:.3g} lower"
            )
    if found:
        raise TaskVecError(
            f"{model.name}: re-injecting a prompt's own residual stream after {found} (allowed"
            f" {allowed:.3g}); extraction and injection do not agree on this machine, so no number"
            " would be worth reading"
        )
    return float(differences[worst])


def _logits_after(model: Model, query: Sequence[int]) -> np.ndarray:
    """Logits [V] after one text, by the plain decoder."""
    tokens, last = np.array([query], np.int32), np.array([len(query) - 1])
    return read_states(model.decoder, model.params, tokens, last[:, None])[1][0]
