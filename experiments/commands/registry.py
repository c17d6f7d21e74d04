"""The experiments there are; `paper` and `report` read this table, in this order."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from types import ModuleType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
      name: of its module `experiments.<name>`, which has `run(study)` or, with a dataclass
        `Options`, `run(study, options)`, and perhaps `check_options(options, config)`; of its page
        `experiments.page.<name>`, if there is one, which has `section(result)` and
        `draw_figures(result)`; and of its JSON file.
      in_paper: `experiments.paper` runs it.
      minutes: about how long it takes in a paper (default model, the paper's settings, 2 cores
        with AVX-512); how long a paper has still to go is reckoned from their ratios.
    """

    name: str
    in_paper: bool = True
    minutes: float = 1.0

    @property
    def module(self) -> ModuleType:
        """What computes it."""
        return importlib.import_module(f"experiments.{self.name}")

    @property
    def options(self) -> type[Any] | None:
        """The dataclass of its own options, if it has any."""
        return getattr(self.module, "Options", None)

    @property
    def page(self) -> ModuleType:
        """What shows it: a module of its own, or `experiments.page.plain`."""
        own = f"experiments.page.{self.name}"
        has_own = importlib.util.find_spec(own) is not None
        return importlib.import_module(own if has_own else "experiments.page.plain")


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("main_results", minutes=22),
        Experiment("conflicting_tasks", minutes=2.2),
        Experiment("task_geometry", minutes=2),
        Experiment("vocabulary_projection", minutes=0.3),
        Experiment("bijections", minutes=4.3),
        Experiment("dose", minutes=12),
        Experiment("patch_map", minutes=13),
        Experiment("portability", minutes=9),
        Experiment("function_vectors", in_paper=False),
        Experiment("head_ablation", in_paper=False),
        Experiment("necessity", minutes=13),
        Experiment("positions", in_paper=False),
        Experiment("several_vectors", in_paper=False),
        Experiment("learned_task_vector", in_paper=False),
        Experiment("layer_sweep", in_paper=False),
        Experiment("claims", in_paper=False),
    )
}
IN_PAPER = tuple(experiment for experiment in EXPERIMENTS.values() if experiment.in_paper)
