"""The vectors of a run are files with names, and say where they come from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from conftest import LLAMA

from experiments.run.journal import Journal
from experiments.run.study import Study
from experiments.small_pythia.mixture import build_tokenizer
from taskvec_jax import Settings, TaskVector
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.transformer.decoder import Decoder

L, D, N = LLAMA.num_layers, LLAMA.width, 3
TASKS = [Task("own", name, (Pair("a", "b"),)) for name in ("x", "y")]
USUAL = Settings(num_prompts=N)
FEWER = dataclasses.replace(USUAL, num_demonstrations=4)


@pytest.fixture
def study(tmp_path):
    model = Model("m", Decoder(LLAMA), {}, build_tokenizer(), LLAMA, "a" * 64)
    made = Study(model, TASKS, TASKS, USUAL, FEWER, tmp_path, Journal(tmp_path))
    yield made
    made.journal.close()


def keep(study: Study, task: Task, settings: Settings, seed: int) -> np.ndarray:
    theta = np.random.RandomState(seed).standard_normal((N, L, D)).astype(np.float32)
    study.journal.keep_array(study._theta_unit(task, settings), theta)
    return theta


def test_a_result_lists_the_vectors_that_the_run_has(study, tmp_path):
    theta = keep(study, TASKS[0], USUAL, 0)
    index = study.result("e", USUAL, {})["vectors"]
    assert set(index) == {"own_x"}  # the other task's was not read
    vector = TaskVector.load(tmp_path / index["own_x"]["theta"], study.model)
    assert index["own_x"]["theta"] == "vectors/own_x/theta.safetensors"
    np.testing.assert_allclose(vector.array, theta.mean(axis=0), rtol=1e-6, atol=1e-6)
    assert vector.layers == tuple(range(L))
    assert (vector.origin.task, vector.origin.settings["num_prompts"]) == ("own_x", N)
    every = np.load(tmp_path / index["own_x"]["theta_of_each_prompt"])
    np.testing.assert_array_equal(every, theta)


def test_vectors_of_other_settings_have_other_names(study):
    first, second = (keep(study, TASKS[1], s, i) for i, s in enumerate((USUAL, FEWER)))
    study.result("e", USUAL, {})
    files = study.result("f", FEWER, {})["vectors"]["own_y"]
    assert files["theta_num_demonstrations4"].endswith("/theta_num_demonstrations4.safetensors")
    for name, theta in (("theta", first), ("theta_num_demonstrations4", second)):
        vector = TaskVector.load(study.out / files[name])
        np.testing.assert_allclose(vector.array, theta.mean(axis=0), rtol=1e-6, atol=1e-6)


def test_learned_vectors_have_a_name_and_those_of_several_positions_have_none(study):
    def files_of(array: np.ndarray, layers: list[int]) -> Any:
        what = {"unit": str(array.shape)}
        study.journal.keep_array(what, array)
        study.vectors.keep(TASKS[0], "learned", what, layers, made="learned", settings={})
        return study.vectors.index["own_x"]

    for positions in (2, 3):  # of two layers each
        several = np.ones((2, positions, D), np.float32)
        assert "learned" not in files_of(several, [1, 4])
    learned = np.arange(2 * D, dtype=np.float32).reshape(2, D)
    vector = TaskVector.load(study.out / files_of(learned, [1, 4])["learned"])
    np.testing.assert_array_equal(vector.at(4).array, learned[1])


def test_a_damaged_array_is_not_taken_for_a_vector(study):
    keep(study, TASKS[0], USUAL, 0)
    (file,) = (study.out / "arrays").iterdir()
    file.write_bytes(file.read_bytes()[:-9] + b"x" * 9)
    assert study.result("e", USUAL, {})["vectors"] == {}
