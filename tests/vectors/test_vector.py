"""A task vector that is kept: it does what its edit does, survives a file, and knows its model."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from conftest import LLAMA, model_of

from experiments.small_pythia.mixture import TRAINING_TASKS, build_tokenizer
from taskvec_jax import Settings, TaskVector, Template, ablate, add, extract_vector, replace
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.measuring import choose_layer, read_test_theta
from taskvec_jax.models.model import Model
from taskvec_jax.vectors.provenance import Origin

L, D = 5, 42
TEXTS = ["example:a->b\nexample:c->", "example:e->", "example:f->g\nexample:h->i\nexample:j->"]
QUERIES = ["example:k->", "example:x->"]
SETTINGS = Settings(num_prompts=3, batch_size=4)
TASK = TRAINING_TASKS[0]


@pytest.fixture(scope="module")
def model() -> Model:
    """A random model with the small model's tokenizer."""
    tokenizer = build_tokenizer()
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(model_of(config, tokenizer), weights_sha256="aaaa1111")


@pytest.fixture(scope="module")
def of_all(model) -> TaskVector:
    return extract_vector(model, TEXTS, layer="all", zero_shot=QUERIES)


def random_vector(seed: int, **more) -> TaskVector:
    rng = np.random.RandomState(seed)
    origin = Origin(model="random", weights_sha256="aaaa1111", made=f"v{seed}")
    given = {"layer": 2, "origin": origin, "zero_shot": rng.standard_normal(D)} | more
    return TaskVector(rng.standard_normal(D), **given)


def test_a_vector_of_prompts_is_the_mean_state_at_their_ends(model, of_all):
    want = model.read(TEXTS).mean(axis=0)  # [L, D]
    np.testing.assert_array_equal(of_all.array, want)
    np.testing.assert_array_equal(of_all.zero_shot, model.read(QUERIES).mean(axis=0))
    assert of_all.layers == tuple(range(L))
    one = extract_vector(model, TEXTS, layer=3)
    np.testing.assert_array_equal(one.array, want[3])
    assert (one.layer, one.site, one.position, one.operation) == (3, "resid", -1, "replace")
    np.testing.assert_array_equal(of_all.at(3).array, one.array)
    assert one.origin.prompts == tuple(TEXTS)


def test_a_vector_of_a_task_is_the_mean_theta_of_its_test_prompts(model):
    vector = extract_vector(model, TASK, settings=SETTINGS)
    theta = read_test_theta(model, TASK, SETTINGS).mean(axis=0)
    assert vector.layer == choose_layer(model, TASK, SETTINGS)
    np.testing.assert_allclose(vector.array, theta[vector.layer], rtol=1e-6, atol=1e-6)
    assert vector.origin.task == TASK.name
    assert vector.origin.settings["num_prompts"] == 3
    assert len(vector.origin.prompts) == 6
    assert vector.zero_shot is not None


def test_a_vector_is_welcome_wherever_edits_are(model, of_all):
    vector = of_all.at(2)
    by_hand = replace(vector.array, layer=2, position=-1)
    want = model.logits(QUERIES, edits=by_hand)
    np.testing.assert_array_equal(model.logits(QUERIES, edits=vector), want)
    as_array = replace(vector, layer=2, position=-1)
    np.testing.assert_array_equal(model.logits(QUERIES, edits=as_array), want)
    both = [vector, ablate(layer=3, position=0)]
    np.testing.assert_array_equal(
        model.logits(QUERIES, edits=both),
        model.logits(QUERIES, edits=[by_hand, ablate(layer=3, position=0)]),
    )
    np.testing.assert_array_equal(
        model.sweep(QUERIES, of_all).tokens, model.sweep(QUERIES, of_all.array).tokens
    )


def test_a_vector_of_several_layers_adds_at_each_and_never_replaces_at_each(model, of_all):
    added = dataclasses.replace(of_all, operation="add")
    want = [add(row, layer=layer, position=-1) for layer, row in enumerate(of_all.array)]
    np.testing.assert_array_equal(
        model.logits(QUERIES, edits=added), model.logits(QUERIES, edits=want)
    )
    with pytest.raises(TaskVecError, match=r"5 layers, 0 to 4.*vector\.at"):
        model.logits(QUERIES, edits=of_all)


def test_vectors_add_scale_and_average_as_their_arrays_do():
    a, b = random_vector(1), random_vector(2)
    mixed = (2 * a + b / 4 - a) * 3
    np.testing.assert_allclose(mixed.array, 3 * (a.array + b.array / 4), rtol=1e-5, atol=1e-5)
    mean = TaskVector.mean([a, b, -1 * a])
    np.testing.assert_allclose(mean.array, b.array / 3, rtol=1e-5, atol=1e-6)
    assert "v1" in mean.origin.made
    assert "v2" in mean.origin.made
    # The state it takes the place of is where it was, however much the vector is scaled.
    means = [one.zero_shot for one in (a, b, 5 * a, a + b)]
    assert all(mean is not None for mean in means)
    of_a, of_b, scaled, added = map(np.asarray, means)
    np.testing.assert_array_equal(scaled, of_a)
    np.testing.assert_allclose(added, (of_a + of_b) / 2, rtol=1e-5, atol=1e-6)


def test_adding_at_the_mean_zero_shot_state_is_replacing_there(model):
    vector = extract_vector(model, TEXTS, layer=2, zero_shot=QUERIES[0])  # a mean over one query
    np.testing.assert_allclose(
        model.logits([QUERIES[0]] * 2, edits=(3 * vector).as_addition(position=-1)),
        model.logits([QUERIES[0]] * 2, edits=3 * vector),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_saved_vector_comes_back_with_everything_it_knows(model, of_all, tmp_path):
    for name, vector in {"all": of_all, "one": random_vector(3, zero_shot=None)}.items():
        path = vector.save(tmp_path / "new" / f"{name}.safetensors")
        again = TaskVector.load(path, model)
        np.testing.assert_array_equal(again.array, vector.array)
        if vector.zero_shot is None:
            assert again.zero_shot is None
        else:
            np.testing.assert_array_equal(again.zero_shot, vector.zero_shot)
        for field in dataclasses.fields(vector):
            if field.name not in ("array", "zero_shot"):
                assert getattr(again, field.name) == getattr(vector, field.name), field.name
    assert of_all.origin.versions["jax"] == jax.__version__
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_another_model_is_refused_with_both_names_unless_it_is_asked_for(model, of_all, tmp_path):
    path = of_all.at(1).save(tmp_path / "v.safetensors")
    other = dataclasses.replace(model, name="other", weights_sha256="bbbb2222")
    both = "of 'random' and the model is 'other'"
    with pytest.raises(TaskVecError, match=both):
        TaskVector.load(path, other)
    loaded = TaskVector.load(path)
    for use in (
        lambda: other.logits(QUERIES, edits=loaded),
        lambda: other.read(QUERIES, edits=[loaded]),
        lambda: other.generate(QUERIES, edits=loaded),
        lambda: other.sweep(QUERIES, of_all),
    ):
        with pytest.raises(TaskVecError, match=both):
            use()
    moved = TaskVector.load(path, other, any_model=True)
    np.testing.assert_array_equal(
        other.logits(QUERIES, edits=moved), model.logits(QUERIES, edits=loaded)
    )
    assert "read from random" in repr(moved)
    narrow = dataclasses.replace(
        other, config=dataclasses.replace(other.config, width=40, num_layers=1)
    )
    with pytest.raises(TaskVecError, match="width 40, layers 0 to 0"):
        loaded.on(narrow)
    with pytest.raises(TaskVecError, match="do not go together: model random and other"):
        _ = loaded + moved


def test_an_exported_vector_is_what_the_gguf_package_reads(of_all, tmp_path):
    several = dataclasses.replace(
        of_all, array=of_all.array[1:4], zero_shot=of_all.zero_shot[1:4], layer=(1, 2, 3)
    )
    path = several.export(tmp_path / "v.gguf", as_addition=True)
    reader = gguf.GGUFReader(path)
    said = {
        name: reader.fields[name].contents()
        for name in ("general.architecture", "controlvector.model_hint", "general.description")
    }
    assert said["general.architecture"] == "controlvector"
    assert said["controlvector.model_hint"] == "llama"
    assert "NOT the same operation" in said["general.description"]
    assert reader.fields["controlvector.layer_count"].contents() == 3
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert set(found) == {"direction.1", "direction.2", "direction.3"}
    for layer in (1, 2, 3):
        want = of_all.array[layer] - of_all.zero_shot[layer]
        np.testing.assert_array_equal(found[f"direction.{layer}"], want)
    assert os.listdir(tmp_path) == ["v.gguf"]


@pytest.mark.parametrize(
    ("vector", "more", "message"),
    [
        (random_vector(1), {}, "REPLACES the state at position -1.*another operation"),
        (random_vector(1, operation="add"), {}, "is ADDED at position -1"),
        (random_vector(1, zero_shot=None), {"as_addition": True}, "mean zero-shot state"),
        (random_vector(1, layer=0), {"as_addition": True}, "layer 0 cannot be exported"),
        (random_vector(1, site="mlp_out"), {"as_addition": True}, "site is 'mlp_out'"),
        (random_vector(1), {"format": "pt"}, "format is 'pt'; allowed: gguf"),
    ],
)
def test_what_a_control_vector_cannot_say_is_refused(vector, more, message, tmp_path):
    with pytest.raises(TaskVecError, match=message):
        vector.export(tmp_path / "v.gguf", **more)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskVector(np.zeros((2, D)), 1), r"array has shape \(2, 42\)"),
        (lambda: TaskVector(np.zeros(D), (1, 0)), "in rising order"),
        (lambda: TaskVector(np.full(D, np.nan), 1), "not finite"),
        (lambda: TaskVector(np.zeros(D), 1, operation="swap"), "operation is 'swap'"),
        (lambda: TaskVector(np.zeros(D), 1, site="mlp"), "site is 'mlp'"),
        (lambda: TaskVector(np.zeros(D), 1, site="head"), "takes a head"),
        (lambda: TaskVector(np.zeros(D), 1, position="last"), "position is 'last'"),
        (lambda: TaskVector(np.zeros(D), 1, zero_shot=np.zeros(3)), "must be the same"),
        (lambda: TaskVector(np.zeros(D), 1).at(2), "this vector has layer 1"),
        (lambda: random_vector(1) + random_vector(2, layer=3), "layer 2 and 3"),
        (lambda: TaskVector.mean([]), "no vector"),
    ],
)
def test_what_is_no_vector_is_refused(make, message):
    with pytest.raises(TaskVecError, match=message):
        make()


def test_what_no_vector_can_be_made_from_is_refused(model):
    source: Any
    for source, layer, message in (
        ([], 1, "source is empty"),
        (TEXTS, None, "layer is None"),
        (TEXTS, 5, "layer is 5; allowed: 0 to 4"),
        ([3, 4], 1, "must be a string or several"),
    ):
        with pytest.raises(TaskVecError, match=message):
            extract_vector(model, source, layer=layer)


def test_files_that_hold_no_vector_are_refused(tmp_path):
    with pytest.raises(TaskVecError, match="there is no such file"):
        TaskVector.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(TaskVecError, match="cannot be read as a vector"):
        TaskVector.load(tmp_path / "text.safetensors")
    from safetensors.numpy import save_file

    save_file({"vector": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(TaskVecError, match="its format is None"):
        TaskVector.load(tmp_path / "weights.safetensors")
    save_file(
        {"vector": np.zeros(3)},
        tmp_path / "torn.safetensors",
        {"format": "taskvec_jax.TaskVector/1", "about": "{}"},
    )
    with pytest.raises(TaskVecError, match="metadata is damaged"):
        TaskVector.load(tmp_path / "torn.safetensors")


def test_theta_of_a_template_is_read_at_the_end_of_its_cue(model):
    template = Template("{x},{y}", header="example:")
    settings = dataclasses.replace(SETTINGS, template=template)
    vector = extract_vector(model, TASK, layer=3, settings=settings)
    for text in vector.origin.prompts:
        assert text.startswith("example:")
        assert text.endswith(",")
        assert "->" not in text
    want = model.read(vector.origin.prompts)[:, 3].mean(axis=0)
    np.testing.assert_allclose(vector.array, want, rtol=1e-5, atol=1e-5)
    assert vector.origin.settings["template"]["pair"] == "{x},{y}"
