"""A unit's name covers everything that decides its value, and nothing that does not."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import pytest
import tokenizers
from conftest import LLAMA

from experiments.dose import score_writes
from experiments.run import study as studies
from experiments.run.journal import Journal, unit_name
from experiments.run.study import Study
from experiments.small_pythia.mixture import build_tokenizer
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.results import Settings, TaskResult
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.templates import Template
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.transformer.config import RopeScaling
from taskvec_jax.transformer.decoder import Decoder

TASK = Task("own", "x", (Pair("a", "b"), Pair("c", "d")))


def model(config=LLAMA, weights="a" * 64, tokenizer: Tokenizer | None = None, name="m") -> Model:
    return Model(name, Decoder(config), {}, tokenizer or build_tokenizer(), config, weights)


def name_of(
    model: Model = model(),  # noqa: B008 (a value)
    task: Task | None = TASK,
    settings: Settings = Settings(),  # noqa: B008 (a value)
    experiment: str = "e",
    compute: Any = evaluate_task,
    **more: Any,
) -> str:
    study: Any = Study(model, [], [], settings, settings, None, None)  # type: ignore[arg-type]
    return unit_name(study.what(experiment, task, settings, compute, **more))


def other_tokenizer() -> Tokenizer:
    backend = build_tokenizer()._backend
    assert isinstance(backend, tokenizers.Tokenizer)
    backend.add_tokens(["one more"])
    return Tokenizer(backend)


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": model(weights="b" * 64)},  # a revision is other weights
    "dtype": {"model": model(dataclasses.replace(LLAMA, dtype="bfloat16"))},
    "quantization": {"model": model(dataclasses.replace(LLAMA, quantization="int8"))},
    "rope": {"model": model(dataclasses.replace(LLAMA, rope_scaling=RopeScaling("linear", 2.0)))},
    "tokenizer": {"model": model(tokenizer=other_tokenizer())},
    "experiment": {"experiment": "f"},
    "no task": {"task": None},
    "category": {"task": Task("knowledge", "x", TASK.pairs)},
    "name cut elsewhere": {"task": Task("own_x", "", TASK.pairs)},
    "pairs": {"task": Task("own", "x", TASK.pairs[:1])},
    "order of pairs": {"task": Task("own", "x", TASK.pairs[::-1])},
    "related": {"task": Task("own", "x", TASK.pairs, related=("own_y",))},
    "accepted answers": {"task": Task("own", "x", (Pair("a", "b", ("B",)), Pair("c", "d")))},
    "code": {"compute": score_writes},
    "more": {"layer": 3},
    "more, another value": {"layer": 4},
    **{
        name: {"settings": dataclasses.replace(Settings(), **{name: value})}
        for name, value in {
            **{
                f.name: 7
                for f in dataclasses.fields(Settings)
                if f.name not in ("batch_size", "template")
            },
            "rule": "paper",
            "filter": "none",
        }.items()
    },
    "template": {"settings": Settings(template=Template("{x} = {y}"))},
    "separator": {"settings": Settings(template=Template(separator=";"))},
    "header": {"settings": Settings(template=Template(header="Do."))},
}


def test_whatever_decides_a_value_gives_its_unit_another_name():
    found = {what: name_of(**change) for what, change in CHANGES.items()}
    assert len({name_of(), *found.values()}) == 1 + len(found)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": Settings(batch_size=7)},
        {"model": model(name="the same under another name")},
        {"compute": functools.partial(evaluate_task, settings=Settings())},
        {"task": Task("own", "x", [*TASK.pairs])},  # type: ignore[arg-type]
    ],
    ids=["batch", "name of the model", "arguments", "a list"],
)
def test_what_decides_nothing_is_not_in_a_units_name(change):
    assert name_of(**change) == name_of()


def test_other_libraries_another_machine_and_another_precision_give_other_names(monkeypatch):
    plain = name_of()
    with monkeypatch.context() as patched:
        patched.setattr(studies, "numeric_versions", lambda: {"jax": "0.0.1"})
        assert name_of() != plain
    other = dataclasses.replace(LLAMA, matmul_precision="high")
    assert name_of(model=model(config=other)) != plain
    with monkeypatch.context() as patched:
        other = type("Device", (), {"platform": "tpu", "device_kind": "TPU v4"})
        patched.setattr(jax, "devices", lambda: [other()])
        assert name_of() != plain
    assert name_of() == plain


def test_a_sweep_takes_what_the_main_table_has_found_and_runs_no_model(tmp_path):
    score = {"accuracy": 0.5}
    fields = {field.name: f"its {field.name}" for field in dataclasses.fields(TaskResult)}
    columns = ("baseline", "icl", "task_vector", "random", "queries", "answers", "prompts")
    outcomes = {name: [name] for name in (*columns, "wrong_labels", "copy")}
    controls = dict.fromkeys(("random", "wrong_labels", "copy"), score)
    found = {**fields, "outcomes": outcomes, "controls": controls, "icl_wrong_labels": score}
    with Journal(tmp_path) as journal:
        settings = Settings()
        study = Study(model(), [TASK], [TASK], settings, settings, tmp_path, journal)
        journal.unit(study._main_unit(TASK), lambda: found)
        swept = study.sweep(TASK)
    assert swept == {**fields, "outcomes": {name: [name] for name in columns}}
