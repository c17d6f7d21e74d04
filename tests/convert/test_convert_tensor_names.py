"""Tensors are found under every name that transformers finds them under, and under no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from convert import convert
from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.decoder import flatten

MODELS = {
    "llama": hf.llama,
    "llama-tied": lambda: hf.llama(tie_word_embeddings=True),
    "mistral": hf.mistral,
    "neox": hf.neox,
    "neox-tied": lambda: hf.neox(tie_word_embeddings=True),
    "gptj": hf.gptj,
}
BASES = {"llama": "model.", "mistral": "model.", "neox": "gpt_neox.", "gptj": "transformer."}
State = dict[str, torch.Tensor]


def base_of(name: str) -> str:
    return BASES[name.removesuffix("-tied")]


def without_prefix(name: str, state: State) -> State:
    return {key.removeprefix(base_of(name)): value for key, value in state.items()}


def before_everything(name: str, state: State) -> State:
    base = base_of(name)
    return {base + key.removeprefix(base): value for key, value in state.items()}


def in_memory(name: str, state: State) -> State:
    return state


def as_in_old_files(name: str, state: State) -> State:
    return {key.replace("lm_head.weight", "embed_out.weight"): v for key, v in state.items()}


def head_alone(name: str, state: State) -> State:
    """What safetensors' own save_model keeps of a tied pair: the first by the alphabet."""
    return {key: value for key, value in state.items() if "embed_" not in key}


def saved(name: str, rename: Callable[[str, State], State], out: Path) -> tuple[Any, Path]:
    """A model, and a directory that holds it under other names."""
    model = hf.random_model(MODELS[name]())
    hf.save(model, out)
    (out / "model.safetensors").unlink()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(rename(name, state), out / "model.safetensors", {"format": "pt"})
    return model, out


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        *((name, in_memory) for name in MODELS),
        *((name, without_prefix) for name in MODELS),
        *((name, before_everything) for name in ("llama", "neox", "gptj")),
        *((name, as_in_old_files) for name in ("neox", "neox-tied")),
        *((name, head_alone) for name in ("llama-tied", "neox-tied")),
    ],
)
def test_a_name_that_transformers_reads_is_read(
    name: str, rename: Callable[[str, State], State], tmp_path: Path
) -> None:
    model, directory = saved(name, rename, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(theirs[key], value), key
    got = convert(directory, "float32").params
    hf.save(model, directory)
    for path, leaf in flatten(convert(directory, "float32").params).items():
        np.testing.assert_array_equal(flatten(got)[path], leaf, path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
@pytest.mark.parametrize("name", ["llama", "neox", "gptj"])
def test_the_prefix_of_a_wrapper_is_refused_by_name(name: str, prefix: str, tmp_path: Path) -> None:
    _, directory = saved(name, lambda _, s: {prefix + k: v for k, v in s.items()}, tmp_path)
    with pytest.raises(TaskVecError, match=rf"the prefix {prefix} of a model wrapped by"):
        convert(directory, None)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    def both(name: str, state: State) -> State:
        return state | {key: v.clone() for key, v in as_in_old_files(name, state).items()}

    _, directory = saved("neox", both, tmp_path)
    with pytest.raises(TaskVecError, match=r"lm_head\.weight .*are the same tensor|embed_out"):
        convert(directory, None)


@pytest.mark.parametrize("name", ["llama", "mistral", "neox", "gptj"])
def test_a_model_saved_without_its_unembedding_is_not_read_as_tied(
    name: str, tmp_path: Path
) -> None:
    model = hf.random_model(MODELS[name]())
    hf.save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.base_model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("tie_word_embeddings", None)  # the default of every class is false
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(TaskVecError, match=r"missing (lm_head|embed_out)\.weight"):
        convert(tmp_path, None)


def test_a_tied_model_saved_without_its_unembedding_is_read(tmp_path: Path) -> None:
    model = hf.random_model(MODELS["llama-tied"]())
    hf.save(model, tmp_path)
    whole = flatten(convert(tmp_path, "float32").params)
    (tmp_path / "model.safetensors").unlink()
    model.base_model.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in safetensors.torch.load_file(tmp_path / "model.safetensors")
    for path, leaf in flatten(convert(tmp_path, "float32").params).items():
        np.testing.assert_array_equal(leaf, whole[path], path)
