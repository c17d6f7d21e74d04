"""pythia-icl-small: trained Pythia-architecture weights that are there without any network."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import transformers
from hf import assert_same, run_hf, run_ours
from slow import slow
from tiny_checkpoint import ROOT

from convert.export import export
from experiments.small_pythia.mixture import HELD_OUT, TRAINING_TASKS, build_tokenizer
from experiments.small_pythia.train import icl_accuracy
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import checkpoint_path
from taskvec_jax.models.registry import NAMED_MODELS, SMALL_MODEL

SHIPPED = ROOT / "checkpoints" / SMALL_MODEL


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    with pytest.MonkeyPatch.context() as patch:  # wherever other models are kept
        patch.setenv("TASKVEC_CHECKPOINTS", str(tmp_path_factory.mktemp("elsewhere")))
        return load_model(SMALL_MODEL)


def test_it_is_small_and_kept_by_git():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    kept = subprocess.run(
        ["git", "check-ignore", *map(str, files)], cwd=ROOT, capture_output=True, text=True
    )
    assert kept.stdout == ""


def test_its_log_and_its_making_lie_beside_it(small):
    result = json.loads((SHIPPED / "train_small.json").read_text())
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    assert result["provenance"]["weights_sha256"] == small.weights_sha256
    assert result["made_with"] == manifest["made_with"]
    assert result["log"][-1]["step"] == manifest["step"] == result["made_with"]["training"]["steps"]
    assert result["seconds"] < 20 * 60
    assert small.tokenizer.sha256 == build_tokenizer().sha256


def test_transformers_computes_the_same_from_its_export(small, tmp_path):
    export(small.config, small.params, small.tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    assert type(theirs).__name__ == "GPTNeoXForCausalLM"
    for text in ("example:07->21\nexample:11->", "example:a,b,c->c\nexample:q,d->"):
        tokens = np.array(small.tokenizer.encode(text), np.int32)
        assert_same(run_ours(small, tokens), run_hf(theirs, tokens))


@slow  # the curve of its vector below needs its tasks too
def test_it_knows_its_tasks_and_not_the_one_held_out(small):
    settings = Settings(num_prompts=20, rule="paper")
    scores = icl_accuracy(small, [*TRAINING_TASKS, HELD_OUT], settings)
    assert scores.pop(HELD_OUT.name) <= 0.3
    assert np.mean(list(scores.values())) >= 0.95


def test_its_task_vector_rises_and_falls_over_the_layers(small):
    names = ("bijection_1", "bijection_3", "successor_next", "algorithmic_to_upper")
    tasks = [task for task in TRAINING_TASKS if task.name in names]
    rule = Settings(num_prompts=25, rule="paper")  # it was not taught to stop after an answer
    results = [evaluate_task(small, task, rule) for task in tasks]
    curve = np.mean([result.dev_accuracy_by_layer for result in results], axis=0)
    peak = int(curve.argmax())
    assert 0 < peak < len(curve) - 1
    assert curve[peak] >= 0.6
    assert curve[0] < curve[peak] - 0.2
    assert curve[-1] < curve[peak] - 0.2
    assert np.mean([result.icl.accuracy for result in results]) >= 0.95
    assert np.mean([result.baseline.accuracy for result in results]) <= 0.5


def test_it_is_not_fetched_from_anywhere(tmp_path: Path):
    assert checkpoint_path(SMALL_MODEL) == SHIPPED
    with pytest.raises(TaskVecError, match=r"comes converted.*small_pythia"):
        convert_model(SMALL_MODEL, tmp_path / "out")
    with pytest.raises(TaskVecError, match="allowed are a branch"):
        load_model(SMALL_MODEL, revision="step32")
    assert not isinstance(NAMED_MODELS[SMALL_MODEL].source, str)
