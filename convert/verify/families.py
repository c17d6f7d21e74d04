"""Every family against transformers: random models of odd sizes, saved by transformers itself.

Each has prompts longer than its window, and the settings that its family differs by: windows in
some layers, bases of rotation by layer, caps, scales, biases.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskvec_jax.models.loading import load_model

from ..families import HF_FAMILIES
from .certificate import Run, check_run
from .ours import run_ours
from .reference import run_hugging_face, write_random_model

DTYPES = ("float32", "float64", "bfloat16")
LENGTHS = (19, 23)  # tokens of the prompts
_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "num_hidden_layers": 5,
    "hidden_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 53,
    "max_position_embeddings": 83,
}
_GPT: dict[str, Any] = {"vocab_size": 101, "n_layer": 5, "n_embd": 44, "n_head": 4}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 21,
}
_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
SETTINGS: dict[str, dict[str, Any]] = {  # model_type -> its config.json
    "llama": {**_SIZES, "head_dim": 14, "attention_bias": True},
    "mistral": {**_SIZES, "head_dim": 14, "sliding_window": 7},
    "gpt_neox": {
        **_SIZES,
        "num_key_value_heads": 4,
        "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.4},
    },
    "gptj": {**_GPT, "rotary_dim": 6, "n_positions": 83},
    "qwen2": {**_SIZES, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": {**_SIZES, "head_dim": 14, "rope_parameters": _YARN},
    "gpt2": {**_GPT, "n_positions": 83},
    "gemma": {**_SIZES, "head_dim": 14},
    "gemma2": {**_SIZES, "head_dim": 14, "sliding_window": 7, "query_pre_attn_scalar": 19},
    "gemma3_text": {
        **_SIZES,
        "head_dim": 14,
        "sliding_window": 7,
        "query_pre_attn_scalar": 19,
        "sliding_window_pattern": 2,
    },
    "olmo": {**_SIZES, "clip_qkv": 0.7},
    "olmo2": _SIZES,
    "olmo3": {
        **_SIZES,
        "sliding_window": 7,
        "rope_parameters": {"full_attention": _YARN, "sliding_attention": _PLAIN},
    },
    "phi3": {**_SIZES, "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.6}},
    "granite": {
        **_SIZES,
        "embedding_multiplier": 1.7,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 1.9,
    },
}


class Row(NamedTuple):
    """How far a family is from transformers in one precision.

    Attributes:
      kind: its `model_type`.
      dtype: of the parameters.
      residual: the largest norm of a difference of residual streams, of all layers and tokens, as
        a share of the norm of the reference there.
      logits: the same of the logits.
      top1: share of tokens after which both find the same token most likely.
    """

    kind: str
    dtype: str
    residual: float
    logits: float
    top1: float


def compare_family(kind: str, directory: Path, dtypes: tuple[str, ...] = DTYPES) -> Iterator[Row]:
    """Compares a model in a directory with transformers, in each precision.

    Half precision is held against transformers in float32, because both round.

    Raises:
      TaskVecError: the directory cannot be read, or gives numbers that are not finite.
    """
    model = load_model(directory, "float32")
    rng = np.random.RandomState(0)
    rows = [rng.randint(1, model.config.vocab_size, size).tolist() for size in LENGTHS]
    for dtype in dtypes:
        exact = "float64" if dtype == "float64" else "float32"
        ours, reference = run_ours(model, dtype, rows), run_hugging_face(directory, exact, rows)
        check_run(f"{kind} in {dtype}", ours)
        yield Row(
            kind,
            dtype,
            _distance(ours.sites, reference.sites),
            _distance(ours.logits, reference.logits),
            _agreement(ours, reference),
        )


def _distance(ours: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """The largest relative norm of a difference, over texts, sites and tokens."""
    return max(
        float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())
        for a, b in zip(ours, reference, strict=True)
    )


def _agreement(ours: Run, reference: Run) -> float:
    pairs = zip(ours.logits, reference.logits, strict=True)
    return float(np.mean([np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in pairs]))


def all_families() -> Iterator[Row]:
    """A row for each family and precision."""
    for kind in HF_FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            write_random_model(SETTINGS[kind], kind, Path(scratch))
            yield from compare_family(kind, Path(scratch))


def table_lines(rows: Iterator[Row]) -> Iterator[str]:
    """The table, in Markdown: a line a family, and in each precision the largest relative error of
    a residual stream, that of logits, and how often the same token is most likely."""
    yield f"| family | {' | '.join(DTYPES)} |"
    yield "|---" * (1 + len(DTYPES)) + "|"
    for kind, found in itertools.groupby(rows, key=lambda row: row.kind):
        cells = [f"{row.residual:.1e}, {row.logits:.1e}, {row.top1:.1%}" for row in found]
        yield f"| {kind} | {' | '.join(cells)} |"
