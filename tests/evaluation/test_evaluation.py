"""What counts as correct, intervals by hand, and the protocol on the real model."""

from __future__ import annotations

import numpy as np
import pytest
from slow import SLOW, slow

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation import injection_check
from taskvec_jax.evaluation import random_vectors as evaluation
from taskvec_jax.evaluation.injection_check import _logits_after, check_injection
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import accuracy
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.prompting.templates import PAPER
from taskvec_jax.tasks import TASKS
from taskvec_jax.vectors.sweep import read_texts, sweep_layers


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Worked by hand from Wilson's formula with z = 1.96.
        (8, 10, 0.4902, 0.9433),
        (0, 50, 0.0, 0.0713),
        (50, 50, 0.9287, 1.0),
        (38, 50, 0.6259, 0.8570),
    ],
)
def test_wilson_intervals_equal_hand_computed_ones(correct, n, low, high):
    got = accuracy([True] * correct + [False] * (n - correct))
    assert got.n == n
    assert got.accuracy == correct / n
    assert got.low == pytest.approx(low, abs=1e-4)
    assert got.high == pytest.approx(high, abs=1e-4)


def test_nothing_to_score_is_refused():
    with pytest.raises(TaskVecError, match="0 right answers of 0"):
        accuracy([])


def test_the_best_layer_is_the_lowest_of_the_best():
    assert best_layer([0.1, 0.7, 0.3, 0.7]) == 1
    assert best_layer([0.0, 0.0]) == 0


def test_random_vectors_have_the_norm_of_theta_and_repeat_from_their_seed():
    theta = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    random = evaluation.random_like(theta, 0, "task")
    np.testing.assert_allclose(
        np.linalg.norm(random, axis=-1), np.linalg.norm(theta, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(random, evaluation.random_like(theta, 0, "task"))
    assert not np.allclose(random, evaluation.random_like(theta, 1, "task"))


def test_settings_below_one_are_refused():
    with pytest.raises(TaskVecError, match="num_prompts is 0; it must be at least 1"):
        Settings(num_prompts=0)


def test_the_task_sits_in_one_vector_of_the_real_model(default_model):
    settings = Settings(num_prompts=12, batch_size=12)
    result = evaluate_task(default_model, TASKS["algorithmic_to_upper"], settings)
    curve = result.dev_accuracy_by_layer
    assert len(curve) == 30
    assert result.baseline.accuracy <= 0.1
    assert result.icl.accuracy >= 0.8
    assert result.task_vector.accuracy >= 0.6
    assert result.random.accuracy <= 0.15
    # The curve rises from near the baseline, peaks inside, and falls at the end.
    assert max(curve[:8]) <= 0.2
    assert 10 <= result.best_layer <= 26
    assert curve[-1] <= 0.2
    assert result.icl_able
    # 26 letters are too few to keep the queries of dev and test apart, and that is said.
    assert result.shared_queries
    assert any("too few to keep dev and test queries apart" in w for w in result.warnings)
    outcomes = result.outcomes
    assert outcomes["answers"][0] == [outcomes["queries"][0].upper()]
    assert outcomes["prompts"][0].endswith(f"example:{outcomes['queries'][0]}->")
    for name in ("baseline", "icl", "task_vector", "random"):
        column = outcomes[name]
        assert len(column["correct"]) == len(column["logprob"]) == len(column["rank"]) == 12
        assert sum(column["correct"]) / 12 == getattr(result, name).accuracy
        assert column["correct"] == column["correct_full"]
        # The first token of a right answer of one letter is that letter.
        assert all(a <= b for a, b in zip(column["correct"], column["correct_paper"], strict=True))
        assert all(
            rank == 0 for rank, r in zip(column["rank"], column["correct"], strict=True) if r
        )
    assert outcomes["task_vector"]["layer"] == result.best_layer
    assert outcomes["icl"]["layer"] is None


@slow  # compiles for two batch sizes; test_sweep.py holds the same of the sweep
def test_the_order_of_tasks_and_the_batch_size_change_no_answer():
    model, task = load_model(SMALL_MODEL), TASKS["algorithmic_list_first"]
    alone = evaluate_task(model, task, Settings(num_prompts=6, batch_size=20))
    evaluate_task(model, TASKS["algorithmic_to_upper"], Settings(num_prompts=6, batch_size=20))
    again = evaluate_task(model, task, Settings(num_prompts=6, batch_size=5))
    for name, column in alone.outcomes.items():
        if isinstance(column, dict):  # graded scores follow the order of sums
            for key, near in (("logprob", 1e-3), ("logit_difference", 1e-3), ("rank", 1)):
                first, second = column.pop(key), again.outcomes[name].pop(key)
                assert first == pytest.approx(second, abs=near)
    for key, values in alone.dev_graded_by_layer.items():
        assert again.dev_graded_by_layer[key] == pytest.approx(values, abs=1e-3)
    alone.dev_graded_by_layer.update(again.dev_graded_by_layer)
    assert again.to_dict() == alone.to_dict()


@slow  # every run of the default model does it
def test_own_residual_check_passes_on_the_real_model(default_model):
    assert check_injection(default_model, 20) < 1e-3


def test_a_run_stops_when_extraction_and_injection_disagree(default_model, monkeypatch):
    def stale(model, rows, batch_size):
        residuals, answers = read_texts(model, rows, batch_size)
        residuals[:, :, 17] *= 1.5  # what an unfinished copy would look like
        return residuals, answers

    monkeypatch.setattr(injection_check, "read_texts", stale)
    with pytest.raises(TaskVecError, match="own residual stream after layer 17 moves"):
        check_injection(default_model, 20)


@pytest.fixture
def changed_prediction(monkeypatch):
    """Lets the sweep say another token after layer 2; the logits it gives stay as they were."""

    def change(token: int) -> None:
        def other_token(*arguments):
            answers = sweep_layers(*arguments)
            answers.tokens[0, 1 + 2] = token
            return answers

        monkeypatch.setattr(injection_check, "sweep_layers", other_token)

    return change


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"] if SLOW else ["float32"])
def test_a_run_stops_when_only_the_prediction_changes(changed_prediction, dtype):
    model = load_model(SMALL_MODEL, dtype)
    assert check_injection(model, 1) < 0.1
    logits = _logits_after(model, model.tokenizer.encode(PAPER.zero_shot("own residual")))
    unlikely = int(np.argmin(logits))
    changed_prediction(unlikely)
    with pytest.raises(TaskVecError, match=f"layer 2 changes its prediction to token {unlikely}"):
        check_injection(model, 1)


def test_a_prediction_may_change_to_one_that_was_as_likely(changed_prediction, monkeypatch):
    model = load_model(SMALL_MODEL)
    query = model.tokenizer.encode(PAPER.zero_shot("own residual"))
    logits = _logits_after(model, query)
    monkeypatch.setattr(
        injection_check, "_logits_after", lambda *_: np.full_like(logits, logits.max())
    )
    changed_prediction(int(np.argmin(logits)))
    assert check_injection(model, 1) < 0.1
