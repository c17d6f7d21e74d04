"""The rotary settings of a Hugging Face config.json, read and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig, RopeScaling

from .config_keys import ROPE_READ
from .keys import KeyReader, note

ROPE_KINDS = {kind: kind for kind in ("default", "linear", "llama3", "yarn", "dynamic", "longrope")}


class Rope(NamedTuple):
    """The rotary settings of a Hugging Face config.

    Attributes:
      base: of the frequencies.
      share: of each head's dimensions that rotate.
      scaling: of the frequencies.
    """

    base: float
    share: float
    scaling: RopeScaling | None


class RopeKeys(KeyReader):
    """A raw config.json, or an object inside it that holds rotary settings."""

    def rope(
        self,
        base_key: str,
        share_key: str,
        default_share: float,
        max_length: int,
        kinds: Mapping[str, str] = ROPE_KINDS,
        original: int | None = None,
    ) -> Rope:
        """The rotary settings, wherever the release of transformers kept them.

        transformers 5 moved them into `rope_parameters`; earlier releases had them at the top and
        kept only scaling in `rope_scaling`, which counts alone where both are there.

        Args:
          base_key, share_key: what the family calls them at the top.
          default_share: of the dimensions that rotate.
          max_length: in tokens; what scaling takes for the length of before where the config gives
            none.
          kinds, original: as for `rope_scaling`.

        Raises:
          TaskVecError: a kind of scaling that is not supported, or a value that is not.
        """
        base = self.get(base_key, float, 10_000.0)
        share = self.get(share_key, float, default_share)
        new = self.get("rope_parameters", dict, {}, null=True)
        old = self.get("rope_scaling", dict, {}, null=True)
        name = "rope_scaling" if old else "rope_parameters"
        inner = RopeKeys(old or new, f"{self.where}: {name}")
        base = inner.get("rope_theta", float, base)
        share = inner.get("partial_rotary_factor", float, share)
        if base_key != "rope_theta":  # a family with its own names does not read the common ones
            self.agree("rope_theta", base)
            self.agree("partial_rotary_factor", share)
        scaling = inner.rope_scaling(max_length, self, kinds, original)
        return Rope(base, share, scaling)

    def rope_by_layer(
        self, base: float, window_base: float, window_key: str | None, max_length: int
    ) -> tuple[Rope, float]:
        """The rotary settings of a family whose windowed layers have their own (Gemma 3, OLMo 3).

        Args:
          base: default base of the layers without a window.
          window_base: default base of those with one.
          window_key: what earlier releases called the latter; None: they had no name for it.
          max_length: in tokens; what scaling takes for the length of before where none is given.

        Returns:
          The settings of the layers without a window, and the base of those with one.

        Raises:
          TaskVecError: a kind of scaling that is not supported, or any in windowed layers.
        """
        both = self.get("rope_parameters", dict, {}, null=True)
        old = self.get("rope_scaling", dict, {}, null=True)
        base = self.get("rope_theta", float, base)
        if window_key is not None:
            window_base = self.get(window_key, float, window_base)
        where = f"{self.where}: rope_parameters"
        if unknown := sorted(both.keys() - {"full_attention", "sliding_attention"}):
            raise TaskVecError(
                f"{where} has {unknown[:6]}; allowed: the settings of full_attention and"
                " sliding_attention"
            )
        windowed = RopeKeys(both.get("sliding_attention") or {}, f"{where}: sliding_attention")
        full = RopeKeys({**(both.get("full_attention") or {}), **old}, f"{where}: full_attention")
        window_base = windowed.get("rope_theta", float, window_base)
        base = full.get("rope_theta", float, base)
        for keys in (self, windowed, full):
            keys.require("partial_rotary_factor", 1.0, (None, 1.0, 1))
        for key in ("type", "rope_type"):
            windowed.require(key, "default", ("default",))
        windowed.finish_rope("default")
        return Rope(base, 1.0, full.rope_scaling(max_length, None)), window_base

    def rope_scaling(
        self,
        max_length: int,
        outer: RopeKeys | None,
        kinds: Mapping[str, str] = ROPE_KINDS,
        original: int | None = None,
    ) -> RopeScaling | None:
        """The scaling that rotary settings ask for; for the object that holds them.

        Args:
          max_length: of the model, in tokens.
          outer: the config around them; None: they are those of some layers alone.
          kinds: what the family calls the kinds of scaling.
          original: what the length of before the scaling is where the config gives none; None:
            what these settings say, or `max_length`.

        Raises:
          TaskVecError: a kind of scaling that is not supported, or a value that is not.
        """
        if "rope_type" in self:  # it then counts, and an older "type" beside it does not
            kind = kinds[self.require("rope_type", "default", tuple(kinds))]
            self.get("type", str, "", null=True)
        else:
            kind = kinds[self.require("type", "default", tuple(kinds))]
        scaling = None
        if kind == "linear":
            scaling = RopeScaling("linear", factor=self.need("factor", float))
        elif kind == "dynamic":
            factor = self.need("factor", float)
            scaling = RopeScaling("dynamic", factor=factor, original_max_length=max_length)
        if kind in ("llama3", "yarn", "longrope"):
            before = self.get_size("original_max_position_embeddings", max_length)
            before = before if original is None else original
            if outer is not None:
                before = outer.get_size("original_max_position_embeddings", before)
            scaling = getattr(self, f"_{kind}")(before, max_length, outer is not None)
        elif outer is not None:
            outer.get("original_max_position_embeddings", int, 0, null=True)
        self.finish_rope(kind)
        return scaling

    def _llama3(self, before: int, max_length: int, outer: bool) -> RopeScaling:
        del max_length, outer
        return RopeScaling(
            "llama3",
            factor=self.need("factor", float),
            low_freq_factor=self.need("low_freq_factor", float),
            high_freq_factor=self.need("high_freq_factor", float),
            original_max_length=before,
        )

    def _yarn(self, before: int, max_length: int, outer: bool) -> RopeScaling:
        del max_length
        factor = self.need("factor", float)
        attention = self.get("attention_factor", float, 0.0, null=True)
        scales = [self.get(key, float, 0.0, null=True) for key in ("mscale", "mscale_all_dim")]

        def grown(by: float) -> float:
            return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

        inferred = grown(scales[0]) / grown(scales[1]) if all(scales) else grown(1.0)
        return RopeScaling(
            "yarn",
            factor=factor,
            original_max_length=before,
            attention_factor=attention or inferred,
            beta_fast=self.get("beta_fast", float, 0.0, null=True) or 32.0,
            beta_slow=self.get("beta_slow", float, 0.0, null=True) or 1.0,
            # transformers reads it in settings that are those of all layers, and nowhere else
            truncate=self.get("truncate", bool, True) if outer else True,
        )

    def _longrope(self, before: int, max_length: int, outer: bool) -> RopeScaling:
        del outer
        factor = self.get("factor", float, 0.0, null=True) or max_length / before
        attention = self.get("attention_factor", float, 0.0, null=True)
        inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(before))
        return RopeScaling(
            "longrope",
            original_max_length=before,
            divisors=self._numbers("short_factor"),
            long_divisors=self._numbers("long_factor"),
            attention_factor=attention or inferred,
        )

    def _numbers(self, key: str) -> tuple[float, ...]:
        values = self.need(key, list)
        if not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in values):
            raise TaskVecError(f"{self.where}: {key} is {str(values)[:80]}; it must be numbers")
        return tuple(map(float, values))

    def finish_rope(self, kind: str) -> None:
        """Notes the keys inside rope_parameters that transformers does not read for this kind.

        Raises:
          TaskVecError: settings of their own for some layers.
        """
        for key, value in self._raw.items():
            if isinstance(value, dict):
                raise TaskVecError(
                    f"{self.where}: {key} has rotary settings of its own; allowed: the same for all"
                    " layers"
                )
        unread = self._raw.keys() - self._read - ROPE_READ[""] - ROPE_READ[kind]
        if unread:
            note(self.where, tuple(sorted(unread)), f'the rope type "{kind}" of transformers')


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """The inverse of `HFKeys.rope`, as transformers 5 writes it.

    Raises:
      TaskVecError: scaling that Hugging Face's config cannot express.
    """
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.base}
    if rope.share != 1.0:
        values["partial_rotary_factor"] = rope.share
    if rope.scaling is None:
        return values
    scaling = rope.scaling
    values |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "divisors":
        raise TaskVecError(
            "this model came from a GGUF file that stores only the result of its rope scaling,"
            " which a Hugging Face config cannot say; export it from its original weights"
        )
    if scaling.kind in ("llama3", "yarn", "longrope"):
        values["original_max_position_embeddings"] = scaling.original_max_length
    if scaling.kind == "llama3":
        values["low_freq_factor"] = scaling.low_freq_factor
        values["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind in ("yarn", "longrope"):
        values["attention_factor"] = scaling.attention_factor
    if scaling.kind == "yarn":
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        values["truncate"] = scaling.truncate
    if scaling.kind == "longrope":
        values["short_factor"] = list(scaling.divisors)
        values["long_factor"] = list(scaling.long_divisors)
    return values


def context_length(max_length: int, scaling: RopeScaling | None) -> int:
    """Tokens a model reads whose config says `max_length`: "dynamic" scaling is for longer texts,
    up to its factor times as long."""
    if scaling is None or scaling.kind != "dynamic":
        return max_length
    return int(max_length * max(1.0, scaling.factor))


def length_to_hf(config: DecoderConfig) -> int:
    """The inverse of `context_length`."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "dynamic":
        return config.max_length
    return scaling.original_max_length
