"""The families of models that are converted, found by what files of each format call them.

A family is one record: `FAMILY` in the module here that has the name of the family's block. The
engine's list of blocks is thus the list of families, and every registry below is derived from it.
To add one, write `taskvec_jax/transformer/blocks/NAME.py` and `convert/families/NAME.py`, and list
NAME in `taskvec_jax/transformer/blocks/__init__.py`.
"""

from __future__ import annotations

import importlib

from taskvec_jax.transformer.config import FAMILIES as BLOCKS

from .family import Family

FAMILIES: dict[str, Family] = {  # `DecoderConfig.family` ->
    name: importlib.import_module(f".{name}", __name__).FAMILY for name in BLOCKS
}
HF_FAMILIES: dict[str, Family] = {  # `model_type` of config.json ->
    kind: family for family in FAMILIES.values() for kind in family.model_types
}
GGUF_FAMILIES: dict[str, Family] = {  # `general.architecture` ->
    kind: family for family in FAMILIES.values() for kind in family.architectures
}
