"""Hugging Face models with hooks: the oracle for reads, edits and generation."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hf
import numpy as np
import torch
from slow import SLOW

from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model

FAMILIES = {
    "llama": "llama",
    "mistral": "mistral-window",
    "neox": "neox",
    "gptj": "gptj",
    "gemma3": "gemma3",
    "gpt2": "gpt2",
}
BLOCKS = ("llama", "neox", "gemma3")  # Mistral's block is LLaMA's
if SLOW:
    MORE = ("qwen2-windows", "qwen3", "gemma", "gemma2", "olmo-clipped", "olmo2", "olmo3")
    MORE = (*MORE, "phi3-partial", "granite")
    FAMILIES |= {name: name for name in MORE}
    BLOCKS = (*BLOCKS, "gptj", "gpt2", *MORE)
Write = Callable[[str, int, torch.Tensor], torch.Tensor]  # (site, layer, value [B, T, ...])


@functools.cache
def pair(family: str) -> tuple[Any, Model]:
    """A random model of transformers, and ours with the same weights."""
    reference = hf.random_model(hf.CONFIGS[FAMILIES[family]](), seed=3)
    reference.set_attn_implementation("eager")
    with tempfile.TemporaryDirectory() as scratch:
        return reference, load_model(hf.save(reference, Path(scratch)))


def _child(module: Any, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


@contextlib.contextmanager
def visiting(model: Any, num_heads: int, visit: Write) -> Iterator[None]:
    """Shows `visit` the value at every site of every layer; what it gives goes on."""
    hooks = []

    def after(site: str, layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            del module, inputs
            if isinstance(output, tuple):
                return (visit(site, layer, output[0]), *output[1:])
            return visit(site, layer, output)

        return hook

    def before(layer: int) -> Any:
        def hook(module: Any, inputs: Any) -> Any:
            del module
            x = inputs[0]
            heads = x.reshape(*x.shape[:2], num_heads, -1)
            return (visit("head", layer, heads).reshape(x.shape),)

        return hook

    for layer, block in enumerate(hf.blocks(model)):
        attention = _child(block, "self_attn", "attention", "attn")
        out = _child(attention, "o_proj", "dense", "out_proj", "c_proj")
        hooks += [
            out.register_forward_pre_hook(before(layer)),
            attention.register_forward_hook(after("attn_out", layer)),
            block.mlp.register_forward_hook(after("mlp_out", layer)),
            block.register_forward_hook(after("resid", layer)),
        ]
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def read_all(model: Any, num_heads: int, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Site -> value after every layer [B, T, L, ...]; the pattern too."""
    kept: dict[str, list[np.ndarray]] = {}

    def visit(site: str, layer: int, value: torch.Tensor) -> torch.Tensor:
        del layer
        kept.setdefault(site, []).append(value.numpy())
        return value

    with visiting(model, num_heads, visit):
        output = model(torch.tensor(tokens).long(), output_attentions=True)
    out = {site: np.stack(values, axis=2) for site, values in kept.items()}
    patterns = [one.numpy() for one in output.attentions]  # [B, H, T, S] each
    return out | {"pattern": np.stack(patterns, axis=2).transpose(0, 3, 2, 1, 4)}


def logits(model: Any, num_heads: int, tokens: np.ndarray, write: Write) -> np.ndarray:
    """Logits [B, T, V] with values written on the way."""
    with visiting(model, num_heads, write):
        return model(torch.tensor(tokens).long()).logits.numpy()


def generated(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers' own greedy generation adds to one prompt; no token ends it."""
    return generated_together(model, [prompt], count)[0]


def generated_together(model: Any, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """What it adds to each of several prompts, padded on the left to the longest."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    seen = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        made = model.generate(
            ids, attention_mask=seen, do_sample=False, max_new_tokens=count, pad_token_id=0
        )
    return made[:, length:].tolist()


def assert_close(got: Any, want: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the size of the numbers at a position: sums of large numbers that
    come out small carry their rounding."""
    got = np.asarray(got)
    assert got.shape == want.shape
    allowed = tolerance * (1 + np.abs(want).max(axis=-1, keepdims=True))
    worst = (np.abs(got - want) / allowed).max()
    assert worst <= 1, f"{worst:.2f} times the difference allowed"
