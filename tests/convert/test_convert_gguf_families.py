"""GGUF files of every architecture give the numbers of the Hugging Face model they are made from.

They are written with the names that the gguf package has for transformers' tensors, and with what
llama.cpp's convert_hf_to_gguf.py does to them: rows of queries and keys permuted (LlamaModel), one
added to the scales of Gemma's norms (Gemma3Model.norm_shift), Conv1D transposed (GPT2Model).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import hf
import numpy as np
import pytest
import torch
import transformers
from slow import slow, slow_but
from transformers.models.qwen2 import tokenization_qwen2

from convert.formats.byte_level import QWEN_2_PATTERN
from experiments.bench.synthetic_model import add_word_tokenizer
from taskvec_jax.models.loading import load_model

TOKENS = np.array([5, 71, 2, 33, 99, 14, 14, 60, 8, 41, 93, 17, 66, 3, 58, 80, 21, 21, 9, 44])
LONG = {
    "rope_type": "longrope",
    "rope_theta": 5_000.0,
    "short_factor": [1.0, 1.25, 1.5, 1.75, 2.0],
    "long_factor": [1.5, 2.5, 3.5, 4.5, 5.5],
    "original_max_position_embeddings": 13,
    "attention_factor": 1.25,
}
CASES: dict[str, tuple[str, Callable[[], Any]]] = {  # name -> architecture, config
    "qwen2": ("qwen2", lambda: hf.qwen2()),
    "qwen3": ("qwen3", lambda: hf.qwen3(tie_word_embeddings=True)),
    "gpt2": ("gpt2", lambda: hf.gpt2()),
    "olmo2": ("olmo2", lambda: hf.olmo2()),
    "gemma2": ("gemma2", lambda: hf.gemma2(query_pre_attn_scalar=14)),
    "gemma3": (
        "gemma3",
        lambda: hf.gemma3(
            query_pre_attn_scalar=14, num_hidden_layers=7, sliding_window_pattern=6,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        ),
    ),
    "phi3": ("phi3", lambda: hf.phi3(sliding_window=9)),
    "phi3-longrope": (
        "phi3",
        lambda: hf.phi3(rope_parameters=LONG, original_max_position_embeddings=13),
    ),
    "granite": ("granite", lambda: hf.granite(attention_bias=True)),
}  # fmt: skip


def write(model: Any, architecture: str, path: Path) -> Path:
    c = model.config
    heads, layers = c.num_attention_heads, c.num_hidden_layers
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    rope = getattr(c, "rope_parameters", None) or {}
    if architecture == "gpt2":
        writer.add_feed_forward_length(c.n_inner or 4 * c.n_embd)
        writer.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(c.intermediate_size)
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if architecture.startswith("gemma"):
        writer.add_sliding_window(c.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    if architecture == "gemma3" and rope["full_attention"]["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["full_attention"]["factor"])
    if architecture == "phi3":
        writer.add_rope_dimension_count(head_dim)
        writer.add_sliding_window(c.sliding_window or 0)
        if rope["rope_type"] == "longrope":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            writer.add_rope_scaling_attn_factors(rope["attention_factor"])
            for name in ("short", "long"):
                factors = np.array(rope[f"{name}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{name}.weight", factors)
    if architecture == "granite":
        writer.add_rope_dimension_count(head_dim)
        writer.add_attention_scale(c.attention_multiplier)
        writer.add_embedding_scale(c.embedding_multiplier)
        writer.add_residual_scale(c.residual_multiplier)
        writer.add_logit_scale(c.logits_scaling)
    add_word_tokenizer(writer, c.vocab_size)
    kind = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        value = tensor.float().numpy()
        base, suffix = name.rsplit(".", 1)
        if architecture.startswith("gemma") and base.endswith("norm"):
            value = value + 1
        if architecture == "gpt2" and suffix == "weight" and ".c_" in base:
            value = value.T
        if architecture == "granite" and base.endswith(("q_proj", "k_proj")):
            half = head_dim // 2
            value = value.reshape(-1, 2, half, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        found = names.get_name(base)
        assert found is not None, name
        writer.add_tensor(f"{found}.{suffix}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", slow_but(CASES, ("qwen2", "gpt2", "gemma3")))
def test_a_gguf_file_equals_the_model_it_is_made_from(name: str, tmp_path: Path) -> None:
    architecture, config = CASES[name]
    theirs = hf.random_model(config())
    ours = load_model(write(theirs, architecture, tmp_path / "m.gguf"))
    hf.assert_same(hf.run_ours(ours, TOKENS), hf.run_hf(theirs, TOKENS))


@slow
@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("qwen2", lambda: hf.qwen2()),
        ("qwen3", lambda: hf.qwen3(head_dim=128)),
        ("gpt2", lambda: hf.gpt2(n_inner=None, n_positions=1024)),
        # What transformers does not read of these files has the defaults of its classes.
        (
            "gemma2",
            lambda: hf.gemma2(
                head_dim=256, query_pre_attn_scalar=256, attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0,
            ),
        ),
        (
            "gemma3",
            lambda: hf.gemma3(
                head_dim=256, query_pre_attn_scalar=256, num_hidden_layers=7,
                sliding_window_pattern=6,
            ),
        ),
        ("phi3", lambda: hf.phi3(vocab_size=32_011)),  # it pads with 32,000
    ],
)  # fmt: skip
def test_transformers_reads_the_same_of_the_architectures_it_knows(
    architecture: str, config: Any, tmp_path: Path
) -> None:
    path = write(hf.random_model(config()), architecture, tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    hf.assert_same(hf.run_ours(load_model(path), TOKENS), hf.run_hf(theirs, TOKENS))


def test_qwens_text_is_split_as_in_transformers() -> None:
    assert QWEN_2_PATTERN == tokenization_qwen2.PRETOKENIZE_REGEX
