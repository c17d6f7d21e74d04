"""The published numbers, as they are carried."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.published import published, published_means, published_name, published_scores
from taskvec_jax.tasks import TASKS


def test_the_published_averages_follow_from_the_published_table():
    for name, averages in published()["averages"].items():
        scores = published_scores(name)
        assert len(scores) == 18
        for measure in ("baseline", "task_vector", "icl"):
            mean = np.mean([task[measure] for task in scores.values()])
            assert mean == pytest.approx(averages["all_18"][measure], abs=6e-5)
    assert published()["averages"]["LLaMA 7B"]["all_18"]["task_vector"] == 0.7756


def test_published_tasks_are_ours():
    assert set(published_means()) == set(TASKS)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llama-7b", "LLaMA 7B"),
        ("huggyllama/llama-7b", "LLaMA 7B"),
        ("/models/pythia-6.9b", "Pythia 6.9B"),
        ("EleutherAI/gpt-j-6b", "GPT-J 6B"),
        ("pythia-6.9b-deduped", None),
        ("Llama-2-7b", None),
        ("smollm2-135m-instruct", None),
    ],
)
def test_only_the_papers_own_models_get_a_published_column(model, name):
    assert published_name(model) == name
    assert bool(published_scores(published_name(model))) == (name is not None)


def test_the_file_names_its_source_and_holds_no_nan():
    assert "2310.15916" in published()["source"]["paper"]
    json.dumps(published(), allow_nan=False)
