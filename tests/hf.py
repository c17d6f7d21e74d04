"""Random Hugging Face models of distinct, prime-ish sizes, saved by transformers itself."""

# Long because: the configurations of all families stand in one table.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
import torch
import transformers

from taskvec_jax.models.model import Model


def llama(**changes: Any) -> transformers.PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 101,
        "num_hidden_layers": 3,
        "hidden_size": 42,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 14,
        "intermediate_size": 53,
        "max_position_embeddings": 89,
        "rms_norm_eps": 1e-5,
    }
    return transformers.LlamaConfig(**{**sizes, **changes})


def mistral(**changes: Any) -> transformers.PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 103,
        "num_hidden_layers": 2,
        "hidden_size": 34,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 47,
        "max_position_embeddings": 83,
        "sliding_window": None,
    }
    return transformers.MistralConfig(**{**sizes, **changes})


def neox(**changes: Any) -> transformers.PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 107,
        "num_hidden_layers": 3,
        "hidden_size": 44,
        "num_attention_heads": 4,
        "intermediate_size": 59,
        "max_position_embeddings": 79,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.4,
        },
    }
    return transformers.GPTNeoXConfig(**{**sizes, **changes})


def gptj(**changes: Any) -> transformers.PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 109,
        "n_layer": 3,
        "n_embd": 36,
        "n_head": 3,
        "rotary_dim": 6,
        "n_positions": 73,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return transformers.GPTJConfig(**{**sizes, **changes})


def _sizes(vocab_size: int, heads: int, kv_heads: int, head_dim: int, width: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "num_hidden_layers": 3,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": 47,
        "max_position_embeddings": 83,
    }


WITHOUT = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def qwen2(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = {**_sizes(101, 4, 2, 10, 36), "sliding_window": 7, "max_window_layers": 1}
    del sizes["head_dim"]
    return transformers.Qwen2Config(**{**sizes, "hidden_size": 40, **changes})


def qwen3(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = {**_sizes(103, 6, 3, 10, 42), "sliding_window": 7, "max_window_layers": 1}
    return transformers.Qwen3Config(**{**sizes, **changes})


def gpt2(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = {"vocab_size": 107, "n_layer": 3, "n_embd": 39, "n_head": 3, "n_positions": 73}
    return transformers.GPT2Config(**{**sizes, "n_inner": 59, **WITHOUT, **changes})


def gemma(**changes: Any) -> transformers.PreTrainedConfig:
    return transformers.GemmaConfig(**{**_sizes(109, 4, 2, 14, 36), **WITHOUT, **changes})


def gemma2(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = {**_sizes(113, 4, 2, 14, 36), "sliding_window": 7, "query_pre_attn_scalar": 23}
    caps = {"attn_logit_softcapping": 1.7, "final_logit_softcapping": 2.3}
    return transformers.Gemma2Config(**{**sizes, **caps, **WITHOUT, **changes})


def gemma3(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = {**_sizes(127, 4, 2, 14, 36), "sliding_window": 7, "query_pre_attn_scalar": 19}
    if "layer_types" not in changes:
        changes = {"sliding_window_pattern": 2, **changes}
    return transformers.Gemma3TextConfig(**{**sizes, **WITHOUT, **changes})


def olmo(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = _sizes(131, 4, 2, 11, 40)
    del sizes["head_dim"]
    return transformers.OlmoConfig(**{**sizes, **WITHOUT, **changes})


def olmo2(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = _sizes(137, 4, 2, 11, 40)
    del sizes["head_dim"]
    return transformers.Olmo2Config(**{**sizes, **WITHOUT, **changes})


def olmo3(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = {**_sizes(139, 4, 2, 11, 40), "num_hidden_layers": 4, "sliding_window": 7}
    del sizes["head_dim"]
    return transformers.Olmo3Config(**{**sizes, **WITHOUT, **changes})


def phi3(**changes: Any) -> transformers.PreTrainedConfig:
    sizes = _sizes(149, 4, 2, 10, 40)
    del sizes["head_dim"]
    return transformers.Phi3Config(**{**sizes, **WITHOUT, **changes})


def granite(**changes: Any) -> transformers.PreTrainedConfig:
    scales = {
        "embedding_multiplier": 1.7,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 1.9,
    }
    sizes = _sizes(151, 4, 2, 10, 40)
    del sizes["head_dim"]
    return transformers.GraniteConfig(**{**sizes, **scales, **WITHOUT, **changes})


MODELS = {  # by model_type
    "llama": llama,
    "mistral": mistral,
    "gpt_neox": neox,
    "gptj": gptj,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gpt2": gpt2,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "phi3": phi3,
    "granite": granite,
}

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
_PLAIN = {"rope_type": "default", "rope_theta": 5_000.0}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 5_000.0, "factor": 3.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 21,
    "beta_fast": 8.0,
}


def _long(half: int) -> dict[str, Any]:
    """Settings of "longrope" for heads of 2 * half dimensions, long from 14 tokens on."""
    return {
        "rope_type": "longrope",
        "rope_theta": 5_000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(half)],
        "long_factor": [1.5 + 0.7 * i for i in range(half)],
        "original_max_position_embeddings": 13,
    }


def _by_layer(full: dict[str, Any], window_base: float = 10_000.0) -> dict[str, Any]:
    windowed = {"rope_type": "default", "rope_theta": window_base}
    return {"full_attention": dict(full), "sliding_attention": windowed}


CONFIGS = {
    "llama": lambda: llama(),
    "llama-all-heads": lambda: llama(num_key_value_heads=6),
    "llama-one-kv-head": lambda: llama(num_key_value_heads=1),
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-head-dim-wide": lambda: llama(head_dim=22),
    "llama-head-dim-narrow": lambda: llama(head_dim=4),
    "llama-attention-bias": lambda: llama(attention_bias=True),
    "llama-mlp-bias": lambda: llama(mlp_bias=True),
    "llama-all-biases-tied": lambda: llama(
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama-rope-base": lambda: llama(
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}
    ),
    "llama-rope-linear": lambda: llama(rope_parameters=_LINEAR),
    "llama-rope-llama3": lambda: llama(rope_parameters=_LLAMA3),
    "llama-rope-llama3-32": lambda: llama(rope_parameters={**_LLAMA3, "factor": 32.0}, head_dim=26),
    "llama-eps": lambda: llama(rms_norm_eps=1e-2),
    "llama-one-layer": lambda: llama(num_hidden_layers=1),
    "mistral": lambda: mistral(),
    "mistral-window": lambda: mistral(sliding_window=5),
    "mistral-tied": lambda: mistral(tie_word_embeddings=True),
    "neox": lambda: neox(),
    "neox-sequential": lambda: neox(use_parallel_residual=False),
    "neox-tied": lambda: neox(tie_word_embeddings=True),
    "neox-gelu-fast": lambda: neox(hidden_act="gelu_fast"),
    "neox-no-attention-bias": lambda: neox(attention_bias=False),
    "neox-full-rotary": lambda: neox(
        hidden_size=40,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 777.0,
            "partial_rotary_factor": 1.0,
        },
    ),
    "neox-rope-linear": lambda: neox(
        rope_parameters={**_LINEAR, "partial_rotary_factor": 0.4},
    ),
    "gptj": lambda: gptj(),
    "gptj-inner": lambda: gptj(n_inner=61),
    "gptj-full-rotary": lambda: gptj(rotary_dim=12),
    "gptj-gelu": lambda: gptj(activation_function="gelu", layer_norm_epsilon=1e-3),
    "qwen2-windows": lambda: qwen2(use_sliding_window=True),
    "qwen3": lambda: qwen3(),
    "gpt2": lambda: gpt2(),
    "gemma": lambda: gemma(),
    "gemma2": lambda: gemma2(),
    "gemma3": lambda: gemma3(),
    "olmo-clipped": lambda: olmo(clip_qkv=0.4),
    "olmo2": lambda: olmo2(),
    "olmo3": lambda: olmo3(rope_parameters=_by_layer(_YARN)),
    "phi3-partial": lambda: phi3(rope_parameters={**_PLAIN, "partial_rotary_factor": 0.6}),
    "granite": lambda: granite(),
}

# Every switch of a family on and off, which takes a compilation each: for the slow tests.
MORE_CONFIGS = {
    "llama-yarn": lambda: llama(rope_parameters=_YARN),
    "llama-yarn-mscale": lambda: llama(
        rope_parameters={**_YARN, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False}
    ),
    "llama-yarn-attention": lambda: llama(rope_parameters={**_YARN, "attention_factor": 1.3}),
    "llama-dynamic": lambda: llama(rope_parameters=_DYNAMIC, max_position_embeddings=13),
    "llama-longrope": lambda: llama(rope_parameters=_long(7)),
    "neox-yarn": lambda: neox(rope_parameters={**_YARN, "partial_rotary_factor": 0.4}),
    "mistral-window-yarn": lambda: mistral(sliding_window=5, rope_parameters=_YARN),
    "qwen2": lambda: qwen2(),
    "qwen2-tied": lambda: qwen2(tie_word_embeddings=True),
    "qwen2-yarn": lambda: qwen2(rope_parameters=_YARN),
    "qwen2-all-heads": lambda: qwen2(num_key_value_heads=4),
    "qwen3-windows": lambda: qwen3(use_sliding_window=True),
    "qwen3-bias-tied": lambda: qwen3(attention_bias=True, tie_word_embeddings=True),
    "qwen3-yarn": lambda: qwen3(rope_parameters=_YARN),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2-gelu": lambda: gpt2(activation_function="gelu", layer_norm_epsilon=1e-3),
    "gpt2-unscaled": lambda: gpt2(scale_attn_weights=False),
    "gemma-untied": lambda: gemma(tie_word_embeddings=False),
    "gemma-bias-one-kv-head": lambda: gemma(attention_bias=True, num_key_value_heads=1),
    "gemma2-no-caps": lambda: gemma2(attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma2-full": lambda: gemma2(layer_types=["full_attention"] * 3),
    "gemma2-all-windows": lambda: gemma2(layer_types=["sliding_attention"] * 3),
    "gemma2-bias-linear": lambda: gemma2(attention_bias=True, rope_parameters=_LINEAR),
    "gemma2-gelu": lambda: gemma2(hidden_activation="gelu"),
    "gemma3-linear": lambda: gemma3(rope_parameters=_by_layer(_LINEAR)),
    "gemma3-bias-cap": lambda: gemma3(attention_bias=True, final_logit_softcapping=2.1),
    "gemma3-full": lambda: gemma3(layer_types=["full_attention"] * 3),
    "gemma3-all-windows": lambda: gemma3(layer_types=["sliding_attention"] * 3),
    "gemma3-untied": lambda: gemma3(tie_word_embeddings=False),
    "gemma3-longrope": lambda: gemma3(rope_parameters=_by_layer(_long(7))),
    "olmo": lambda: olmo(),
    "olmo-bias-tied": lambda: olmo(attention_bias=True, tie_word_embeddings=True),
    "olmo-linear": lambda: olmo(rope_parameters=_LINEAR),
    "olmo2-bias": lambda: olmo2(attention_bias=True, num_key_value_heads=4),
    "olmo2-tied-eps": lambda: olmo2(tie_word_embeddings=True, rms_norm_eps=1e-3),
    "olmo3-plain": lambda: olmo3(),
    "olmo3-bases": lambda: olmo3(rope_parameters=_by_layer(_PLAIN, 777.0)),
    "olmo3-full": lambda: olmo3(layer_types=["full_attention"] * 4),
    "phi3": lambda: phi3(),
    "phi3-window": lambda: phi3(sliding_window=6, tie_word_embeddings=True),
    "phi3-longrope": lambda: phi3(rope_parameters=_long(5), original_max_position_embeddings=13),
    "phi3-longrope-short": lambda: phi3(
        rope_parameters=_long(5), original_max_position_embeddings=50
    ),
    "granite-bias": lambda: granite(attention_bias=True, mlp_bias=True),
    "granite-tied": lambda: granite(tie_word_embeddings=True, residual_multiplier=1.0),
    "granite-llama3": lambda: granite(rope_parameters=_LLAMA3),
}


def random_model(config: transformers.PreTrainedConfig, seed: int = 0) -> Any:
    """A model in which every tensor matters: biases and norm scales are random too."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(0.0, 0.15)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor += 1.0
    return model


def save_tokenizer(directory: Path, vocab_size: int) -> None:
    """A tokenizer of exactly as many tokens as the embedding has rows."""
    vocab = {"<unk>": 0, **{f"w{i}": i for i in range(1, vocab_size)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )


def save(model: Any, directory: Path, **how: Any) -> Path:
    """A Hugging Face directory, as transformers writes it, with a tokenizer."""
    model.save_pretrained(directory, **how)
    save_tokenizer(directory, model.config.vocab_size)
    return directory


class Run(NamedTuple):
    """What a model computes on some tokens.

    Attributes:
      residuals: [L, T, D], after every block.
      logits: [T, V].
    """

    residuals: np.ndarray
    logits: np.ndarray


def blocks(model: Any) -> Any:
    """The list of blocks of a Hugging Face model, whatever it is called there."""
    inner = model.base_model
    return inner.h if hasattr(inner, "h") else inner.layers


def run_hf(model: Any, tokens: np.ndarray) -> Run:
    """Residuals by hooks: the hidden states that transformers returns end in the final norm."""
    kept: list[np.ndarray] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        del module, inputs
        value = output[0] if isinstance(output, tuple) else output
        kept.append(value[0].detach().float().numpy())

    hooks = [block.register_forward_hook(keep) for block in blocks(model)]
    with torch.no_grad():
        logits = model(torch.tensor(tokens[None].astype(np.int64))).logits[0]
    for hook in hooks:
        hook.remove()
    return Run(np.stack(kept), logits.float().numpy())


def run_ours(model: Model, tokens: np.ndarray) -> Run:
    """Every position is read as the last one of a row of its own."""
    rows = np.tile(tokens, (len(tokens), 1)).astype(np.int32)

    @jax.jit
    def read(params: Any, rows: jax.Array, places: jax.Array) -> Any:
        return model.decoder.apply(params, rows, places, method="read")

    residuals, logits = read(model.params, rows, np.arange(len(tokens), dtype=np.int32))
    return Run(np.asarray(residuals, np.float32), np.asarray(logits, np.float32))


def assert_same(ours: Run, theirs: Run, tolerance: float = 1e-4) -> None:
    """The relative part is of the largest value of a position: a sum of large numbers that comes
    out small carries their rounding."""
    places = [f"layer {layer}" for layer in range(len(theirs.residuals))]
    pairs = [*zip(places, ours.residuals, theirs.residuals, strict=True)]
    for place, a, b in [*pairs, ("logits", ours.logits, theirs.logits)]:
        allowed = tolerance * (1 + np.abs(b).max(axis=-1, keepdims=True))
        worst = (np.abs(a - b) / allowed).max()
        assert worst <= 1, f"{place}: {worst:.2f} times the difference allowed"
