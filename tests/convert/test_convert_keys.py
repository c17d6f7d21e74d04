"""A key of a config is used, changes nothing, or refuses the model; transformers is the judge."""

# Long because: every key of every family is a case.

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import hf
import numpy as np
import pytest
import torch
import transformers

import convert
from convert.families import GGUF_FAMILIES, HF_FAMILIES, config_keys, meta, read_keys
from convert.families.hf_keys import HARMLESS_KEYS
from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.rope import rope_divisors

_NUMBERS = itertools.count()
TOKENS = np.array([5, 71, 2, 33, 99, 14, 14, 60, 8, 41, 93])
MODELS = hf.MODELS
WINDOWED = ("mistral", "gemma2", "gemma3_text", "olmo3", "phi3")  # whose sliding_window counts


def config_of(raw: Mapping[str, Any]) -> DecoderConfig:
    where = f"config.json {next(_NUMBERS)}"  # a file of its own: what is noted is said once a file
    return HF_FAMILIES[raw["model_type"]].config_from_hf(raw, where, "float32")


def refused(read: Callable[[], Any]) -> bool:
    try:
        read()
    except TaskVecError:
        return True
    return False


def raw_config(family: str, **changes: Any) -> dict[str, Any]:
    return {**MODELS[family]().to_diff_dict(), **changes}


def old_config(family: str, **changes: Any) -> dict[str, Any]:
    """As transformers 4 wrote it: rotary settings at the top."""
    raw = raw_config(family)
    raw.pop("rope_parameters", None)
    return {**raw, **changes}


def read_by_transformers(kind: str) -> frozenset[str]:
    return config_keys.COMMON | set(HF_FAMILIES[kind].model_types[kind].split())


# The table


def test_the_table_is_what_the_installed_transformers_reads() -> None:
    assert read_keys.text() == read_keys.OUT.read_text(), "run python -m convert.families.read_keys"
    assert transformers.__version__ == config_keys.TRANSFORMERS


@pytest.mark.parametrize("kind", HF_FAMILIES)
def test_a_familys_record_holds_the_keys_that_transformers_reads_for_it(kind: str) -> None:
    found = read_keys.own_keys(kind)
    assert HF_FAMILIES[kind].model_types[kind] == found, f"python -m {read_keys.__name__} {kind}"


def test_the_table_holds_every_field_and_every_other_name_of_a_configuration() -> None:
    """An oracle of another kind: the classes themselves, rather than their source."""
    for family, model in MODELS.items():
        kind = type(model())
        fields = {field.name for field in dataclasses.fields(kind)} | kind.attribute_map.keys()
        assert fields <= read_by_transformers(family), family


@pytest.mark.parametrize("family", MODELS)
def test_a_key_that_transformers_reads_is_used_or_refused(family: str) -> None:
    plain = config_of(raw_config(family))
    for key in sorted(read_by_transformers(family) - HARMLESS_KEYS):
        odd = {"rope_type": "odd"} if key in ("rope_parameters", "rope_scaling") else {"odd": 1}
        raw = raw_config(family, **{key: odd})
        assert refused(lambda raw=raw: config_of(raw)) or config_of(raw) != plain, key


ODD_VALUES: dict[str, Any] = {
    "architectures": ["Other"], "auto_map": {"AutoModelForCausalLM": "other--own.Model"},
    "torch_dtype": "float32", "transformers_version": "4.0.0", "transformers.js_config": {"a": 1},
    "_name_or_path": "x", "_commit_hash": "y", "is_llama_config": True, "tokenizer_class": "Own",
    "attn_implementation": "eager", "pretraining_tp": 2, "bos_token_id": 3, "eos_token_id": [4, 5],
    "pad_token_id": 6, "sep_token_id": 7, "decoder_start_token_id": 9, "initializer_range": 0.9,
    "initializer_factor": 0.8, "init_std": 0.7, "attention_dropout": 0.5, "hidden_dropout": 0.5,
    "classifier_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5,
    "use_cache": False, "output_attentions": True, "output_hidden_states": True,
    "tie_last_hidden_states": False, "chunk_size_feed_forward": 3, "id2label": {"0": "a"},
    "label2id": {"a": 0}, "num_labels": 1, "is_decoder": True, "add_cross_attention": True,
    "task_specific_params": {"a": 1}, "embed_dim": 5, "features_only": True, "out_indices": [1],
    "gradient_checkpointing": True,
}  # fmt: skip
UNREAD: dict[str, Any] = {
    "unsloth_fixed": True, "num_steps": "global_step320000", "custom_pipelines": {"a": {"b": "c"}},
    "max_length": 4, "do_sample": True, "temperature": 0.9, "torchscript": True, "pruned_heads": {},
    "use_bfloat16": True, "badwordsids": [[628]], "rope_interleaved": True, "rotary": False,
    "attention_multiplier": 0.5, "scale_attn_weights": False, "logit_scale": 3.0,
}  # fmt: skip


@pytest.mark.parametrize("family", MODELS)
def test_keys_that_change_nothing_change_nothing_in_transformers_either(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = raw_config(family)
    own = {} if family in WINDOWED else {"sliding_window": 4}
    unread = {
        key: value for key, value in UNREAD.items() if key not in read_by_transformers(family)
    }
    odd = {**plain, **own, **ODD_VALUES, **unread}
    if family == "gpt2":  # its cross-attention would be further tensors
        odd["add_cross_attention"] = False
    kind = type(MODELS[family]())
    models = [hf.random_model(kind.from_dict(dict(raw))) for raw in (plain, odd)]
    before, after = (hf.run_hf(model, TOKENS) for model in models)
    hf.assert_same(after, before, 1e-5)  # "eager" sums in another order than the default
    assert config_of(odd) == config_of(plain)
    noted = [line for line in caplog.messages if "transformers" in line and "not read" in line]
    assert len(noted) == 1
    for key in unread:
        assert key in noted[0]
    assert not any(f" {key}," in noted[0] for key in ODD_VALUES)


def test_common_configs_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for family in MODELS:
        config_of(raw_config(family))
    assert not caplog.messages


# Single keys


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"is_causal": False}, "is_causal is 'False'"),
        ("llama", {"is_causal": None}, "is_causal is null"),
        ("llama", {"attention_bias": None}, "attention_bias is null"),
        ("gpt_neox", {"use_parallel_residual": None}, "use_parallel_residual is null"),
        ("gpt_neox", {"head_dim": 22}, "head_dim is 22.0"),
        ("gptj", {"rotary_dim": None}, "rotary_dim is null"),
        ("gptj", {"rope_theta": 500.0}, "rope_theta is 500.0"),
        ("gptj", {"tie_word_embeddings": True}, "tie_word_embeddings is 'True'"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ("mistral", {"layer_types": ["sliding_attention"] * 2}, "layer_types is"),
        ("llama", {"per_layer_config": {"1": {"head_dim": 4}}}, "per_layer_config"),
        ("llama", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ("llama", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ("llama", {"attention_chunk_size": 8}, "attention_chunk_size"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder"),
        ("llama", {"partial_rotary_factor": 0.5, "rope_parameters": None}, "is 0.5; allowed: 1.0"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "of its own"),
        ("llama", {"rope_parameters": {"rope_type": None}}, "rope_type is null"),
        ("llama", {"rope_parameters": {"rope_type": "axial", "type": "linear"}}, "'axial'"),
    ],
)
def test_a_value_that_would_change_the_numbers_is_refused(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskVecError, match=message):
        config_of(raw_config(family, **changes))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"layer_types": ["full_attention"] * 3, "per_layer_config": {}}),
        ("llama", {"head_dim": None, "hidden_size": 48, "num_key_value_heads": None}),
        ("llama", {"quantization_config": None, "rope_scaling": None, "is_encoder_decoder": False}),
        ("mistral", {"num_key_value_heads": None, "layer_types": None}),
        ("gptj", {"n_inner": None, "rope_theta": 10000, "rope_scaling": None}),
        ("gpt_neox", {"num_key_value_heads": 2, "sliding_window": 4, "head_dim": None}),
    ],
)
def test_a_neutral_value_passes(family: str, changes: dict[str, Any]) -> None:
    config_of(raw_config(family, **changes))


def test_what_is_absent_has_the_default_of_its_class() -> None:
    for family, model in MODELS.items():
        raw = raw_config(family, num_attention_heads=32, hidden_size=320)
        needed = {
            "model_type", "vocab_size", "num_hidden_layers", "n_layer", "hidden_size", "n_embd",
            "num_attention_heads", "n_head", "intermediate_size", "rotary_dim",
        }  # fmt: skip
        said = {key: value for key, value in raw.items() if key in needed}
        config, theirs = config_of(said), type(model()).from_dict(dict(said))
        heads = theirs.num_attention_heads
        assert config.max_length == theirs.max_position_embeddings, family
        assert config.tied_unembed is theirs.tie_word_embeddings, family
        assert config.num_kv_heads == (getattr(theirs, "num_key_value_heads", None) or heads)
        assert config.head_dim == (getattr(theirs, "head_dim", None) or 320 // heads)
        layer_types = getattr(theirs, "layer_types", None) or []
        if "sliding_attention" in layer_types or family in ("mistral", "phi3"):
            assert config.sliding_window == theirs.sliding_window, family
        else:
            assert config.sliding_window is None, family
        if family in ("gemma2", "gemma3_text", "olmo3"):
            windowed = [kind == "sliding_attention" for kind in layer_types]
            assert config.window_layers == (() if all(windowed) else tuple(windowed))
        assert config.norm_eps in (
            1e-5 if family == "olmo" else None,  # which has no key for it
            *(
                getattr(theirs, name, None)
                for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
            ),
        )


def test_gptj_goes_by_common_names_too() -> None:
    """attribute_map of transformers: the common name counts where both are there."""
    names = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
    }
    raw = raw_config("gptj")
    common = {names.get(key, key): value for key, value in raw.items()}
    assert config_of(common) == config_of(raw)
    both = {**raw, "hidden_size": 48}
    assert config_of(both).width == transformers.GPTJConfig(**both).n_embd == 48


@pytest.mark.parametrize("known", [True, False])
def test_code_of_its_own_is_not_run(known: bool, tmp_path: Path) -> None:
    raw = raw_config("llama", auto_map={"AutoModelForCausalLM": "own--modeling.Model"})
    if not known:
        raw["model_type"] = "own"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    if known:
        assert convert.read_config(tmp_path) == config_of(raw_config("llama"))
    else:
        with pytest.raises(TaskVecError, match=r"'own', which brings code of its own \(auto_map\)"):
            convert.read_config(tmp_path)


# Rotary settings


def frequencies(config: DecoderConfig) -> np.ndarray:
    powers = np.arange(0, config.rope_dim, 2) / config.rope_dim
    return config.rope_base**-powers / rope_divisors(
        config.rope_base, config.rope_dim, config.rope_scaling
    )


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_theta": 500.0}),
        ("llama", {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4}}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 77.0}}),
        (
            "llama",
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
            },
        ),
        ("llama", {"rope_theta": 7.0, "rope_parameters": {"rope_theta": 300.0}}),
        ("llama", {"rope_scaling": {}, "rope_parameters": {"rope_theta": 300.0}}),
        ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}}),
        ("llama", {"rope_scaling": LLAMA3}),
        ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32}),
        ("llama", {"rope_parameters": {"rope_type": "default", "factor": 8.0, "mystery": 1}}),
        ("mistral", {"rope_scaling": {"type": "linear", "factor": 3.0, "finetuned": True}}),
        ("gpt_neox", {"rotary_emb_base": 500, "rotary_pct": 0.6}),
        ("gpt_neox", {"rotary_pct": 0.4, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("gpt_neox", {"rope_theta": 10000.0, "partial_rotary_factor": 0.25, "hidden_size": 64}),
    ],
)
def test_rotary_frequencies_are_those_of_transformers(family: str, changes: dict[str, Any]) -> None:
    raw = old_config(family, **changes)
    module = {
        "llama": transformers.models.llama.modeling_llama.LlamaRotaryEmbedding,
        "mistral": transformers.models.mistral.modeling_mistral.MistralRotaryEmbedding,
        "gpt_neox": transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXRotaryEmbedding,
    }[family]
    theirs = module(type(MODELS[family]()).from_dict(json.loads(json.dumps(raw)))).inv_freq.numpy()
    np.testing.assert_allclose(frequencies(config_of(raw)), theirs, rtol=2e-6)


@pytest.mark.parametrize(
    "changes", [{"rope_theta": 500.0}, {"partial_rotary_factor": 0.5, "rotary_pct": 0.4}]
)
def test_rotary_settings_that_a_gpt_neox_would_not_use_are_refused(changes: Any) -> None:
    with pytest.raises(TaskVecError, match="is what transformers computes with"):
        config_of(old_config("gpt_neox", **changes))


# GGUF


class Shapes:
    """A source without tensors."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.where = "m.gguf"
        self._shapes = {name.replace("__", "."): shape for name, shape in shapes.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def dtypes(self) -> dict[str, str]:
        return dict.fromkeys(self._shapes, "float32")

    def check_used(self, names: Iterable[str]) -> None:
        raise AssertionError(names)

    def read(self, name: str) -> np.ndarray:
        raise AssertionError(name)


BOTH = {"token_embd__weight": (101, 48), "output__weight": (101, 48)}
SIZES = {
    "embedding_length": 48, "block_count": 3, "attention.head_count": 6, "feed_forward_length": 53,
    "context_length": 89,
}  # fmt: skip
LAYER_NORMS = ("gptneox", "gpt2")
OWN: dict[str, dict[str, Any]] = {  # keys of one architecture
    "gptneox": {"rope.dimension_count": 2, "use_parallel_residual": True},
    "gemma3": {"attention.sliding_window": 7, "attention.sliding_window_pattern": 2},
}
USED = {  # keys that other architectures refuse
    "granite": {"logit_scale", "residual_scale", "embedding_scale", "attention.scale"},
    "gemma2": {"final_logit_softcapping"},
    "gemma3": {"final_logit_softcapping", "rope.freq_base_swa"},
}


def gguf_config(arch: str, shapes: Shapes | None = None, /, **changes: Any) -> DecoderConfig:
    rms = "" if arch in LAYER_NORMS else "rms_"
    values = {**SIZES, f"attention.layer_norm_{rms}epsilon": 1e-5, **OWN.get(arch, {}), **changes}
    meta = {f"{arch}.{key}": value for key, value in values.items() if value is not None}
    plain = {key: value for key, value in changes.items() if key.startswith("split.")}
    read = GGUF_FAMILIES[arch].config_from_gguf
    assert read is not None
    return read({**meta, **plain}, shapes or Shapes(**BOTH), "m.gguf", "float32")


@pytest.mark.parametrize("arch", GGUF_FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 100}, {"rope.scaling.finetuned": True}, {"attention.causal": True},
        {"rope.scaling.attn_factor": 1.0}, {"rope.scaling.type": "none"}, {"logit_scale": 1.0},
        {"residual_scale": 0.0}, {"embedding_scale": 1.0}, {"final_logit_softcapping": 0.0},
        {"attention.clamp_kqv": 0.0}, {"expert_count": 0, "expert_used_count": 0},
        {"pooling_type": 3}, {"attention.scale": 8**-0.5},
        {"attention.key_length": 8, "attention.value_length": 8},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"attention.value_length": 8},
        {"rope.scaling.factor": 0.0}, {"rope.scaling.original_context_length": 40},
        {"feed_forward_length": [53, 53, 53], "attention.head_count": [6, 6, 6]},
        {"tensor_data_layout": "reference"}, {"leading_dense_block_count": 0},
        {"rope.dimension_sections": [0, 0, 0, 0]}, {"some.new.key": 3},
    ],
)  # fmt: skip
def test_gguf_keys_that_change_nothing_pass(arch: str, changes: dict[str, Any]) -> None:
    if arch == "gemma2" and "final_logit_softcapping" in changes:
        assert gguf_config(arch, **changes).logit_softcap is None  # absent, it has a default
        return
    if arch == "gpt2" and changes.get("rope.scaling.factor") == 4.0:
        assert refused(lambda: gguf_config(arch, **changes))  # nothing rotates
        return
    assert gguf_config(arch, **changes) == gguf_config(arch)


@pytest.mark.parametrize("arch", GGUF_FAMILIES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.causal": False}, "attention.causal is 'False'"),
        ({"attention.scale": 0.5}, "attention.scale is 0.5"),
        ({"logit_scale": 3.0}, "logit_scale"),
        ({"residual_scale": 0.5}, "residual_scale"),
        ({"embedding_scale": 12.0}, "embedding_scale"),
        ({"attention.clamp_kqv": 8.0}, "attention.clamp_kqv"),
        ({"attention.max_alibi_bias": 8.0}, "max_alibi_bias"),
        ({"final_logit_softcapping": 20.0}, "final_logit_softcapping"),
        ({"expert_count": 8}, "expert_count"),
        ({"rope.scaling.attn_factor": 0.5}, "attn_factor"),
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope'"),
        ({"attention.head_count_kv": [6, 3, 6]}, "allowed: one number, the same for all 3 layers"),
        ({"feed_forward_length": [53, 53]}, "allowed: one number"),
        ({"attention.value_length": 5}, "value_length"),
        ({"attention.key_length": 5}, "length"),
        ({"tensor_data_layout": "jploski"}, "tensor_data_layout"),
        ({"context_length": None}, "context_length is missing"),
        ({"rope.freq_base_swa": 1e4}, "freq_base_swa"),
        ({"attention.shared_kv_layers": 2}, "shared_kv_layers"),
    ],
)
def test_gguf_keys_that_would_change_the_numbers_are_refused(
    arch: str, changes: dict[str, Any], message: str
) -> None:
    if changes.keys() <= USED.get(arch, set()):
        changes = {"rope.freq_base_swa": 777.0} if "rope.freq_base_swa" in changes else changes
        assert gguf_config(arch, **changes) != gguf_config(arch)
        return
    with pytest.raises(TaskVecError, match=message):
        gguf_config(arch, **changes)


@pytest.mark.parametrize("arch", GGUF_FAMILIES)
def test_every_key_that_the_format_defines_is_used_neutral_or_refused(arch: str) -> None:
    from convert.families.gguf_keys import _GGUF_KEYS, GGUF_HARMLESS

    assert len(_GGUF_KEYS) > 80
    plain = gguf_config(arch)
    for key in sorted(_GGUF_KEYS - GGUF_HARMLESS):
        changes = {key: 0.123}
        used = refused(lambda changes=changes: gguf_config(arch, **changes))
        assert used or gguf_config(arch, **changes) != plain, key


@pytest.mark.parametrize("arch", [arch for arch in GGUF_FAMILIES if arch != "gpt2"])
def test_a_rope_factor_without_a_type_is_linear_as_in_llama_cpp(arch: str) -> None:
    linear = gguf_config(arch, **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert linear.rope_scaling is not None
    assert linear.rope_scaling.factor == 4
    assert gguf_config(arch, **{"rope.scaling.factor": 4.0}) == linear
    assert gguf_config(arch, **{"rope.scale_linear": 4.0}) == linear
    newer = {"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}
    assert gguf_config(arch, **newer) == linear


def test_a_gptneox_gguf_without_a_rotary_size_rotates_whole_heads_as_in_llama_cpp() -> None:
    assert gguf_config("gptneox", **{"rope.dimension_count": None}).rope_dim == 8
    with pytest.raises(TaskVecError, match="use_parallel_residual is missing"):
        gguf_config("gptneox", use_parallel_residual=None)


def test_embeddings_are_tied_where_the_format_says_so() -> None:
    alone = Shapes(token_embd__weight=(101, 48))
    assert gguf_config("llama", alone).tied_unembed
    assert gguf_config("llama", alone, **{"split.tensors.count": 1}).tied_unembed
    with pytest.raises(TaskVecError, match=r"holds 1 of the 40 tensors of a split model"):
        gguf_config("llama", alone, **{"split.tensors.count": 40})
    assert not gguf_config("llama").tied_unembed
    assert not gguf_config("gptneox", alone).tied_unembed  # then output.weight is missed


# What is taken from the parameters


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_buffers_do_not_decide_the_precision(family: str, tmp_path: Path) -> None:
    model = hf.random_model(MODELS[family]()).half()
    state = model.state_dict()
    directory = hf.save(model, tmp_path)
    (directory / "model.safetensors").unlink()
    layer = {"llama": "model.layers.0.self_attn.", "gpt_neox": "gpt_neox.layers.0.attention."}
    state[layer[family] + "rotary_emb.inv_freq"] = torch.ones(7)
    if family == "gpt_neox":
        state[layer[family] + "bias"] = torch.ones(1, 1, 79, 79, dtype=torch.bool)
        state[layer[family] + "masked_bias"] = torch.tensor(-1e9)
    torch.save(state, directory / "pytorch_model.bin")
    assert convert.open_model(directory, None).config.dtype == "float16"


def test_metas_own_release_is_not_tied_where_its_unembedding_is_missing() -> None:
    params = {"dim": 48, "n_heads": 6, "n_layers": 3, "norm_eps": 1e-5}
    alone = {"tok_embeddings.weight": (101, 48), "layers.0.feed_forward.w1.weight": (53, 48)}
    config = meta.config_from_meta(params, Shapes(**alone), "params.json", "float32")
    assert not config.tied_unembed  # then output.weight is missed
