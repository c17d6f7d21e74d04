"""The text part of a model that reads images too, as the decoder that it is.

Gemma 3 from 4B on is published as `Gemma3ForConditionalGeneration`: its config.json holds that of
the decoder as `text_config`, and its files hold the decoder's tensors under another prefix beside
those of the part for images, which are left alone. A prompt of words never meets the latter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskvec_jax.errors import TaskVecError

from .names import NamedSource
from .rules import Source

# model_type -> what transformers' class of its text_config takes for keys that are left out there,
# where a config of the text alone has to have them.
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "gemma3_text",
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    }
}
# What transformers 4 and 5 write before the names of the decoder's tensors.
_PREFIX = re.compile(r"^language_model\.(?=model\.|lm_head\.)|^model\.language_model\.")
_IMAGES = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


def text_config(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config.json of the text part; the same one if there is nothing else.

    Raises:
      TaskVecError: the text part is missing.
    """
    defaults = WRAPPERS.get(str(raw.get("model_type")))
    if defaults is None:
        return dict(raw)
    inner = raw.get("text_config")
    if not isinstance(inner, dict):
        raise TaskVecError(f"{where}: text_config is missing; the file is not complete")
    tied = {k: raw[k] for k in ("tie_word_embeddings",) if k in raw and k not in inner}
    return {**defaults, **tied, **inner, "architectures": raw.get("architectures")}


def text_source(source: Source) -> Source:
    """The tensors of the text part, by the names they have in a model of text alone."""
    stored: dict[str, str] = {}
    for name in source.shapes():
        if _IMAGES.match(name):
            continue
        found = _PREFIX.match(name)
        if found is None:
            stored[name] = name
        else:
            rest = name[found.end() :]
            inside = not rest.startswith(("model.", "lm_head."))
            stored[f"model.{rest}" if inside else rest] = name
    return NamedSource(source, stored)
