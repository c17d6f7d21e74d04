"""A model's own tasks are what it is run on unless others are named."""

from __future__ import annotations

import json

import pytest
from absl import flags

from experiments import layer_sweep
from experiments.commands import seeds
from experiments.commands.registry import EXPERIMENTS
from experiments.commands.runner import run_alone
from experiments.run import flags as command
from experiments.run import start
from experiments.run.own_tasks import own_tasks, tokenizer_of
from experiments.run.start import ask, define_flags, fitting_tasks
from experiments.small_pythia.mixture import HELD_OUT, TRAINING_TASKS
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.registry import DEFAULT_MODEL, SMALL_MODEL
from taskvec_jax.tasks import TASKS, Pair, Task

TRAINED = [task.name for task in TRAINING_TASKS]


@pytest.fixture
def parsed(monkeypatch):
    """Parses a study's flags, without a command."""
    values = flags.FlagValues()
    for module in (
        "experiments.run.flags",
        "experiments.run.start",
        "experiments.run.results",
        "experiments.commands.seeds",
        "convert.cli",
    ):
        monkeypatch.setattr(f"{module}.FLAGS", values)
    monkeypatch.setattr(flags, "FLAGS", values)
    for kind in ("string", "enum", "bool", "integer", "float", "list"):
        define = getattr(flags, f"DEFINE_{kind}")
        monkeypatch.setattr(
            flags,
            f"DEFINE_{kind}",
            lambda *args, define=define, **how: define(*args, flag_values=values, **how),
        )
    define_flags()
    seeds.define_flag()
    return lambda *words: values(["command", *words])


def names(tasks):
    return [task.name for task in tasks]


def test_the_small_model_is_run_on_what_it_was_trained_on(parsed, tmp_path):
    parsed(f"--model={SMALL_MODEL}")
    assert names(command.tasks_from_flags()) == TRAINED
    available = names(command.available_tasks_from_flags())
    assert available[: len(TASKS)] == list(TASKS)
    assert {*TRAINED, HELD_OUT.name} <= {*available}
    asked = ask()
    assert asked.fitted is not None
    assert names(asked.fitted[0]) == TRAINED
    assert not asked.fitted[1]


def test_named_tasks_and_the_users_own_come_before_the_models(parsed, tmp_path):
    own = tmp_path / "mine.json"
    own.write_text('{"category": "own", "name": "x", "pairs": {"a": "b"}}')
    parsed(f"--model={SMALL_MODEL}", f"--task_file={own}")
    assert names(command.tasks_from_flags()) == [*TRAINED, "own_x"]
    parsed(f"--model={SMALL_MODEL}", "--tasks=bijection_held_out,linguistic_antonyms")
    assert names(command.tasks_from_flags()) == ["bijection_held_out", "linguistic_antonyms"]


def test_another_model_is_run_on_all_tasks_of_the_paper(parsed, default_model):
    parsed(f"--model={DEFAULT_MODEL}")
    assert names(command.tasks_from_flags()) == list(TASKS)
    assert own_tasks(DEFAULT_MODEL, None) == ([], [])


def test_tasks_that_a_tokenizer_cannot_pose_are_left_out_and_named_ones_refused():
    tokenizer = tokenizer_of(SMALL_MODEL, None)
    assert tokenizer is not None
    words = Task("own", "words", (Pair("house", "maison"), Pair("cat", "chat")))
    tasks, settings = [words, TASKS["algorithmic_to_upper"]], Settings(num_prompts=1)
    fitting, left_out = fitting_tasks(tokenizer, tasks, settings, must_fit=False)
    assert names(fitting) == ["algorithmic_to_upper"]
    assert "own_words: this tokenizer leaves none" in left_out["own_words"]
    with pytest.raises(TaskVecError, match="own_words: this tokenizer leaves none"):
        fitting_tasks(tokenizer, tasks, settings, must_fit=True)


def test_a_call_is_of_no_more_prompts_than_there_are(parsed):
    """The rest of it would be filled up with repetitions."""
    for words, rows in (((), 50), (("--num_prompts=10",), 10), (("--num_prompts=500",), 50)):
        parsed(f"--model={SMALL_MODEL}", *words)
        assert command.settings_from_flags().batch_size == rows
    parsed(f"--model={SMALL_MODEL}", "--num_prompts=9", "--batch_size=4")
    assert command.settings_from_flags().batch_size == 4


def test_prompts_beyond_the_context_are_found_before_a_model_is_loaded(parsed):
    parsed(f"--model={SMALL_MODEL}", "--num_demonstrations=24", "--tasks=bijection_1,to_upper")
    with pytest.raises(TaskVecError, match=r"bijection_1: .* different pairs"):
        ask()
    parsed(f"--model={SMALL_MODEL}", "--num_demonstrations=100", "--tasks=list_first")
    with pytest.raises(TaskVecError, match=r"list_first: \d+ tokens in a text; .* at most 256"):
        ask()
    parsed(f"--model={SMALL_MODEL}", "--num_demonstrations=100")
    with pytest.raises(TaskVecError):
        ask()


def test_the_layer_sweep_says_what_it_leaves_out_before_its_first_row(
    parsed, tmp_path, monkeypatch, capsys
):
    class ReachedError(Exception):
        pass

    def run_tasks(study):
        assert "own_words" not in names(study.tasks)
        assert "own_words" in study.record["left_out"]
        raise ReachedError

    monkeypatch.setattr(layer_sweep, "run_tasks", run_tasks)
    monkeypatch.setattr(start.preemption, "listen", lambda: None)  # SIGTERM stays as it is
    monkeypatch.setattr(start, "check_injection", lambda model, batch_size: 0.0)
    (tmp_path / "data" / "own").mkdir(parents=True)
    (tmp_path / "data" / "own" / "words.json").write_text(json.dumps({"house": "maison"}))
    out = tmp_path / "out"
    parsed(f"--model={SMALL_MODEL}", f"--task_data={tmp_path / 'data'}", f"--out={out}")
    with pytest.raises(ReachedError):
        run_alone(EXPERIMENTS["layer_sweep"])
    assert "left out: own_words: this tokenizer leaves none" in capsys.readouterr().out
