"""Training repeats from its seed, goes on after a kill, and stops at what is not finite."""

# Long because: training, its files and emergence share one tiny run.

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest
from slow import QUICK, slow
from zygote import ROOT, Child, Zygote

from convert.export import export
from experiments import emergence
from experiments.small_pythia import training
from experiments.small_pythia.mixture import TRAINING_TASKS, Mixture, build_tokenizer
from experiments.small_pythia.train import Log, go_on_from, kept_steps, small_pythia
from experiments.small_pythia.training import Batch, State, Training
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.prompting.prompts import fit
from taskvec_jax.prompting.templates import PAPER
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.decoder import flatten, unflatten

TOKENIZER = build_tokenizer()
CONFIG = small_pythia(TOKENIZER.vocab_size, 2, 16, 2)
SETTINGS = Training(steps=5, warmup=2, vector_loss=0.5, vector_layer=0)
MIXTURE = Mixture(TOKENIZER, 0, 4)


def losses_from(state: State, settings: Training = SETTINGS) -> tuple[State, list[float]]:
    """Trains to the end: the last state, and the loss of every step."""
    losses: list[float] = []
    state = training.run(
        CONFIG, settings, state, MIXTURE.batch, lambda _, m: losses.append(float(m.loss))
    )
    return state, losses


@pytest.fixture(scope="module")
def whole() -> tuple[State, list[float]]:
    return losses_from(training.initial_state(CONFIG, SETTINGS))


@slow
def test_the_same_seed_gives_the_same_curve_and_weights(whole):
    again = losses_from(training.initial_state(CONFIG, SETTINGS))
    assert again[1] == whole[1]
    chex.assert_trees_all_equal(again[0], whole[0])


def test_a_run_that_goes_on_from_a_saved_state_ends_the_same(whole, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(state: State, _: Any) -> None:
        if state.step == 3:
            training.save_state(tmp_path / "state", state)
            raise StoppedError

    fresh = training.initial_state(CONFIG, SETTINGS)
    with pytest.raises(StoppedError):
        training.run(CONFIG, SETTINGS, fresh, MIXTURE.batch, stop)
    like = training.initial_state(CONFIG, SETTINGS)
    restored = training.restore_state(tmp_path / "state", like)
    assert restored.step == 3
    state, losses = losses_from(restored)
    assert losses == whole[1][3:]
    chex.assert_trees_all_equal(state, whole[0])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state():
    def batches(step: int) -> Batch:
        batch = MIXTURE.batch(step)
        return batch._replace(weights=batch.weights * np.float32(np.nan if step == 2 else 1))

    seen: list[int] = []
    fresh = training.initial_state(CONFIG, SETTINGS)
    with pytest.raises(TaskVecError, match=r"loss of step 2 is nan .* lower learning rate"):
        training.run(CONFIG, SETTINGS, fresh, batches, lambda state, _: seen.append(state.step))
    assert seen == [1, 2]


def test_a_run_that_overflows_names_the_first_layer():
    def batches(step: int) -> Batch:
        return MIXTURE.batch(step)

    state = training.initial_state(CONFIG, SETTINGS)
    leaves = flatten(state.params)
    kernel = leaves["layers/mlp/down/kernel"]
    leaves["layers/mlp/down/kernel"] = kernel.at[1].set(np.finfo(np.float32).max)
    state = state._replace(params=unflatten(leaves))
    with pytest.raises(TaskVecError, match=r"loss of step 0 is nan .*, beginning after layer 1; "):
        training.run(CONFIG, SETTINGS, state, batches, lambda *_: None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", -1, "token id -1 is out of range"),
        ("query", 10**6, "token id 1000000 is out of range"),
        ("answers", -1, "answer's token id -1"),
        ("query_answer", 10**6, "answer's token id 1000000"),
        ("last", 10**6, "last arrows run from"),
        ("query_last", -1, "last query tokens run from -1"),
    ],
)
def test_rows_that_jax_would_read_otherwise_than_they_say_are_refused(field, value, message):
    def batches(step: int) -> Batch:
        batch = MIXTURE.batch(step)
        changed = getattr(batch, field).copy()
        changed[0] = value
        return batch._replace(**{field: changed})

    fresh = training.initial_state(CONFIG, SETTINGS)
    with pytest.raises(TaskVecError, match=message):
        training.run(CONFIG, SETTINGS, fresh, batches, lambda *_: None)


def test_a_state_of_another_shape_is_refused(tmp_path):
    training.save_state(tmp_path / "state", training.initial_state(CONFIG, SETTINGS))
    wider = small_pythia(TOKENIZER.vocab_size, 2, 32, 2)
    with pytest.raises(TaskVecError, match="a checkpoint of another shape"):
        training.restore_state(tmp_path / "state", training.initial_state(wider, SETTINGS))
    with pytest.raises(TaskVecError, match="not a complete"):
        training.restore_state(tmp_path / "none", training.initial_state(CONFIG, SETTINGS))


@pytest.mark.parametrize(("width", "heads"), [(128, 3), (128, 0), (44, 4), (36, 2)])
def test_heads_that_cannot_be_are_refused(width, heads):
    with pytest.raises(TaskVecError, match="each head must be a multiple of 8"):
        small_pythia(157, 2, width, heads)


def test_a_directory_with_a_run_of_other_settings_is_refused(tmp_path):
    assert go_on_from(tmp_path, CONFIG, SETTINGS, {"training": 1, "batch_size": 4}).step == 0
    with pytest.raises(TaskVecError, match=r"a run of other settings \(training differ\)"):
        go_on_from(tmp_path, CONFIG, SETTINGS, {"training": 2, "batch_size": 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"vector_loss": -1.0}, "vector_loss is -1.0; it must be 0 or more"),
        ({"warmup": 5}, "warmup is 5; it must be below the 5 steps"),
        ({"vector_layer": 2}, "vector_layer is 2; allowed: 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(TaskVecError, match=message):
        training.initial_state(CONFIG, dataclasses.replace(SETTINGS, **changes))


def test_the_learning_rate_rises_and_falls_to_a_tenth():
    rates = [training.learning_rate(SETTINGS, step) for step in range(SETTINGS.steps + 1)]
    assert rates[0] == 0
    assert rates[SETTINGS.warmup] == max(rates) == pytest.approx(SETTINGS.learning_rate)
    assert rates[-1] == pytest.approx(SETTINGS.learning_rate / 10)


def test_rows_depend_on_the_seed_and_the_step_alone():
    chex.assert_trees_all_equal(Mixture(TOKENIZER, 0, 4).batch(7), MIXTURE.batch(7))
    assert (Mixture(TOKENIZER, 1, 4).batch(7).tokens != MIXTURE.batch(7).tokens).any()
    assert (MIXTURE.batch(6).tokens != MIXTURE.batch(7).tokens).any()


def test_answers_stand_at_arrows_and_are_what_the_row_shows_next():
    arrow = TOKENIZER.encode("->")[0]
    for step in range(6):  # the last is of lists
        batch = MIXTURE.batch(step)
        assert batch.tokens.size == MIXTURE.tokens_of(step)
        rows = np.arange(len(batch.tokens))
        assert (batch.tokens[batch.weights > 0] == arrow).all()
        assert (batch.tokens[rows, batch.last] == arrow).all()
        assert (batch.query[rows, batch.query_last] == arrow).all()
        for row, column in np.argwhere(batch.weights > 0):
            if column != batch.last[row]:
                assert batch.answers[row, column] == batch.tokens[row, column + 1]


def test_no_two_tasks_of_the_mixture_share_both_kinds():
    """Telling those apart takes the pair, and far more training than there is."""

    def kind(text: str) -> object:
        number = f"numbers {int(text) // 20}" if text.isdigit() else ""
        return number or ("," in text, text.isupper())

    kinds = [(kind(t.pairs[0].input), kind(t.pairs[0].output)) for t in TRAINING_TASKS]
    assert len(set(kinds)) == len(kinds) == 12
    assert all(
        {kind(p.output) for p in t.pairs} == {kind(t.pairs[0].output)} for t in TRAINING_TASKS
    )


def test_every_task_of_the_mixture_can_be_posed_and_no_word_can(tmp_path):
    TOKENIZER.save(tmp_path)
    read = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert read.sha256 == TOKENIZER.sha256
    for task in TRAINING_TASKS:
        fitted = fit(task, read)
        assert fitted.pairs == task.pairs
    assert len(read.continuation(PAPER.zero_shot("sun"), "sol")) == 3
    text = "example:07->21\nexample:a,b->"
    assert read.decode(read.encode(text)) == text


def test_kept_steps_are_dense_at_the_beginning():
    assert kept_steps(2000) == [0, 32, 64, 128, *range(200, 2001, 200)]
    assert kept_steps(3) == [0, 1, 2, 3]


def test_a_torn_line_of_the_log_is_cut_and_later_ones_taken_back(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [line["step"] for line in Log(path, 2).read()] == [1, 2]


def test_a_state_whose_writer_was_killed_between_two_renames_is_put_back(tmp_path):
    """A state is replaced by moving the old one aside and the new one into its place."""
    about = {"training": 1}
    go_on_from(tmp_path, CONFIG, SETTINGS, about)
    state = training.initial_state(CONFIG, SETTINGS)
    training.save_state(tmp_path / "state", state._replace(step=4))
    (tmp_path / "state").rename(tmp_path / ".state.partial.x.old")
    (tmp_path / ".state.partial.x").mkdir()
    assert go_on_from(tmp_path, CONFIG, SETTINGS, about).step == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "state"]


SAVE_EVERY = 2
TRAIN = (  # few enough steps to meet no batch of lists, which would be compiled too
    "--steps=5",
    "--warmup=2",
    "--width=16",
    "--num_heads=2",
    "--num_layers=2",
    "--vector_layer=0",
    "--batch_size=4",
    "--log_every=1",
    f"--save_every={SAVE_EVERY}",
)
KILLS = 7


def curve(out: Path) -> list[Any]:
    if not (out / "log.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def last_step(out: Path) -> int:
    return max((line["step"] for line in curve(out)), default=0)


def saved_step(out: Path) -> int:
    """The step a run would go on from: of the state, or of one that was just moved aside."""
    for place in (out / "state", *out.glob(".state.partial.*.old")):
        if (place / "about.json").exists():
            return json.loads((place / "about.json").read_text())["step"]
    return 0


def in_hub_cache(run: Path, cache: Path, revisions: dict[str, str]) -> None:
    """Kept models of a run as revisions of SomeOrg/grown, as the hub's own cache holds them."""
    repository = cache / "models--SomeOrg--grown"
    (repository / "refs").mkdir(parents=True)
    for i, (revision, step) in enumerate(revisions.items()):
        commit = f"{i:040x}"
        (repository / "refs" / revision).write_text(commit)
        kept = checkpoint.restore(run / step)
        export(kept.config, kept.params, kept.tokenizer, repository / "snapshots" / commit)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote("small_pythia.train", "emergence") as made:
        yield made


@slow  # some ten training runs, killed
def test_killed_at_random_points_a_run_loses_one_interval_at_most_and_ends_the_same(
    zygote, tmp_path
):
    """Points are where a run touches its directory, or a few milliseconds later, because that is
    where something could be lost."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    deeds, env = tmp_path / "deeds", {"TASKVEC_CACHE": str(tmp_path / "cache")}
    env["XLA_FLAGS"] = QUICK
    rng = random.Random(20261125)

    def start(directory: Path, **doom: Any) -> Child:
        return zygote.start(
            "small_pythia.train",
            *TRAIN,
            f"--out={directory}",
            printed=tmp_path / "printed",
            env=env,
            doom={"under": str(directory), "record": str(deeds), **doom},
        )

    child = start(whole)
    assert child.wait() == 0, child.printed
    third = int(deeds.read_text()) // 3
    # The first is where a state has been moved away and the next is not in its place yet.
    dooms: list[dict[str, Any]] = [{"deed": rf"^os.rename \S+ {out}/state$", "nth": 1}]
    for _ in range(KILLS):
        delay = rng.choice([0.0, 0.02 * rng.random()])
        dooms.append({"nth": rng.randrange(third), "delay": delay})
    saved = killed = 0
    for doom in dooms:
        before = saved
        child = start(out, **doom)
        assert child.wait() in (-signal.SIGKILL, -signal.SIGALRM, 0), (doom, child.printed)
        killed += child.returncode != 0  # or there was less left to do than that
        last, saved = last_step(out), saved_step(out)
        print(f"{doom}: killed after step {last}, state of step {saved}")
        assert before <= saved <= last <= saved + SAVE_EVERY
    assert killed >= KILLS
    child = start(out)
    assert child.wait() == 0, child.printed
    assert f"going on from step {saved}" in child.printed
    assert curve(out) == curve(whole)
    hashes = [
        json.loads((d / "model" / "manifest.json").read_text())["weights_sha256"]
        for d in (out, whole)
    ]
    assert hashes[0] == hashes[1]

    some, hub = tmp_path / "some", tmp_path / "hub"
    for step in ("step0", "step5"):
        shutil.copytree(out / step, some / step)
    in_hub_cache(out, hub, {"step1000": "step5", "step0": "step0"})
    env |= {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    env |= {"TASKVEC_CHECKPOINTS": str(tmp_path / "checkpoints")}
    swept = []
    for place in ((f"--run={some}",), ("--model=SomeOrg/grown", "--revision=step1000,step0")):
        found = tmp_path / f"swept{len(swept)}"
        flags = ("--tasks=algorithmic_to_upper", "--num_prompts=2", "--batch_size=4")
        flags += (f"--out={found}",)
        child = zygote.start("emergence", *place, *flags, printed=tmp_path / "printed", env=env)
        assert child.wait() == 0, child.printed
        assert (found / "emergence.png").exists()
        swept.append(json.loads((found / "emergence.json").read_text()))
    flags = (f"--run={some}", "--memory_gb=0.1", f"--out={tmp_path / 'tight'}")
    child = zygote.start("emergence", *flags, printed=tmp_path / "printed", env=env)
    assert child.wait() == 2
    assert "error: memory of 0.10 GB is too little" in child.printed
    assert [step.pop("step") for step in swept[0]["steps"]] == [0, 5]
    assert [step.pop("step") for step in swept[1]["steps"]] == [0, 1000]
    assert {len(step["dev_accuracy_by_layer"]) for step in swept[0]["steps"]} == {2}
    assert swept[1]["model"] == "SomeOrg/grown"
    assert swept[1]["steps"] == swept[0]["steps"]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["SomeOrg--grown@step0", "SomeOrg--grown@step1000"]


@slow  # three runs on simulated devices
def test_emergence_on_a_mesh_gives_one_devices_result(zygote, tmp_path):
    """Of a model that knows its tasks: there is something to get wrong."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "step1200").symlink_to(ROOT / "checkpoints" / SMALL_MODEL)
    flags = (
        f"--run={run}",
        "--task_file=experiments/small_pythia/mixture.py",
        "--tasks=bijection_1",
    )
    flags += ("--num_prompts=12", "--batch_size=12", "--rule=paper")
    found = []
    for devices, mesh in ((1, ()), (4, ("--mesh=data:2,model:2",))):
        out = tmp_path / str(devices)
        env = {"TASKVEC_CACHE": str(tmp_path / "cache")}
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {QUICK}"
        child = zygote.start(
            "emergence", *flags, *mesh, f"--out={out}", printed=tmp_path / "printed", env=env
        )
        assert child.wait() == 0, child.printed
        found.append(json.loads((out / "emergence.json").read_text()))
    assert found[1]["provenance"]["device"]["mesh"] == "data:2,model:2"
    assert found[0]["steps"] == found[1]["steps"]
    (step,) = found[0]["steps"]
    curve = step["dev_accuracy_by_layer"]
    assert min(curve) < 0.1
    assert max(curve) > 0.9


def test_steps_are_swept_in_their_order_and_others_refused(tmp_path):
    found = emergence.moments_of_hub("pythia-14m", "step1000,step64,step8000")
    assert [moment.step for moment in found] == [64, 1000, 8000]
    with pytest.raises(TaskVecError, match="'main' is no step of a training"):
        emergence.moments_of_hub("pythia-14m", "main")
    with pytest.raises(TaskVecError, match="names a step twice"):
        emergence.moments_of_hub("pythia-14m", "step1,step1")
    with pytest.raises(TaskVecError, match="holds no step<N>/"):
        emergence.moments_of_run(tmp_path)


def test_a_score_has_appeared_when_it_stays_above_half_of_its_highest():
    steps = [{"step": s, "icl": v} for s, v in ((0, 0.0), (1, 0.6), (2, 0.4), (4, 0.7), (8, 1.0))]
    assert emergence.appearance(steps, "icl") == 4
    assert emergence.appearance([{"step": 0, "icl": 0.1}, {"step": 1, "icl": 0.1}], "icl") is None
