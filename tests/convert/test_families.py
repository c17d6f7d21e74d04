"""Every family and every variant computes what transformers computes, from the same files."""

from __future__ import annotations

from pathlib import Path

import hf
import numpy as np
import pytest

from taskvec_jax.models.loading import load_model

TOKENS = np.array([5, 71, 2, 33, 99, 14, 14, 60, 8, 41, 93])


@pytest.mark.parametrize("name", hf.CONFIGS)
def test_residuals_and_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = hf.random_model(hf.CONFIGS[name]())
    ours = load_model(hf.save(theirs, tmp_path))
    hf.assert_same(hf.run_ours(ours, TOKENS), hf.run_hf(theirs, TOKENS))


def test_the_matrix_has_at_least_24_configurations() -> None:
    assert len(hf.CONFIGS) >= 24
