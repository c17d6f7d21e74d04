"""Learned vectors: the losses are those of the definition, the gradients those of the losses."""

# Long because: losses, gradients and the experiment share one tiny model.

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA, PYTHIA, logits_of, model_of, random_params
from slow import first_is_quick, slow

from experiments import learned_task_vector
from experiments.page import learned_task_vector as page
from experiments.run.journal import Journal
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, fit
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import TASKS, Pair, Task
from taskvec_jax.transformer.context import attention_context, plain_layout
from taskvec_jax.transformer.decoder import FAMILY_MODULES
from taskvec_jax.vectors import examples as examples_of
from taskvec_jax.vectors import learning, learning_step
from taskvec_jax.vectors.learning import learn_vector
from taskvec_jax.vectors.programs import schedule_of, wavefront_schedule
from taskvec_jax.vectors.sweep import inject_vectors

RECIPE = learning.Recipe(steps=12, batch_size=3, learning_rate=0.3, check_every=4)


def queries(shortest: int = 1) -> list[list[int]]:
    rng = np.random.RandomState(5)
    return [rng.randint(0, 131, max(n, shortest)).tolist() for n in (4, 7, 2, 4, 1)]


def examples(wanted: bool = False, shortest: int = 1) -> examples_of.Examples:
    log_p = None
    if wanted:
        noise = np.random.RandomState(6).standard_normal((5, 131)).astype(np.float32)
        log_p = noise - np.log(np.exp(noise).sum(-1, keepdims=True))
    return examples_of.make_examples(queries(shortest), [[3], [5, 9], [3], [120, 4, 7], [0]], log_p)


def some_vectors(*shape: int, width: int = LLAMA.width) -> np.ndarray:
    return np.random.RandomState(7).standard_normal((*shape, width)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return model_of(LLAMA, tokenizer)


@pytest.mark.parametrize("wanted", [False, True])
def test_losses_are_those_of_injecting_each_vector_alone(model, wanted):
    batch, layers = examples(wanted), [0, 2, 4]
    vectors = some_vectors(3)
    losses, said = learning.score_examples(model, batch, vectors, layers, batch_size=2)
    for c, layer in enumerate(layers):
        override = (np.int32(layer), batch.last, vectors[c])
        logits = logits_of(model.decoder, model.params, batch.tokens, override)
        log_q = jax.nn.log_softmax(logits[np.arange(5), batch.last], axis=-1)
        np.testing.assert_array_equal(said[:, c], np.argmax(log_q, axis=-1))
        if wanted:
            want = (np.exp(batch.wanted) * (batch.wanted - np.asarray(log_q))).sum(-1)
        else:
            shares = np.exp(np.asarray(log_q))
            want = -np.log(
                [
                    shares[i, answers[answers != examples_of.NO_ANSWER]].sum()
                    for i, answers in enumerate(batch.answers)
                ]
            )
        np.testing.assert_allclose(losses[:, c], want, rtol=1e-5, atol=1e-5)


@slow
def test_vectors_at_the_last_tokens_are_written_together_after_their_layer(model):
    """Against a plain loop over blocks that knows no copies and no branches."""
    positions, batch, layers = 3, examples(shortest=3), [0, 2, 4]
    vectors = some_vectors(3, positions)
    losses, said = learning.score_examples(model, batch, vectors, layers, batch_size=5)
    block = FAMILY_MODULES[LLAMA.family].Block(LLAMA)
    contexts = attention_context(LLAMA, plain_layout(batch.tokens.shape[1]))
    places = batch.last[:, None] - np.arange(positions)[::-1]
    rows = np.arange(5)

    @jax.jit
    def logits(vectors, written_after):
        x = model.decoder.apply(model.params, batch.tokens, method="embed")
        for layer in range(LLAMA.num_layers):
            own = jax.tree.map(
                lambda leaf, layer=layer: leaf[layer], model.params["params"]["layers"]
            )
            x = block.apply({"params": own}, x, contexts.of_layer(layer))
            written = x.at[rows[:, None], places].set(vectors)
            x = jnp.where(layer == written_after, written, x)
        return model.decoder.apply(model.params, x[rows, batch.last], method="unembed")

    for c, layer in enumerate(layers):
        log_q = np.asarray(jax.nn.log_softmax(logits(vectors[c], layer)))
        np.testing.assert_array_equal(said[:, c], log_q.argmax(-1))
        want = [
            -np.log(np.exp(log_q[i, answers[answers != examples_of.NO_ANSWER]]).sum())
            for i, answers in enumerate(batch.answers)
        ]
        np.testing.assert_allclose(losses[:, c], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "wanted", "positions"),
    first_is_quick([(LLAMA, False, ()), (PYTHIA, True, (2,))]),
    ids=["answers", "distribution at two positions"],
)
def test_gradients_through_the_override_match_finite_differences(config, wanted, positions):
    with jax.enable_x64(True):
        config = dataclasses.replace(config, dtype="float64", vocab_size=131)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), random_params(config))
        layers = [0, 1, config.num_layers - 1]
        schedule = schedule_of(layers, config.num_layers)
        vectors = jnp.asarray(some_vectors(3, *positions, width=config.width), jnp.float64)
        batch = examples(wanted, shortest=2)
        batch = batch._replace(wanted=batch.wanted.astype(np.float64))

        @jax.jit
        def total(vectors):
            place = jnp.asarray(layers)
            return learning_step.losses_of(config, params, batch, vectors, place, schedule)[0].sum()

        gradient = jax.jit(jax.grad(total))(vectors)
        rng, h = np.random.RandomState(8), 1e-5
        for c in range(3):  # along a direction in each vector alone: no copy sees another
            way = np.zeros(vectors.shape)
            way[c] = rng.standard_normal(vectors.shape[1:])
            slope = (total(vectors + h * way) - total(vectors - h * way)) / (2 * h)
            np.testing.assert_allclose((gradient * way).sum(), slope, rtol=1e-6, atol=1e-8)
        seen = np.abs(gradient).max(axis=-1) > 1e-3
        if positions:  # nobody sees what the last layer gives before the last token
            assert not seen[-1, 0]
            seen = seen[:, -1] & (seen[:, 0] | (np.arange(3) == 2))
        assert seen.all()


def right(said: np.ndarray) -> np.ndarray:
    answers = examples().answers
    return (said[:, :, None] == answers[:, None]).any(-1)


def learned(model: Model, layers: list[int], recipe: learning.Recipe = RECIPE, **more):
    initial = some_vectors(LLAMA.num_layers, *more.pop("positions", ()))[layers]
    norms = np.linalg.norm(initial, axis=-1)
    given = {"train": examples(), "dev": examples(), **more}
    return learn_vector(model, given["train"], given["dev"], right, initial, norms, layers, recipe)


def test_learning_lowers_the_loss_of_every_layer_and_compiles_one_step(model):
    before = learning_step.train_step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    found = learned(model, [0, 1, 2, 3, 4])
    after = learning_step.train_step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    assert after <= before + 1
    assert found.checks == [0, 4, 8, 12]
    assert (found.dev_losses[-1] < found.dev_losses[0] - 0.1).all()
    assert (found.dev_accuracy >= found.dev_accuracies[0]).all()
    np.testing.assert_array_equal(found.dev_accuracy, found.dev_accuracies.max(axis=0))


def test_a_layer_learns_the_same_alone_and_among_others(model):
    # Adam divides by the root of the gradient's square, so float noise grows; steps are few.
    recipe = dataclasses.replace(RECIPE, steps=4)
    together, alone = learned(model, [0, 1, 2, 3, 4], recipe), learned(model, [3], recipe)
    np.testing.assert_allclose(alone.losses[:, 0], together.losses[:, 3], rtol=1e-4)
    np.testing.assert_allclose(alone.vectors[0], together.vectors[3], rtol=1e-3, atol=1e-4)


@slow
def test_two_positions_are_learned_together_in_one_program(model):
    batch = examples(shortest=2)
    before = learning_step.train_step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    found = learned(model, [0, 1, 2, 3, 4], positions=(2,), train=batch, dev=batch)
    after = learning_step.train_step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    assert after <= before + 1
    assert (found.dev_losses[-1] < found.dev_losses[0] - 0.1).all()
    # Nobody sees what the last layer gives before the last token, so nothing is to be learned.
    moved = np.abs(found.vectors - some_vectors(LLAMA.num_layers, 2)).max(axis=-1) > 0.01  # [C, P]
    assert moved[:-1].all()
    assert moved[-1].tolist() == [False, True]


@slow  # learns twice
def test_learning_repeats_and_keeps_the_norm_it_is_told(model):
    recipe = dataclasses.replace(RECIPE, norm=0.5, steps=4)
    found, again = learned(model, [1, 4], recipe), learned(model, [1, 4], recipe)
    np.testing.assert_array_equal(found.vectors, again.vectors)
    norms = np.linalg.norm(some_vectors(LLAMA.num_layers)[[1, 4]], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=-1), 0.5 * norms, rtol=1e-5)
    one = learned(model, [1, 4], recipe, positions=(1,))  # the same with its axis of positions
    np.testing.assert_allclose(one.losses, found.losses, rtol=1e-5)
    np.testing.assert_allclose(one.vectors[:, 0], found.vectors, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.step, found.step)


def test_padding_and_batches_change_no_loss(model):
    batch, layers, vectors = examples(), [0, 2, 4], some_vectors(3)
    losses, said = learning.score_examples(model, batch, vectors, layers, batch_size=5)
    longer = batch._replace(tokens=np.pad(batch.tokens, ((0, 0), (0, 8)), constant_values=77))
    for other, size in ((batch, 2), (longer, 5)):
        again, told = learning.score_examples(model, other, vectors, layers, batch_size=size)
        np.testing.assert_allclose(again, losses, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(told, said)


def test_births_wait_for_the_layers_that_are_asked_for():
    assert schedule_of(range(30), 30) == wavefront_schedule(30)
    assert schedule_of([11], 30) == schedule_of([15], 30) == ((12, 0), (30, 1))
    assert schedule_of([0], 1) == ((1, 0), (1, 1)), "it is written when all blocks are done"
    assert schedule_of([-1], 1) == ((1, 1),), "before the first block"
    for layers in ([0, 3, 4], [2, 9, 10, 11, 12, 13, 28], [29]):
        schedule = schedule_of(layers, 30)
        assert schedule[-1] == (30, len(layers))
        for copy, layer in enumerate(layers):
            start = max((stop for stop, alive in schedule if alive <= copy), default=0)
            assert start <= layer + 1


def test_a_loss_that_is_not_finite_stops_with_its_layer(model):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e38)
    with pytest.raises(TaskVecError, match=r"after layer \d is not finite at step"):
        learned(model, [0, 1, 2, 3, 4], recipe)


def test_what_is_not_finite_or_out_of_range_is_refused_before_it_is_learned(model):
    layers, vectors, norms = [1, 3], some_vectors(2), np.ones(2, np.float32)
    bad = vectors.copy()
    bad[1, 4] = np.nan
    with pytest.raises(TaskVecError, match="to be written after layer 3 is not finite"):
        learning.score_examples(model, examples(), bad, layers, 5)
    with pytest.raises(TaskVecError, match="to be written after layer 3 is not finite"):
        learn_vector(model, examples(), examples(), right, bad, norms, layers, RECIPE)
    for norm in (0.0, np.nan):
        wrong = np.array([norm, 1.0], np.float32)
        with pytest.raises(TaskVecError, match="norm of theta after layer 1 is not above 0"):
            learn_vector(model, examples(), examples(), right, vectors, wrong, layers, RECIPE)
    answers = examples().answers.copy()
    answers[0, 0] = model.config.vocab_size
    for changed, message in (
        ({"answers": answers}, "answer's token id 131 is out of range"),
        ({"tokens": examples().tokens - 10**6}, "token id .* is out of range"),
        ({"last": examples().last + 10**6}, "last tokens run from"),
    ):
        with pytest.raises(TaskVecError, match=message):
            learning.score_examples(model, examples()._replace(**changed), vectors, layers, 5)


def test_settings_that_cannot_be_are_refused(model):
    with pytest.raises(TaskVecError, match="steps is 0; it must be at least 1"):
        learning.Recipe(steps=0)
    with pytest.raises(TaskVecError, match=r"learning_rate is -1.0; it must be above 0"):
        learning.Recipe(learning_rate=-1.0)
    with pytest.raises(TaskVecError, match="norm is nan; it must be above 0"):
        learning.Recipe(norm=float("nan"))
    for layers in ([5], [-1]):
        with pytest.raises(TaskVecError, match="allowed: 0 to 4"):
            learning.check_layers(layers, 5)
    for layers in ([], [2, 1], [1, 1]):
        with pytest.raises(TaskVecError, match="in rising order"):
            learning.check_layers(layers, 5)
    initial = some_vectors(2)
    with pytest.raises(TaskVecError, match="one vector for each layer"):
        learn_vector(model, examples(), examples(), right, initial, np.ones(3), [1, 2], RECIPE)
    with pytest.raises(TaskVecError, match="every example needs an answer"):
        examples_of.make_examples([[1]], [[]])
    with pytest.raises(TaskVecError, match="shortest query has 1; allowed: 1 to 1 positions"):
        learned(model, [1, 2], positions=(2,))
    with pytest.raises(TaskVecError, match="shortest query has 2; allowed: 1 to 2 positions"):
        inject_vectors(model, [[1, 2, 3], [4, 5]], some_vectors(2, 1, 3), np.array([0]), 2)


def test_layers_of_the_flag_are_all_best_or_numbers():
    assert learned_task_vector.parse_layers("all", 3) == [0, 1, 2]
    assert learned_task_vector.parse_layers("best", 3) is None
    assert learned_task_vector.parse_layers("2,0", 3) == [0, 2]
    for bad, why in (("x", "allowed: all, best"), ("3", "allowed: 0 to 2")):
        with pytest.raises(TaskVecError, match=why):
            learned_task_vector.parse_layers(bad, 3)


@pytest.mark.parametrize("name", ["algorithmic_next_letter", "linguistic_antonyms"])
def test_no_pair_is_in_two_of_train_dev_and_test(tokenizer, name):
    fitted = fit(TASKS[name], tokenizer)
    split = learned_task_vector.split_pairs(fitted, Settings())
    test = {prompt.query for prompt in split.test}
    assert len(split.test) == 50
    assert not set(split.train) & set(split.dev)
    assert not test & {*split.train, *split.dev}
    assert split.dealt == (name == "algorithmic_next_letter")


def test_a_control_task_asks_for_the_same_inputs_with_outputs_that_stay(tokenizer):
    fitted = fit(TASKS["linguistic_antonyms"], tokenizer)
    split = learned_task_vector.split_pairs(fitted, Settings())
    control = learned_task_vector.relabel(split, fitted, seed=0)
    dealt: dict[str, str] = {}
    for name in ("train", "dev"):
        before, after = getattr(split, name), getattr(control, name)
        assert [pair.input for pair in after] == [pair.input for pair in before]
        dealt |= {pair.input: pair.output for pair in after}
        changed = [a.output != b.output for a, b in zip(before, after, strict=True)]
        assert np.mean(changed) > 0.9
    for before, after in zip(split.test, control.test, strict=True):
        assert after.query.input == before.query.input
        assert dealt.setdefault(after.query.input, after.query.output) == after.query.output
    outputs = {pair.output for pair in fitted.pairs}
    assert set(dealt.values()) <= outputs
    assert learned_task_vector.relabel(split, fitted, seed=0) == control


def test_too_few_pairs_to_learn_from_are_refused():
    pairs = tuple(Pair(f"a{i}", f"b{i}") for i in range(9))
    fitted = FittedTask(Task("own", "x", pairs), pairs, False, 9)
    with pytest.raises(TaskVecError, match="9 pairs are too few to learn from"):
        learned_task_vector.split_pairs(fitted, Settings())


@pytest.fixture(scope="module")
def two_layers(tokenizer: Tokenizer) -> Model:
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, num_layers=2)
    return model_of(config, tokenizer)


def tiny_study(model: Model, out: Path) -> Study:
    task = TASKS["algorithmic_next_letter"]
    settings = Settings(num_prompts=4, num_demonstrations=2, num_dummy_queries=1, batch_size=4)
    journal = Journal(out)
    return Study(model, [task], [task], settings, settings, out, journal)


@pytest.mark.parametrize("positions", first_is_quick([1, 2]))
def test_a_task_is_learned_scored_and_drawn_whole(two_layers, tmp_path, positions):
    study = tiny_study(two_layers, tmp_path)
    task = study.tasks[0]
    recipe = learning.Recipe(steps=2, batch_size=4, learning_rate=0.1, check_every=1)
    found = learned_task_vector.learn_task(study, task, [0, 1], recipe, "theta", "kl", positions)
    study.journal.close()
    assert len(list((tmp_path / "arrays").glob("*.npy"))) == 1
    for name in ("extracted", "mean_theta", "learned", "control"):
        assert [score["n"] for score in found[name]] == [4, 4]
    own, other = ([s["accuracy"] for s in found[key]] for key in ("learned", "control"))
    np.testing.assert_allclose(found["selectivity"], np.subtract(own, other))
    assert (np.array(found["dev_accuracy"]) >= found["dev_accuracy_of_mean"]).all()
    assert np.array(found["train_losses"]).min() > 0  # a KL
    result: dict[str, Any] = {"tasks": {task.name: found | {"extracted_layer": 1}}, "notes": []}
    result |= {"recipe": {"num_positions": positions}, "categories": {task.name: task.category}}
    result["model"] = "random"
    words = page.section(result).words
    assert "of 1 tasks" in words[0]
    assert any("over the last 2 tokens" in word for word in words) == (positions == 2)
    both = ["learned_task_vector", "learned_task_vector_cosine"]
    assert list(page.draw_figures(result)) == both
    one = {k: v[:1] if isinstance(v, list) else v for k, v in found.items()}
    result["tasks"][task.name] = one | {"extracted_layer": 0}
    assert list(page.draw_figures(result)) == ["learned_task_vector"]


@pytest.mark.parametrize("init", first_is_quick(["zero", "random"]))
def test_vectors_that_start_elsewhere_than_theta_learn_too(two_layers, tmp_path, monkeypatch, init):
    study = tiny_study(two_layers, tmp_path)
    started: list[tuple[np.ndarray, np.ndarray]] = []

    def learn(model, train, dev, is_right, initial, norms, *rest):
        started.append((initial, norms))
        return learn_vector(model, train, dev, is_right, initial, norms, *rest)

    monkeypatch.setattr(learned_task_vector, "learn_vector", learn)
    recipe = learning.Recipe(steps=40, batch_size=4, learning_rate=0.2, check_every=40)
    found = learned_task_vector.learn_task(study, study.tasks[0], [0, 1], recipe, init, "kl")
    study.journal.close()
    (initial, norms), *_ = started
    size = np.linalg.norm(initial, axis=-1)
    np.testing.assert_allclose(size, 0 * norms if init == "zero" else norms, rtol=1e-5)
    losses = np.array(found["train_losses"])
    a_round = found["pairs"]["train"] // 4  # steps that see every pair once
    assert (losses[-a_round:].mean(axis=0) < losses[:a_round].mean(axis=0) - 0.1).all()


def test_more_positions_than_a_query_has_are_refused(two_layers, tmp_path):
    study = tiny_study(two_layers, tmp_path)
    why = r"--num_positions=5, but the query 'example:.->' has 4 tokens; allowed: 1 to 4"
    with pytest.raises(TaskVecError, match=why):
        learned_task_vector.learn_task(
            study, study.tasks[0], [0], learning.Recipe(), "theta", "label", 5
        )
    study.journal.close()
