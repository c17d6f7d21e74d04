"""Wrong types get the message that wrong values get, and right ones of every kind pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experiments.small_pythia.mixture import build_tokenizer
from taskvec_jax import Settings, TaskVecError, evaluate_task, load_model
from taskvec_jax.evaluation.controlled import evaluate_with_controls
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.prompting.prompts import fit
from taskvec_jax.tasks import TASKS, Pair, Task

PairOf: Any = Pair  # of any types
TASK = TASKS["algorithmic_to_upper"]


@pytest.fixture(scope="module")
def small():
    return load_model(SMALL_MODEL)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("own", "x", (("a", "b"),)), r"own_x, pair 1 is \('a', 'b'\); it must be a Pair, such as"),
        (("own", "x", [["a", "b"]]), r"pair 1 is \['a', 'b'\]; it must be a Pair"),
        (("own", "x", {"a": "b"}), "pairs is {'a': 'b'}; it must be a tuple of Pair"),
        (("own", "x", "ab"), "pairs is 'ab'; it must be a tuple of Pair"),
        (("own", "x", (PairOf("a", 5),)), "pair 1: 5 must be a string"),
        (("own", "x", (Pair("a", "b"), PairOf(b"a", "b"))), "pair 2: b'a' must be a string"),
        (
            ("own", "x", (PairOf("a", "b", "cd"),)),
            "accepted is 'cd'; it must be a tuple of strings",
        ),
        (("own", "x", (PairOf("a", "b", (1,)),)), "pair 1: 1 must be a string"),
        (("own", "x", (), "begins"), "match is 'begins'; allowed: 'exact', 'prefix'"),
        (("own", "x", (), "exact", 1), "leading_space is 1; allowed: True, False, 'auto'"),
        (("own", "x", (), "exact", False, "no"), "ignore_case is 'no'; allowed: True, False"),
        ((None, "x", ()), "task: category is None; it must be a string"),
        (("own", 3, ()), "task: short_name is 3; it must be a string"),
    ],
)
def test_a_task_of_other_types_is_refused_when_it_is_made(parts: Any, message):
    with pytest.raises(TaskVecError, match=message):
        Task(*parts)


def test_a_list_of_pairs_is_a_tuple_of_pairs():
    assert Task("own", "x", [Pair("a", "b")]) == Task("own", "x", (Pair("a", "b"),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"task": TASK.name},
            rf"task is '{TASK.name}', a str; .* taskvec_jax.TASKS\['{TASK.name}'\]",
        ),
        ({"task": [TASK]}, "task is .*, a list; it must be a Task"),
        ({"task": Pair("a", "b")}, "a Pair; it must be a Task"),
        ({"model": SMALL_MODEL}, "model is 'pythia-icl-small'; it must be what load_model gives"),
        ({"settings": {"seed": 1}}, "settings is {'seed': 1}; it must be Settings"),
        ({"settings": 5}, "settings is 5; it must be Settings"),
    ],
)
def test_evaluating_something_else_is_refused(small, change, message):
    arguments = {"model": small, "task": TASK, "settings": Settings(num_prompts=1), **change}
    with pytest.raises(TaskVecError, match=message):
        evaluate_task(**arguments)
    if "task" in change:
        with pytest.raises(TaskVecError, match="it must be a Task"):
            fit(change["task"], small.tokenizer)
        with pytest.raises(TaskVecError, match="it must be a Task"):
            evaluate_with_controls(small, change["task"], [], Settings(num_prompts=1))


@pytest.mark.parametrize("name", ["num_prompts", "num_demonstrations", "seed", "batch_size"])
@pytest.mark.parametrize("value", ["5", 2.0, None, True, [3]])
def test_settings_of_other_types_are_refused(name, value):
    with pytest.raises(TaskVecError, match=f"{name} is .*; it must be a whole number"):
        Settings(**{name: value})
    assert Settings(num_prompts=np.int64(3)) == Settings(num_prompts=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(5), "5 is no text"),
        (lambda t: t.encode(["a"]), r"\['a'\] is no text"),
        (lambda t: t.encode(None), "None is no text"),
        (lambda t: t.encode_all(5), r"texts is 5; it must be a list of strings, so one text is"),
        (lambda t: t.encode_all("a->"), "texts is 'a->'; it must be a list of strings"),
        (lambda t: t.encode_all(["a", 5]), "5 is no text; each must be a string"),
        (lambda t: t.decode(5), "5 is no row of token ids; a row is a list"),
        (lambda t: t.decode([[1]]), r"\[1\] is no token id"),
        (lambda t: t.decode([-1]), "-1 is no token id; ids are whole numbers from 0"),
        (lambda t: t.decode([1.5]), "1.5 is no token id"),
        (
            lambda t: t.pad(t.encode("example:a->")),
            "is no row of token ids; a row is a list, so one",
        ),
        (lambda t: t.pad(np.array([1, 2])), "is no row of token ids"),
        (lambda t: t.pad(7), "rows is 7; it must be a list of rows"),
        (lambda t: t.pad([[1, -2]]), "-2 is no token id"),
        (lambda t: t.pad([["a"]]), "'a' is no token id"),
        (lambda t: t.pad([]), "there is no text to tokenize"),
        (lambda t: t.pad([[1], []]), "there is no text to tokenize"),
    ],
)
def test_a_tokenizer_refuses_what_is_no_text_or_no_ids(call, message):
    with pytest.raises(TaskVecError, match=message):
        call(build_tokenizer())


def test_rows_of_every_kind_are_padded():
    tokenizer: Any = build_tokenizer()
    for rows in ([[1, 2], [3]], ((1, 2), (3,)), [np.array([1, 2]), np.array([3])]):
        tokens, last = tokenizer.pad(rows)
        assert tokens.tolist() == [[1, 2], [3, 0]]
        assert last.tolist() == [1, 0]
    assert tokenizer.pad(np.array([[1, 2]]))[0].tolist() == [[1, 2]]
    assert tokenizer.decode(np.array([2])) == tokenizer.decode([2])
    assert tokenizer.encode_all(text for text in ["a"]) == [tokenizer.encode("a")]
