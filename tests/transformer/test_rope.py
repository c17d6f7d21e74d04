"""Rotary scaling that depends on the length of a text goes by each text's own length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf
import numpy as np
import pytest
import torch

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.rope import RopeScaling
from taskvec_jax.vectors import sweep

BEFORE = 13  # tokens of context before the scaling
RNG = np.random.RandomState(0)
SHORT, LONG = (RNG.randint(1, 100, size).tolist() for size in (BEFORE - 3, BEFORE + 8))
CONFIGS = {
    "longrope": "phi3-longrope",
    "dynamic": "llama-dynamic",
}


def pair(kind: str, directory: Path) -> tuple[Any, Model]:
    theirs = hf.random_model(hf.MORE_CONFIGS[CONFIGS[kind]]())
    return theirs, load_model(hf.save(theirs, directory))


def alone(theirs: Any, text: list[int]) -> np.ndarray:
    """transformers' logits [T, V] of one text; a model of its own, because it remembers lengths."""
    fresh = type(theirs)(theirs.config).eval()
    fresh.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        return fresh(torch.tensor([text])).logits[0].numpy()


@pytest.mark.parametrize("kind", CONFIGS)
def test_texts_of_a_batch_rotate_by_their_own_lengths(kind: str, tmp_path: Path) -> None:
    theirs, ours = pair(kind, tmp_path)
    tokens = np.zeros((2, len(LONG) + 3), np.int32)
    tokens[0, : len(SHORT)], tokens[1, : len(LONG)] = SHORT, LONG
    lengths = np.array([len(SHORT), len(LONG)])
    logits = np.asarray(ours.decoder.apply(ours.params, tokens, lengths=lengths))
    for row, text in enumerate((SHORT, LONG)):
        want = alone(theirs, text)
        got = logits[row, : len(text)]
        distance = np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)
        assert distance.max() < 1e-5


def test_branches_that_would_rotate_otherwise_are_not_read(tmp_path: Path) -> None:
    """A trunk has one rotation: texts on both sides of the length cannot share it."""
    theirs, ours = pair("longrope", tmp_path)
    same = [[*SHORT, 5, 6, 7, 8], [*SHORT, 9, 2, 4, 4]]  # both longer than BEFORE
    _, answers = sweep.read_texts(ours, [same], 1)
    for i, text in enumerate(same):
        assert answers.tokens[0, i] == alone(theirs, text)[-1].argmax()
    with pytest.raises(TaskVecError, match="not finite"):
        sweep.read_texts(ours, [[[*SHORT, 5], [*SHORT, 9, 2, 4, 4]]], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "axial"}, "rope scaling 'axial'"),
        ({"kind": "yarn", "beta_fast": 0.0}, "not above 0"),
        ({"kind": "longrope", "divisors": (1.0, 2.0), "long_divisors": (1.0,)}, "1 rope divisors"),
        ({"kind": "dynamic"}, "is not defined"),
    ],
)
def test_scaling_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskVecError, match=message):
        RopeScaling(**changes).check(10_000.0, 2 if changes["kind"] == "dynamic" else 4)
