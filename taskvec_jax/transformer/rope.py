"""Rotary frequencies: how fast each pair of dimensions turns, and how that is slowed down.

Shapes: B rows, T tokens, R dimensions of a head that rotate.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.errors import TaskVecError

ROPE_SCALINGS = ("linear", "llama3", "yarn", "dynamic", "longrope", "divisors")
BY_LENGTH = ("dynamic", "longrope")  # the frequencies depend on how long a text is


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are slowed down, so that longer contexts can be read.

    Attributes:
      kind: "linear": every frequency is divided by `factor`. "llama3": only the slow ones are,
        with a smooth passage between (Llama 3.1). "yarn": the same with another passage (Peng et
        al. 2023, arXiv 2309.00071). "dynamic": texts longer than original_max_length raise the
        base. "longrope": each by a number of its own, for which there are two sets (Phi-3).
        "divisors": each by a number of its own, which is how GGUF files store the result of
        "llama3".
      factor: above 0.
      low_freq_factor, high_freq_factor: wavelengths above original_max_length / low are divided
        by `factor`, those below original_max_length / high are left alone ("llama3" only).
      original_max_length: context length before the scaling, in tokens.
      divisors: R / 2 numbers above 0 ("divisors"; of "longrope", for texts of up to
        original_max_length tokens).
      long_divisors: the same for longer texts ("longrope" only).
      attention_factor: sine and cosine are multiplied by it ("yarn" and "longrope").
      beta_fast, beta_slow: turns within original_max_length from which, and up to which, a
        frequency is left alone, and divided ("yarn" only).
      truncate: whether the ends of that passage are rounded to whole dimensions ("yarn" only).
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192
    divisors: tuple[float, ...] = ()
    long_divisors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        for name in ("divisors", "long_divisors"):  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in ROPE_SCALINGS:
            raise TaskVecError(
                f"config: rope scaling {self.kind!r}; allowed: {', '.join(ROPE_SCALINGS)}"
            )
        numbers = (
            *(self.factor, self.low_freq_factor, self.original_max_length),
            *(self.attention_factor, self.beta_fast, self.beta_slow),
            *(*self.divisors, *self.long_divisors),
        )
        if not all(math.isfinite(n) and n > 0 for n in numbers):
            raise TaskVecError(f"config: {self} has numbers that are not above 0")
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor < math.inf:
            raise TaskVecError(f"config: {self}: low_freq_factor must be below high_freq_factor")

    def check(self, base: float, rope_dim: int) -> None:
        """Refuses scaling that does not fit the dimensions that rotate.

        Raises:
          TaskVecError: it has another number of divisors, or a formula that divides by 0.
        """
        wanted = {"divisors": (self.divisors,), "longrope": (self.divisors, self.long_divisors)}
        for divisors in wanted.get(self.kind, ()):
            if len(divisors) != rope_dim // 2:
                raise TaskVecError(
                    f"config: {len(divisors)} rope divisors; rope_dim {rope_dim} needs"
                    f" {rope_dim // 2}"
                )
        if (self.kind == "dynamic" and rope_dim < 4) or (self.kind == "yarn" and base == 1):
            raise TaskVecError(
                f"config: rope scaling {self.kind!r} with rope_dim {rope_dim} and rope_base {base}"
                " is not defined"
            )


def rope_divisors(base: float, rope_dim: int, scaling: RopeScaling | None) -> np.ndarray:
    """What each rotary frequency is divided by, float64 [R / 2]; ones without scaling.

    Of the kinds in `BY_LENGTH`, for texts of up to `original_max_length` tokens.
    """
    half = rope_dim // 2
    if scaling is None or scaling.kind == "dynamic":
        return np.ones(half)
    if scaling.kind in ("divisors", "longrope"):
        return np.array(scaling.divisors)
    if scaling.kind == "linear":
        return np.full(half, scaling.factor)
    if scaling.kind == "yarn":
        kept = _kept_by_yarn(base, rope_dim, scaling)
    else:  # Llama 3.1: how many times a frequency turns within the original context decides
        turns = scaling.original_max_length * base ** (-np.arange(half) / half) / (2 * np.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / (kept + (1 - kept) / scaling.factor)


def _kept_by_yarn(base: float, rope_dim: int, scaling: RopeScaling) -> np.ndarray:
    """How much of each frequency is left alone, from 0 to 1, [R / 2]."""

    def dimension(turns: float) -> float:  # the one that turns so often in the original context
        wavelength = scaling.original_max_length / turns
        return rope_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope_dim - 1)
    if low == high:
        high += 0.001  # as in transformers
    return 1 - np.clip((np.arange(rope_dim // 2) - low) / (high - low), 0.0, 1.0)


def frequencies(
    base: float, rope_dim: int, scaling: RopeScaling | None, lengths: jax.Array | None, dtype: Any
) -> jax.Array:
    """Angle by which each pair of dimensions turns from one token to the next.

    Args:
      lengths: int [B], tokens of each text; needed by the kinds of scaling in `BY_LENGTH` alone.

    Returns:
      [R / 2], or [B, 1, R / 2] for scaling in `BY_LENGTH`.
    """
    half = rope_dim // 2
    powers = -jnp.arange(half, dtype=dtype) / half
    if scaling is None:
        return base**powers
    if scaling.kind == "dynamic":
        assert lengths is not None
        before = scaling.original_max_length
        longer = jnp.maximum(lengths, before)[:, None, None].astype(dtype) / before
        stretched = scaling.factor * longer - (scaling.factor - 1)
        return (base * stretched ** (rope_dim / (rope_dim - 2))) ** powers
    divisors = jnp.asarray(rope_divisors(base, rope_dim, scaling), dtype)
    if scaling.kind == "longrope":
        assert lengths is not None
        is_long = (lengths > scaling.original_max_length)[:, None, None]
        divisors = jnp.where(is_long, jnp.asarray(scaling.long_divisors, dtype), divisors)
    return base**powers / divisors
