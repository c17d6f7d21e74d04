"""params.json of Meta's own releases of LLaMA; the table of their tensors is `llama.META`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer.config import DecoderConfig, RopeScaling

from .keys import KeyReader
from .rules import Source


class MetaKeys(KeyReader):
    """A raw params.json."""

    def finish(self, harmless: Iterable[str]) -> None:
        """Refuses keys of Meta's params.json that nobody read and that may change the numbers."""
        unknown = sorted(self._raw.keys() - self._read - set(harmless))
        if unknown := [key for key in unknown if self._raw[key] is not None]:
            raise TaskVecError(
                f"{self.where}: this project does not compute what the keys {unknown[:12]} ask for;"
                " remove them only where they change nothing"
            )


def config_from_meta(
    raw: Mapping[str, Any], tensors: Source, where: str, dtype: str
) -> DecoderConfig:
    """Reads params.json of Meta's own releases.

    Raises:
      TaskVecError: a key is missing, unsupported or unknown.
    """
    keys = MetaKeys(raw, where)
    shapes = tensors.shapes()
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if len(shapes.get(name, ())) != 2:
            raise TaskVecError(f"{where}: {name} is missing; the download is not complete")
    width, heads = keys.need_size("dim"), keys.need_size("n_heads")
    head_dim = max(1, width // heads)
    scaling = None
    if keys.get("use_scaled_rope", bool, False):
        # Meta's params.json leaves the factor to its program: 8 in 3.1, 32 in the small 3.2.
        if width < 4096 and "rope_scaling_factor" not in raw:
            raise TaskVecError(
                f"{where}: use_scaled_rope without rope_scaling_factor, which differs between"
                ' Llama 3.1 (8) and 3.2 (32); add "rope_scaling_factor" to the file'
            )
        scaling = RopeScaling("llama3", factor=keys.get("rope_scaling_factor", float, 8.0))
    config = DecoderConfig(
        family="llama",
        vocab_size=shapes["tok_embeddings.weight"][0],
        num_layers=keys.need_size("n_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=keys.get_size("n_kv_heads", heads),
        head_dim=head_dim,
        mlp_width=shapes["layers.0.feed_forward.w1.weight"][0],
        norm_eps=keys.need("norm_eps", float),
        rope_base=keys.get("rope_theta", float, 10_000.0),
        rope_dim=head_dim,
        rope_scaling=scaling,
        max_length=keys.get_size("max_seq_len", 2048),
        dtype=dtype,
    )
    keys.finish({"vocab_size", "multiple_of", "ffn_dim_multiplier", "max_batch_size"})
    return config
