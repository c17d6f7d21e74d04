"""Shapes and constants of a decoder, frozen and hashable; no arrays live here.

Letters used for shapes everywhere: B rows, T tokens, L layers, D width of the residual stream,
H heads, G key/value heads, K size of a head, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from taskvec_jax.errors import TaskVecError

DTYPES = ("float32", "bfloat16", "float16", "float64")
QUANTIZATIONS = ("none", "int8")
FAMILIES = ("llama", "pythia", "gptj")
GELUS = ("exact", "tanh")
ROPE_SCALINGS = ("linear", "llama3", "divisors")
_SIZES = (
    "vocab_size",
    "num_layers",
    "width",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_width",
    "max_length",
)
LARGEST = 1 << 24  # of any size: beyond every real model, and small enough to multiply safely


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are slowed down, so that longer contexts can be read.

    Attributes:
      kind: "linear": every frequency is divided by `factor`. "llama3": only the slow ones are,
        with a smooth passage between (Llama 3.1). "divisors": each by a number of its own, which
        is how GGUF files store the result of "llama3".
      factor: above 0.
      low_freq_factor, high_freq_factor: wavelengths above original_max_length / low are divided
        by `factor`, those below original_max_length / high are left alone ("llama3" only).
      original_max_length: context length before the scaling ("llama3" only).
      divisors: rope_dim / 2 numbers above 0 ("divisors" only).
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192
    divisors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "divisors", tuple(self.divisors))  # JSON has lists only
        if self.kind not in ROPE_SCALINGS:
            raise TaskVecError(
                f"config: rope scaling {self.kind!r}; allowed: {', '.join(ROPE_SCALINGS)}"
            )
        numbers = (self.factor, self.low_freq_factor, self.original_max_length, *self.divisors)
        if not all(math.isfinite(n) and n > 0 for n in numbers):
            raise TaskVecError(f"config: {self} has numbers that are not above 0")
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor < math.inf:
            raise TaskVecError(f"config: {self}: low_freq_factor must be below high_freq_factor")


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
      rope_scaling: how the rotary frequencies are slowed down; None: not at all.
      max_length: longest context the weights were trained on, in tokens; longer texts are refused.
      sliding_window: how many tokens a token sees, itself included, the nearest ones before it
        (Mistral); None: all of its text.
      tied_unembed: the unembedding is the transposed embedding.
      attention_bias: biases on query, key, value and out.
      mlp_bias: biases in the MLP.
      unembed_bias: a bias on the logits; only where the unembedding is not tied.
      parallel_residual: attention and MLP both read the block's input (GPT-NeoX only).
      gelu: "exact" (erf) or "tanh"; read by the MLP of GPT-NeoX and GPT-J only.
      dtype: of the parameters, one of `DTYPES`. The residual stream, norms, softmax and logits
        stay float32 in half precision (float64 throughout for float64).
      quantization: "none": every parameter in `dtype`. "int8": the kernels of linear maps as int8
        with a float32 scale for each output channel (see quantization.py); products are in `dtype`.
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
    rope_scaling: RopeScaling | None = None
    unembed_bias: bool = False
    quantization: str = "none"
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name in _SIZES if self.sliding_window is None else (*_SIZES, "sliding_window"):
            got = getattr(self, name)
            if not isinstance(got, int) or isinstance(got, bool) or not 1 <= got <= LARGEST:
                raise TaskVecError(
                    f"config: {name} is {got!r}; it must be a whole number from 1 to {LARGEST}"
                )
        choices = {
            "family": FAMILIES,
            "dtype": DTYPES,
            "gelu": GELUS,
            "quantization": QUANTIZATIONS,
        }
        for name, allowed in choices.items():
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
        if not (0 < self.norm_eps < 1 and 0 < self.rope_base < math.inf):
            raise TaskVecError(
                f"config: norm_eps {self.norm_eps} must be between 0 and 1, and rope_base"
                f" {self.rope_base} above 0"
            )
        if self.tied_unembed and self.unembed_bias:
            raise TaskVecError("config: a tied unembedding with a bias is not supported")
        scaling = self.rope_scaling
        if scaling and scaling.kind == "divisors" and len(scaling.divisors) != self.rope_dim // 2:
            raise TaskVecError(
                f"config: {len(scaling.divisors)} rope divisors; rope_dim {self.rope_dim} needs"
                f" {self.rope_dim // 2}"
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
        values = dict(values)
        if values.get("weights") == "whole":  # what checkpoints of earlier versions call "none"
            del values["weights"]
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise TaskVecError(f"config: unknown keys {unknown}; allowed: {sorted(known)}")
        try:
            if isinstance(scaling := values.get("rope_scaling"), dict):
                values = {**values, "rope_scaling": RopeScaling(**scaling)}
            return cls(**values)
        except TypeError as error:
            raise TaskVecError(f"config: {error}") from None
