"""Random Hugging Face models of distinct, prime-ish sizes, saved by transformers itself."""

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


MODELS = {"llama": llama, "mistral": mistral, "gpt_neox": neox, "gptj": gptj}  # by model_type

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}

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
