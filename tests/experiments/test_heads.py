"""Function vectors and what is made of their heads, on models whose numbers do not matter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import LLAMA, model_of

from experiments import function_vectors
from experiments.page import function_vectors as page
from experiments.run.journal import Journal
from experiments.run.study import Study
from taskvec_jax.evaluation.protocol import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import fit
from taskvec_jax.tasks import TASKS
from taskvec_jax.vectors.function_vectors import written_by
from taskvec_jax.vectors.head_map import map_heads

NAMES = ("algorithmic_to_upper", "linguistic_antonyms")
OPTIONS = function_vectors.Options(head_mean_prompts=4, head_trials=3)


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    config = dataclasses.replace(
        LLAMA, vocab_size=tokenizer.vocab_size, num_layers=2, max_length=256
    )
    return model_of(config, tokenizer)


def study_of(model: Model, out: Path) -> Study:
    settings = Settings(num_prompts=3, num_demonstrations=3, batch_size=3)
    tasks = [TASKS[name] for name in NAMES]
    return Study(model, tasks, tasks, settings, settings, out, Journal(out))


@pytest.fixture(scope="module")
def study(model, tmp_path_factory) -> Study:
    return study_of(model, tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def result(study) -> dict:
    return json.loads(json.dumps(function_vectors.run(study, OPTIONS), allow_nan=False))


def test_the_result_lets_anyone_compute_the_map_again(result, study):
    model, task = study.model, result["tasks"]["linguistic_antonyms"]
    prompts = task["prompts"]
    assert set(prompts) == {"mean", "trials", "answers"}
    assert (len(prompts["mean"]), len(prompts["trials"]), len(prompts["answers"])) == (4, 3, 3)
    assert all(text.endswith("->") for text in [*prompts["mean"], *prompts["trials"]])
    outputs = model.read(prompts["mean"], site="head").mean(axis=0)
    texts = model.tokenizer.encode_all(prompts["trials"])
    again = map_heads(model, texts, prompts["answers"], outputs, 3)
    assert np.shape(task["aie"]) == (2, 6)
    np.testing.assert_allclose(task["aie"], again.effects(), rtol=1e-4, atol=1e-10)


def test_the_answers_are_first_tokens_as_written_after_the_arrow(result, study):
    pairs = {p.input: p.output for p in fit(TASKS[NAMES[1]], study.model.tokenizer).pairs}
    task = result["tasks"][NAMES[1]]
    for text, answer in zip(task["prompts"]["trials"], task["prompts"]["answers"], strict=True):
        query = text.rpartition("example:")[2].removesuffix("->")
        ids = study.model.tokenizer.encode_all([text, text + pairs[query]])
        assert ids[1][len(ids[0])] == answer


def test_no_test_query_is_in_the_prompts_that_heads_are_chosen_on(result):
    task = result["tasks"]["linguistic_antonyms"]
    assert not task["shared_queries"]
    shown = "\n".join([*task["prompts"]["mean"], *task["prompts"]["trials"]])
    for query in task["outcomes"]["queries"]:
        assert f"example:{query}->" not in shown
    assert result["tasks"]["algorithmic_to_upper"]["shared_queries"]  # 26 letters


def test_every_column_is_scored_on_the_same_prompts_at_a_layer_of_its_own(result):
    for task in result["tasks"].values():
        columns = task["outcomes"]["correct"]
        assert set(page.COLUMNS) == set(columns) == set(task["scores"])
        assert {len(values) for values in columns.values()} == {3}
        for name, values in columns.items():
            assert task["scores"][name]["accuracy"] == pytest.approx(np.mean(values))
            untouched = name in ("zero_shot", "icl", "shuffled_icl")
            assert (task["scores"][name]["layer"] is None) == untouched
        assert {*task["accuracy_by_layer"]} == {"added", "replaced", "shuffled"}
        assert {len(curve) for curve in task["accuracy_by_layer"].values()} == {2}
    assert set(result["mean"]) == set(page.COLUMNS)


def test_a_second_run_finds_every_unit_and_gives_the_same(result, study):
    before = study.journal.computed
    again = json.loads(json.dumps(function_vectors.run(study, OPTIONS)))
    assert study.journal.computed == before
    assert again["tasks"] == result["tasks"]


def test_where_shuffling_costs_nothing_no_map_is_drawn_and_it_is_said(result):
    shown = page.section(result)
    assert any("cost this model nothing that can be shown" in word for word in shown.words)
    assert set(page.draw_figures(result)) == set(shown.captions) == {"function_vectors_layers"}
    costly = json.loads(json.dumps(result))
    costly["cost_of_shuffling"]["decision"] = "above"
    costly["cost_of_shuffling"]["tasks"][NAMES[0]] = 0.5
    shown = page.section(costly)
    assert set(page.draw_figures(costly)) == set(shown.captions)
    assert "function_vectors" in shown.captions


def test_what_heads_write_sums_to_what_attention_returns(model):
    """Written by all heads together: the attention output, but for the projection's bias."""
    outputs = model.read(["example:a->"], site="head")[0]
    written = written_by(model, outputs).sum(axis=1)
    np.testing.assert_allclose(
        written, model.read(["example:a->"], site="attn_out")[0], rtol=1e-4, atol=1e-5
    )
