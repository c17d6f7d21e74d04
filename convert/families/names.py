"""Gives tensors the names of a family's table, whichever names transformers saved them under.

What `from_pretrained` accepts is accepted here: a name that is new in memory (`lm_head.weight` of a
GPT-NeoX), the prefix of the base model left out or put before everything, and the one tensor of a
tied pair that was saved. What it does not accept, the prefixes of wrappers, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from taskvec_jax.errors import TaskVecError

from .family import Family
from .rules import Shapes, Source

_WRAPPERS = {  # prefix -> who puts it there
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "PEFT",
}


class NamedSource:
    """A source whose tensors go by other names.

    Attributes:
      where: the file or directory, for messages.
    """

    def __init__(self, source: Source, stored: Mapping[str, str]) -> None:
        """Takes a source, and name -> the name that the source has for it."""
        self.where = source.where
        self._source, self._stored = source, stored

    def shapes(self) -> Shapes:
        """See `rules.Source`."""
        shapes = self._source.shapes()
        return {name: shapes[stored] for name, stored in self._stored.items()}

    def dtypes(self) -> dict[str, str]:
        """See `rules.Source`."""
        dtypes = self._source.dtypes()
        return {name: dtypes[stored] for name, stored in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        """See `rules.Source`."""
        return self._source.read(self._stored[name])

    def check_used(self, names: Iterable[str]) -> None:
        """See `rules.Source`."""
        self._source.check_used([self._stored[name] for name in names])


def renamed_source(family: Family, source: Source, tied: bool) -> NamedSource:
    """A source of a Hugging Face directory whose tensors have the names of the family's table.

    Args:
      tied: whether the config says that the unembedding is the embedding.

    Raises:
      TaskVecError: two tensors stand for the same one, or all names begin with a wrapper's prefix.
    """
    known = re.compile(
        "|".join(re.escape(rule.source).replace(r"\{layer\}", r"\d+") for rule in family.hf)
    )
    stored: dict[str, str] = {}
    for name in source.shapes():
        ours = _name(family, known, name)
        if ours in stored:
            raise TaskVecError(
                f"{source.where}: {stored[ours]} and {name} are the same tensor of the model;"
                " remove one of them, or save the model again"
            )
        stored[ours] = name
    unembedding, embedding = family.tied
    if tied and embedding not in stored and unembedding in stored:  # safetensors' save_model
        stored[embedding] = stored.pop(unembedding)
    _refuse_wrappers(family, known, source)
    return NamedSource(source, stored)


def _name(family: Family, known: re.Pattern[str], name: str) -> str:
    """What the table calls a tensor of a file; a name it does not know stays as it is."""
    name = family.renamed.get(name, name)
    stripped = name.removeprefix(family.prefix)
    stripped = family.renamed.get(stripped, stripped)
    if known.fullmatch(name):
        return name
    if known.fullmatch(stripped):
        return stripped
    return family.prefix + name if known.fullmatch(family.prefix + name) else name


def _refuse_wrappers(family: Family, known: re.Pattern[str], source: Source) -> None:
    for name in source.shapes():
        for prefix, who in _WRAPPERS.items():
            if prefix in name and known.fullmatch(_name(family, known, name.replace(prefix, ""))):
                raise TaskVecError(
                    f"{source.where}: the tensor {name} has the prefix {prefix} of a model wrapped"
                    f" by {who}, which transformers does not read either; save the model that is"
                    " inside the wrapper (model.module, model._orig_mod, merge_and_unload)"
                )
