# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""Shapes and constants of a decoder, frozen and hashable; no arrays live here.

Letters used for shapes everywhere: B rows, T tokens, L layers, D width of the residual stream,
H heads, G key/value heads, K size of a head, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError
from taskvec_jax.narrowing import is_mapping
from taskvec_jax.transformer.rope import RopeScaling

DTYPES = ("float32", "bfloat16", "float16", "float64")
QUANTIZATIONS = ("none", "int8", "int4")
PRECISIONS = ("highest", "high", "default")
FAMILIES = tuple(  # the modules of blocks/
    sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "blocks")]))
)
GELUS = ("exact", "tanh")
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
_ABOVE_ZERO = (  # numbers, or None where a model does without
    "window_rope_base",
    "attention_scale",
    "attention_softcap",
    "logit_softcap",
    "clip_qkv",
    "embed_scale",
    "residual_scale",
    "logit_divisor",
)
LARGEST = 1 << 24  # of any size: beyond every real model, and small enough to multiply safely


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
      rope_dim: how many of the K dimensions rotate; even, at most K; 0 with learned positions.
      rope_scaling: how the rotary frequencies are slowed down; None: not at all.
      max_length: longest context the weights were trained on, in tokens; longer texts are refused.
      sliding_window: how many tokens a token sees, itself included, the nearest ones before it
        (Mistral); None: all of its text.
      window_layers: which layers have the sliding window, a bool for each; empty: all of them.
      window_rope_base: base of the rotary frequencies of these layers, which are not scaled then
        (Gemma 3, OLMo 3); None: they rotate as the others do.
      learned_positions: a learned vector for each of the max_length positions is added to the
        embedding, and nothing rotates (GPT-2).
      tied_unembed: the unembedding is the transposed embedding.
      attention_bias: biases on query, key, value and out.
      mlp_bias: biases in the MLP.
      unembed_bias: a bias on the logits; only where the unembedding is not tied.
      attention_scale: queries times keys are multiplied by it; None: K ** -0.5.
      attention_softcap: scores s become cap * tanh(s / cap) (Gemma 2); None: they stay.
      logit_softcap: the same of the logits.
      clip_qkv: queries, keys and values are cut at +- this number (OLMo); None: they are not.
      embed_scale: the embedding is multiplied by it (Gemma, Granite).
      residual_scale: what attention and MLP add to the residual stream is multiplied by it
        (Granite only).
      logit_divisor: the logits are divided by it (Granite), before the cap.
      parallel_residual: attention and MLP both read the block's input (GPT-NeoX only).
      gelu: "exact" (erf) or "tanh"; read by the MLPs of GPT-NeoX, GPT-J, GPT-2 and Gemma only.
      dtype: of the parameters, one of `DTYPES`. The residual stream, norms, softmax and logits
        stay float32 in half precision (float64 throughout for float64).
      quantization: "none": every parameter in `dtype`. "int8": the kernels of linear maps as int8
        with a float32 scale for each output channel. "int4": four bits a number, with a scale for
        each group of inputs of a channel (see quantization.py). Products in `dtype`.
      matmul_precision: how products of float32 numbers are computed, one of `PRECISIONS`.
        "highest": in float32 on every device. "high": with half of the digits (TF32 on an NVIDIA
        GPU, three products of bfloat16 on a TPU). "default": as the device does if nobody says
        (TF32, one product of bfloat16). A CPU knows one precision. In half precision it concerns
        attention alone, which is computed in "high" at most; see linear.py.
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
    matmul_precision: str = "highest"
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] = ()
    window_rope_base: float | None = None
    learned_positions: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    clip_qkv: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0

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
            "matmul_precision": PRECISIONS,
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
        least = 0 if self.learned_positions else 2
        most = 0 if self.learned_positions else self.head_dim
        if self.rope_dim % 2 or not least <= self.rope_dim <= most:
            raise TaskVecError(
                f"config: rope_dim is {self.rope_dim}; it must be even and between 2 and"
                f" head_dim {self.head_dim}, or 0 with learned positions"
            )
        if not (0 < self.norm_eps < 1 and 0 < self.rope_base < math.inf):
            raise TaskVecError(
                f"config: norm_eps {self.norm_eps} must be between 0 and 1, and rope_base"
                f" {self.rope_base} above 0"
            )
        inputs = (self.width, self.mlp_width, self.head_dim)
        if self.quantization == "int4" and any(size % 2 for size in inputs):
            raise TaskVecError(
                f"config: int4 packs inputs in pairs, and width {self.width}, mlp_width"
                f" {self.mlp_width} or head_dim {self.head_dim} is odd; use int8"
            )
        if self.tied_unembed and self.unembed_bias:
            raise TaskVecError("config: a tied unembedding with a bias is not supported")
        if self.rope_scaling is not None:
            self.rope_scaling.check(self.rope_base, self.rope_dim)
        self._check_layers_and_scales()

    def _check_layers_and_scales(self) -> None:
        object.__setattr__(self, "window_layers", tuple(self.window_layers))  # JSON has lists
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TaskVecError(f"config: {name} is {value}; it must be above 0")
        if self.window_layers and (
            self.sliding_window is None
            or len(self.window_layers) != self.num_layers
            or not all(isinstance(layer, bool) for layer in self.window_layers)
        ):
            raise TaskVecError(
                f"config: window_layers is {self.window_layers} with sliding_window"
                f" {self.sliding_window}; it must be a bool for each of {self.num_layers} layers,"
                " and a window be there"
            )
        if self.window_rope_base is not None and not self.window_layers:
            raise TaskVecError("config: window_rope_base needs window_layers")

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
            if is_mapping(scaling := values.get("rope_scaling")):
                values = {**values, "rope_scaling": RopeScaling(**scaling)}
            return cls(**values)
        except TypeError as error:
            raise TaskVecError(f"config: {error}") from None
