"""The published numbers, as data: Hendel, Geva, Globerson 2023, arXiv 2310.15916.

results.json holds the figures of the paper's tables and of the result files released with its code
(its "source" says which): facts to compare with, no code and no sentence of either.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any


@functools.cache
def published() -> dict[str, Any]:
    """The whole file."""
    return json.loads((Path(__file__).parent / "results.json").read_text(encoding="utf-8"))


def published_name(model: str) -> str | None:
    """The paper's name of a model ("LLaMA 7B"), given ours or a path; None if it is not in it.

    Only the last part of a path counts, and only the same letters and digits match: `pythia-6.9b`
    is the paper's model, `pythia-6.9b-deduped` is another.
    """
    wanted = bare(Path(model).name)
    return next((name for name in published()["main"] if bare(name) == wanted), None)


def bare(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return re.sub("[^a-z0-9]", "", name.lower())


def published_scores(name: str | None) -> dict[str, dict[str, float]]:
    """Task -> baseline, task_vector, icl of one of the paper's models; empty for None."""
    return published()["main"][name] if name else {}


def published_means() -> dict[str, dict[str, float]]:
    """Task -> baseline, task_vector, icl, the mean over the paper's seven models."""
    return published()["per_task_mean_over_7_models"]
