"""The examples in docstrings give what they say, on the small model that ships with the project."""

from __future__ import annotations

import doctest
import importlib

import pytest

from taskvec_jax import Settings, load_model
from taskvec_jax.models.registry import SMALL_MODEL

PURE = (
    "taskvec_jax.tasks.task",
    "taskvec_jax.prompting.templates",
    "taskvec_jax.evaluation.records",
)
ON_A_MODEL = ("taskvec_jax", "taskvec_jax.models.verbs", "taskvec_jax.vectors.vector")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What the examples take for granted."""
    return {
        "model": load_model(SMALL_MODEL),
        "settings": Settings(num_prompts=4, num_demonstrations=5, batch_size=4),
        "folder": tmp_path_factory.mktemp("doctests"),
    }


@pytest.mark.parametrize("name", PURE)
def test_examples_of_words_and_results_give_what_they_say(name):
    tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried.attempted > 0
    assert tried.failed == 0


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_examples_on_the_small_model_give_what_they_say(name, known):
    module = importlib.import_module(name)
    tried = doctest.testmod(module, extraglobs=known, optionflags=doctest.ELLIPSIS)
    assert tried.attempted > 0
    assert tried.failed == 0
