"""Function vectors and what is made of their heads, on models whose numbers do not matter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import LLAMA, model_of

from experiments import (
    function_vectors,
    head_ablation,
    necessity,
    positions,
    several_vectors,
)
from experiments.page import function_vectors as page
from experiments.page import head_ablation as ablation_page
from experiments.page import necessity as necessity_page
from experiments.page import positions as positions_page
from experiments.page import several_vectors as several_page
from experiments.run.journal import Journal
from experiments.run.study import Study
from taskvec_jax.evaluation.protocol import Settings
from taskvec_jax.models import batches
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import Prompt, fit
from taskvec_jax.tasks import TASKS, Pair
from taskvec_jax.transformer.decoder import Decoder, flatten
from taskvec_jax.transformer.quantization import quantize
from taskvec_jax.vectors import sweep
from taskvec_jax.vectors.function_vectors import written_by
from taskvec_jax.vectors.head_map import map_heads

NAMES = ("algorithmic_to_upper", "linguistic_antonyms")
OPTIONS = function_vectors.Options(head_mean_prompts=4, head_trials=3)


@pytest.fixture(scope="module", autouse=True)
def one_length():
    """Rounds row lengths up to one shape: nothing here is about speed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sweep, "TREE_STEP", 48)
    patch.setattr(sweep, "SHORT_TREE", 0)
    patch.setattr(sweep, "QUERY_FIRST", 12)
    patch.setattr(batches, "TOKENS_STEP", 48)
    yield
    patch.undo()


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
            untouched = name in ("baseline", "icl", "shuffled_icl")
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
    assert (
        set(page.draw_figures(result))
        == set(shown.captions)
        == {
            "function_vectors_scores",
            "function_vectors_layers",
        }
    )
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


@pytest.mark.parametrize(
    ("family", "changes", "offset"),
    [
        ("gemma3", {}, 1.0),
        ("olmo2", {}, 0.0),
        ("granite", {"residual_scale": 0.3}, None),
        ("llama", {"quantization": "int8"}, None),
        ("llama", {"quantization": "int4"}, None),
    ],
)
def test_what_heads_write_is_what_reaches_the_residual_stream(family, changes, offset, tokenizer):
    """A norm after the projection, a multiplier, and kernels that are kept in fewer bits count."""
    changes = dict(changes)
    quantization = changes.pop("quantization", "none")
    config = dataclasses.replace(
        LLAMA,
        family=family,
        num_layers=2,
        vocab_size=tokenizer.vocab_size,
        max_length=256,
        mlp_width=54,  # two numbers of int4 in a byte
        **changes,
    )
    model = model_of(config, tokenizer)
    if quantization != "none":
        packed, params = quantize(config, model.params, quantization)
        model = Model("packed", Decoder(packed), params, tokenizer, packed, "none")
    text = ["example:a->"]
    written = written_by(model, model.read(text, site="head")[0])
    attended = model.read(text, site="attn_out")[0].astype(np.float64)  # before the norm
    expected = attended * config.residual_scale
    if offset is not None:
        scale = flatten(model.params)["layers/attn_post_norm/scale"]
        size = np.sqrt((attended**2).mean(-1, keepdims=True) + config.norm_eps)
        expected = attended / size * (offset + np.asarray(scale, np.float64))
    np.testing.assert_allclose(written.sum(axis=1), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(written).max(axis=(1, 2)).min() > 1e-3, "nothing is written"


@pytest.fixture(scope="module")
def cut(study) -> dict:
    return json.loads(json.dumps(necessity.run(study), allow_nan=False))


def test_necessity_scores_every_layer_on_the_same_prompts(cut, study):
    for name, task in cut["tasks"].items():
        assert len(task["queries"]) == 3
        for kind in ("no_attention", "other_state", "both"):
            assert np.shape(task["correct"][kind]) == (2, 3)
        for column in ("baseline", "icl", "other_icl"):
            assert np.shape(task["correct"][column]) == (3,)
        # After the last layer there is nothing left to attend with, and only the state counts.
        assert task["correct"]["no_attention"][-1] == task["correct"]["icl"]
        assert task["correct"]["other_state"][-1] == task["correct"]["other_icl"]
        measured = study.measured(TASKS[name])
        icl = measured.scorer.by_first_token(measured.test, measured.icl.tokens)
        assert task["correct"]["icl"] == icl.astype(int).tolist()
    assert cut["mean"]["all"]["num_tasks"] == 2
    assert len(cut["mean"]["all"]["both"]) == 2
    shown = necessity_page.section(cut)
    assert set(necessity_page.draw_figures(cut)) == set(shown.captions) == {"necessity"}
    assert len(shown.tables[0].rows) == 2


def test_curves_cross_half_of_the_gain_where_they_stay_above_or_fall_below():
    curves = {
        "baseline": 0.1,
        "icl": 0.9,
        "no_attention": [0.1, 0.6, 0.4, 0.5, 0.9],  # half is .5
        "other_state": [0.9, 0.5, 0.4, 0.6, 0.1],
    }
    assert necessity.crossings(curves) == {"no_attention": 3, "other_state": 2}
    never = {**curves, "no_attention": [0.1] * 5, "other_state": [0.9] * 5}
    assert necessity.crossings(never) == {"no_attention": None, "other_state": None}
    always = {**curves, "no_attention": [0.9] * 5, "other_state": [0.1] * 5}
    assert necessity.crossings(always) == {"no_attention": 0, "other_state": 0}
    assert necessity.crossings({**curves, "icl": 0.1})["no_attention"] is None


def test_other_demonstrations_never_show_the_query():
    own = Prompt((Pair("a", "A"),), Pair("b", "B"), ())
    other = Prompt((Pair(" b", " c"), Pair("c", "d")), Pair("x", "y"), ())
    assert necessity.with_demonstrations(own, other) == "example:c->d\nexample:b->"


def test_ablation_scores_every_set_of_every_size_on_the_same_prompts(study, result, monkeypatch):
    monkeypatch.setattr(head_ablation, "HEADS", OPTIONS)  # whose effects are in the journal
    found = json.loads(json.dumps(head_ablation.run(study), allow_nan=False))
    assert found["sizes"] == [1, 2]  # of 12 heads
    names = {"icl", *(f"{name} {size}" for name in head_ablation.SETS for size in (1, 2))}
    for name, task in found["tasks"].items():
        assert set(task["correct"]) == names
        icl = result["tasks"][name]["outcomes"]["correct"]["icl"]
        assert task["correct"]["icl"] == icl
    assert np.shape(found["induction_scores"]) == (2, 6)
    shown = ablation_page.section(found)
    assert set(ablation_page.draw_figures(found)) == set(shown.captions) == {"head_ablation"}


def test_sets_of_heads_are_the_ranked_ones_and_one_of_them_has_no_head_of_another():
    effects = np.array([[0.9, 0.1, 0.0, 0.2], [0.8, 0.0, 0.1, 0.3]])
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.7, 0.2, 0.0, 0.1]])
    sets = head_ablation.head_sets(effects, scores, 2, "seed")
    assert sets["function_vector"] == [(0, 0), (1, 0)]
    assert sets["induction"] == [(0, 0), (0, 1)]
    assert sets["induction_only"] == [(0, 1), (1, 1)]
    assert [layer for layer, _ in sets["random"]] == [0, 1]
    assert not {*sets["random"]} & {*sets["function_vector"]}


def test_positions_score_every_condition_and_windows_at_a_layer_of_its_own(study, result):
    found = json.loads(json.dumps(positions.run(study), allow_nan=False))
    names = {condition.name for condition in positions.CONDITIONS}
    for name, task in found["tasks"].items():
        assert set(task["dev_accuracy_by_layer"]) == names
        assert set(task["outcomes"]["correct"]) == {*names, "baseline", "shuffled_icl", "icl"}
        of_heads = result["tasks"][name]["outcomes"]["correct"]
        for column in ("baseline", "icl"):
            assert task["outcomes"]["correct"][column] == of_heads[column]
    shown = positions_page.section(found)
    assert set(positions_page.draw_figures(found)) == set(shown.captions)


def test_several_vectors_score_every_number_of_demonstrations_and_the_mixes(study, result):
    found = json.loads(json.dumps(several_vectors.run(study), allow_nan=False))
    assert found["counts"] == [0, 1, 2, 3]  # theta has seen three
    assert {*found["tasks"]} == {*NAMES, "algorithmic_upper_lower_both", "linguistic_antonyms_both"}
    for name in NAMES:
        correct = found["tasks"][name]["outcomes"]["correct"]
        of_heads = result["tasks"][name]["outcomes"]["correct"]
        assert (correct["base 0"], correct["base 3"]) == (of_heads["baseline"], of_heads["icl"])
        assert ("many 0" in correct, "many 3" in correct) == (False, True)
    shown = several_page.section(found)
    assert set(several_page.draw_figures(found)) == set(shown.captions)
