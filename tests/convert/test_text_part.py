"""Of a Gemma 3 that reads images too, the text part is read, and computes what it does there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import convert
from convert.families import HF_FAMILIES
from convert.families.text_part import WRAPPERS
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model

TOKENS = np.array([5, 71, 2, 33, 99, 14, 14, 60, 8, 41, 93, 17])


@pytest.fixture(scope="module")
def theirs() -> Any:
    images = {
        "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 8,
        "num_attention_heads": 2, "patch_size": 4,
    }  # fmt: skip
    text = hf.gemma3().to_diff_dict()
    config = transformers.Gemma3Config(
        text_config=text, vision_config=images, mm_tokens_per_image=4, image_token_index=126,
        boi_token_index=125, eoi_token_index=124,
    )  # fmt: skip
    return hf.random_model(config)


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS[None])).logits[0].numpy()


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_is_the_decoder(prefix: str, theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    hf.save_tokenizer(tmp_path, theirs.config.text_config.vocab_size)
    path = tmp_path / "model.safetensors"
    stored = {}
    for name, tensor in load_file(path).items():
        base = name.replace("model.language_model.", "").replace("language_model.model.", "")
        text = base != name
        stored[prefix + base if text else name] = tensor
    assert any(name.startswith(prefix) for name in stored)
    assert any("vision_tower" in name for name in stored)
    save_file(stored, path, {"format": "pt"})
    if prefix.startswith("language"):
        ours = convert.open_model(tmp_path, None)  # checks every name and shape
        assert ours.config.family == "gemma3"
        return
    model = load_model(tmp_path)
    got = np.asarray(model.decoder.apply(model.params, TOKENS[None].astype(np.int32)))[0]
    want = logits(theirs)
    assert (np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max() < 1e-5


def test_what_the_text_config_leaves_out_has_the_defaults_of_its_class(tmp_path: Path) -> None:
    short: dict[str, Any] = {
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "intermediate_size": 10_240,
    }
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": short})
    )
    got, theirs = convert.read_config(tmp_path), transformers.Gemma3TextConfig(**short)
    names = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim")
    ours = (got.vocab_size, got.num_layers, got.width, got.num_heads, got.head_dim)
    assert ours == tuple(getattr(theirs, name) for name in names)
    whole = transformers.Gemma3TextConfig()
    for kind, defaults in WRAPPERS.items():
        assert kind not in HF_FAMILIES
        assert all(getattr(whole, key) == value for key, value in defaults.items())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(TaskVecError, match="text_config is missing"):
        convert.read_config(tmp_path)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "granitemoe", "deepseek_v3"])
def test_a_mixture_of_experts_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(TaskVecError, match=f"'{kind}', a mixture of experts, which is not support"):
        convert.read_config(tmp_path)
