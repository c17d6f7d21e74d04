"""Every family and every variant computes what transformers computes, from the same files."""

from __future__ import annotations

import importlib
from pathlib import Path

import hf
import numpy as np
import pytest
from slow import slow_but

from convert import families
from convert.families import GGUF_FAMILIES, HF_FAMILIES
from experiments.run.fingerprint import library_files
from taskvec_jax.models.loading import load_model
from taskvec_jax.transformer import blocks
from taskvec_jax.transformer.config import FAMILIES
from taskvec_jax.transformer.decoder import FAMILY_MODULES

TOKENS = np.array([5, 71, 2, 33, 99, 14, 14, 60, 8, 41, 93])


# One or two of each family; every configuration runs with the slow tests.
QUICK = {
    *("llama", "llama-rope-llama3", "mistral-window", "neox", "neox-sequential", "gptj", "gpt2"),
    *("qwen2-windows", "qwen3", "gemma", "gemma2", "gemma3", "olmo-clipped", "olmo2", "olmo3"),
    *("phi3-partial", "granite"),
}


@pytest.mark.parametrize("name", slow_but(hf.CONFIGS, QUICK))
def test_residuals_and_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = hf.random_model(hf.CONFIGS[name]())
    ours = load_model(hf.save(theirs, tmp_path))
    hf.assert_same(hf.run_ours(ours, TOKENS), hf.run_hf(theirs, TOKENS))


def test_the_matrix_has_at_least_24_configurations() -> None:
    assert len(hf.CONFIGS) >= 24


def test_a_family_is_one_record_and_one_block_of_the_same_name() -> None:
    for name, family in families.FAMILIES.items():
        record, block = (
            importlib.import_module(f"{room}.{name}")
            for room in ("convert.families", "taskvec_jax.transformer.blocks")
        )
        assert record.FAMILY is family
        assert family.name == name
        assert FAMILY_MODULES[name] is block
        assert (family.gguf is None) == (not family.architectures)
        assert (family.config_from_gguf is None) == (family.gguf is None)


def test_every_block_is_listed_so_that_a_journals_hash_counts_its_code() -> None:
    place = Path(blocks.__file__).parent
    modules = {path for path in place.glob("*.py") if path.stem != "__init__"}
    assert {path.stem for path in modules} == set(FAMILIES) == set(FAMILY_MODULES)
    assert modules <= set(library_files(place.parent / "decoder.py"))


def test_no_file_type_belongs_to_two_families() -> None:
    for registry, field in ((HF_FAMILIES, "model_types"), (GGUF_FAMILIES, "architectures")):
        named = [kind for family in families.FAMILIES.values() for kind in getattr(family, field)]
        assert sorted(named) == sorted(registry)


def test_a_config_of_every_family_comes_back_from_its_own_config_json() -> None:
    for kind, family in HF_FAMILIES.items():
        raw = hf.MODELS[kind]().to_diff_dict()
        config = family.config_from_hf(raw, "config.json", "float32")
        assert config.family == family.name
        assert family.config_from_hf(family.config_to_hf(config), "back", "float32") == config
