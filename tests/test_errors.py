"""What is said of other libraries' exceptions: their first line, and whether files are to blame."""

from __future__ import annotations

import ast
import dataclasses
import errno
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest
from conftest import LLAMA, random_params

from convert.formats import torch_file
from taskvec_jax.errors import TaskVecError, first_line, is_out_of_memory, is_temporary
from taskvec_jax.models import checkpoint, converting
from taskvec_jax.models.arrays import restore_arrays, save_arrays
from taskvec_jax.prompting.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
OUT_OF_MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 3.2 GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ValueError("RESOURCE_EXHAUSTED: while reading"),
    RuntimeError("std::bad_alloc"),
]


class Empty(Exception):  # noqa: N818 (what it is)
    """Has no message."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (Empty(" \n\t\n "), "Empty"),
        (ValueError("one"), "one"),
        (ValueError("\n  one  \ntwo"), "one"),
        (ValueError("x" * 1000), "x" * 200),
        ("", ""),
        ("\none\ntwo", "one"),
    ],
)
def test_the_first_line_of_any_exception_can_be_said(error: Any, line: str) -> None:
    assert first_line(error) == line


def test_no_handler_takes_the_first_line_in_its_own_way() -> None:
    """`str(error).splitlines()[0]` fails where there is no line."""
    wrong = []
    for package in ("taskvec_jax", "convert", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name == "errors.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                if "splitlines" in called and "str(" in called:
                    wrong.append(f"{path.name}:{node.lineno}")
    assert wrong == []


def raised_from(cause: BaseException) -> BaseException:
    """An error that another one led to, as Orbax raises them from its threads."""
    outer = RuntimeError("a step failed")
    outer.__cause__ = cause
    return outer


def test_out_of_memory_is_recognised_in_whatever_it_is_wrapped() -> None:
    for error in OUT_OF_MEMORY:
        group = ExceptionGroup("two steps failed", [ValueError("other"), error])  # type: ignore[type-var]
        for told in (error, raised_from(error), group, raised_from(group)):
            assert is_out_of_memory(told)
    for error in (ValueError("NOT_FOUND: no such chunk"), OSError(errno.ENOENT, "gone"), Empty()):
        assert not is_out_of_memory(error)
        assert not is_out_of_memory(raised_from(error))
    assert is_temporary(PermissionError(errno.EACCES, "Permission denied"))
    assert is_temporary(ValueError("PERMISSION_DENIED: Error opening d/0"))
    assert not is_temporary(ValueError("DATA_LOSS: truncated chunk"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, num_layers=1)
    manifest = {"weights_sha256": "0"}
    checkpoint.save(path, config, random_params(config), tokenizer, manifest)
    return path


def failing(error: BaseException) -> Any:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fails


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
@pytest.mark.parametrize("step", ["metadata", "restore"])
def test_too_little_memory_is_never_told_as_damage(saved, monkeypatch, error, step) -> None:
    monkeypatch.setattr(ocp.Checkpointer, step, failing(error))
    with pytest.raises(
        TaskVecError, match=r"out of memory .*nothing is wrong with the files"
    ) as of:
        checkpoint.restore(saved)
    assert "delete" not in str(of.value)


def test_too_little_memory_to_quantise_is_not_damage_either(saved, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "quantize_leaf", failing(OUT_OF_MEMORY[3]))
    with pytest.raises(TaskVecError, match="out of memory"):
        checkpoint.restore(saved, quantization="int8")


def test_files_that_cannot_be_opened_now_are_not_damaged(saved, monkeypatch) -> None:
    for error in (
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EMFILE, "Too many open files"),
        ValueError("UNAVAILABLE: the server does not answer"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(ocp.Checkpointer, "restore", failing(error))
            with pytest.raises(TaskVecError, match="cannot be read at the moment") as of:
                checkpoint.restore(saved)
            assert "delete" not in str(of.value)
    monkeypatch.setattr(Path, "read_text", failing(PermissionError(errno.EACCES, "denied")))
    with pytest.raises(TaskVecError, match="cannot be read at the moment"):
        checkpoint.read_config(saved)


def test_damage_without_a_message_is_told_as_damage(saved, monkeypatch) -> None:
    monkeypatch.setattr(ocp.Checkpointer, "restore", failing(Empty()))
    with pytest.raises(TaskVecError, match=r"cannot be restored \(Empty\); delete it"):
        checkpoint.restore(saved)


def test_training_state_and_torch_files_tell_memory_from_damage(tmp_path, monkeypatch) -> None:
    arrays = {"a": jax.numpy.ones(3)}
    save_arrays(tmp_path / "state", arrays, {})
    with monkeypatch.context() as patched:
        patched.setattr(ocp.Checkpointer, "restore", failing(MemoryError()))
        with pytest.raises(TaskVecError, match="out of memory"):
            restore_arrays(tmp_path / "state", arrays)
        patched.setattr(ocp.Checkpointer, "save", failing(MemoryError()))
        with pytest.raises(TaskVecError, match="out of memory"):
            save_arrays(tmp_path / "other", arrays, {})
    assert restore_arrays(tmp_path / "state", arrays)[0]["a"].tolist() == [1, 1, 1]
    monkeypatch.setattr(torch_file.zipfile, "ZipFile", failing(MemoryError()))
    monkeypatch.setattr(torch_file.zipfile, "is_zipfile", lambda path: True)
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(TaskVecError, match=r"too little memory to read it \(MemoryError\)"):
        torch_file.TorchFile(tmp_path / "model.bin")


def test_weights_that_do_not_fit_a_device_are_refused_in_one_line() -> None:
    said = pytest.raises(TaskVecError, match=r"llama-65b: out of memory .*--quantization=int8")
    with said, converting.explain_memory("llama-65b"):
        raise OUT_OF_MEMORY[3]
    with pytest.raises(jax.errors.JaxRuntimeError), converting.explain_memory("llama-65b"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
