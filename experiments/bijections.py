"""Task pairs both ways: where a single vector is known to fail (beyond the paper).

    python -m experiments.bijections

Upper/lower, English/French, present/gerund, singular/plural, antonyms, and copying. Each pair is
run forward, backward, and BOTH ways at once: demonstrations of either direction mixed, and a query
of either. A prompt can show which way to go by the query itself; one vector written over the arrow
has to carry both directions. Dong et al. 2025 (arXiv 2506.09048) predict and report that it cannot.
What mixing costs as such is told by a control: two tasks that have nothing to do with each other,
mixed in the same way.

Writes bijections.json and bijections.png/.svg under --out.
Expected on the default model at the paper's settings: one direction ICL .62, vector .56; both ways
ICL .30, vector .24.

Time: 5 minutes (2 cores, after main_results).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.run.study import Study
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.statistics import accuracy
from taskvec_jax.tasks import Pair, Task

NAME = "bijections"
SOURCES = {  # name -> the task whose pairs are turned round
    "upper_lower": "algorithmic_to_upper",
    "english_french": "translation_en_fr",
    "present_gerund": "linguistic_present_simple_gerund",
    "plural_singular": "linguistic_plural_singular",
    "antonyms": "linguistic_antonyms",
    "copy": "linguistic_antonyms",  # of whose inputs copies are asked
}


MIXTURES = {"unrelated": ("linguistic_antonyms", "linguistic_plural_singular")}  # the control


def run(study: Study) -> dict[str, Any]:
    """Runs every pair of directions the study's tasks allow."""
    known = {task.name: task for task in study.tasks}
    turned = {
        name: directions(name, known[source]) for name, source in SOURCES.items() if source in known
    }
    for name, sources in MIXTURES.items():
        if all(source in known for source in sources):
            turned[name] = mixture(name, *(known[source] for source in sources))
    notes = [
        f"{name} is left out: no task {source} in this run"
        for name, source in SOURCES.items()
        if source not in known
    ]

    def measure(task: Task) -> dict[str, Any]:
        return study.unit(NAME, task, study.settings, functools.partial(measure_way, study, task))

    tasks = [task for ways in turned.values() for task in ways.values()]
    measured, failed = study.each(NAME, tasks, measure)
    pairs: dict[str, dict[str, Any]] = {}
    for name, ways in turned.items():
        found = {way: measured[task.name] for way, task in ways.items() if task.name in measured}
        if "both" in found:
            forward = {pair.input.strip() for pair in ways["forward"].pairs}
            found["both"] = split_by_direction(found["both"], forward)
        if found:
            pairs[name] = found
    return study.result(NAME, study.settings, {"pairs": pairs, "notes": notes + failed})


def directions(name: str, task: Task) -> dict[str, Task]:
    """A task, its inverse, and the two mixed; of "copy" x -> x alone, over the task's inputs.

    The inverse of x -> y takes y to x and accepts every x' that has y among its answers. In the
    mix, an input that would have two different answers is left out.
    """
    if name == "copy":
        copies = tuple(Pair(pair.input, pair.input) for pair in task.pairs)
        return {"forward": dataclasses.replace(task, short_name=name, pairs=copies)}
    sources: dict[str, list[str]] = {}
    for pair in task.pairs:
        for answer in dict.fromkeys((pair.output, *pair.accepted)):
            sources.setdefault(answer, []).append(pair.input)
    backward = {}
    for pair in task.pairs:
        others = tuple(x for x in sources[pair.output] if x != pair.input)
        backward.setdefault(pair.output, Pair(pair.output, pair.input, others))
    forward = {pair.input: pair for pair in task.pairs}
    mixed = [
        pair
        for own, other in ((forward, backward), (backward, forward))
        for pair in own.values()
        if pair.input not in other or (own is forward and _agree(pair, other[pair.input]))
    ]
    return {
        "forward": dataclasses.replace(task, short_name=f"{name}_forward", pairs=task.pairs),
        "backward": dataclasses.replace(
            task, short_name=f"{name}_backward", pairs=tuple(backward.values())
        ),
        "both": dataclasses.replace(task, short_name=f"{name}_both", pairs=tuple(mixed)),
    }


def mixture(name: str, one: Task, other: Task) -> dict[str, Task]:
    """Two tasks as if they were two directions, and as many pairs of each mixed.

    Inputs that both have are left out of all three, so that a query tells which task it is of.
    """
    inputs = [{pair.input for pair in task.pairs} for task in (one, other)]
    own, theirs = (
        tuple(pair for pair in task.pairs if pair.input not in inputs[1 - i])
        for i, task in enumerate((one, other))
    )
    count = min(len(own), len(theirs))
    return {
        "forward": dataclasses.replace(one, short_name=f"{name}_forward", pairs=own),
        "backward": dataclasses.replace(other, short_name=f"{name}_backward", pairs=theirs),
        "both": dataclasses.replace(
            one, short_name=f"{name}_both", pairs=own[:count] + theirs[:count]
        ),
    }


def _agree(a: Pair, b: Pair) -> bool:
    return bool({a.output, *a.accepted} & {b.output, *b.accepted})


def measure_way(study: Study, task: Task) -> dict[str, Any]:
    """The main scores of one direction, with each answer's correctness."""
    return evaluate_task(study.model, task, study.settings).to_dict()


def split_by_direction(value: dict[str, Any], forward: set[str]) -> dict[str, Any]:
    """Scores of the mixed task by the direction of the query.

    Args:
      value: what `measure_way` gives for the mix.
      forward: stripped inputs of the forward task; any other query goes backward.
    """
    recorded = value["outcomes"]
    way = np.array([query.strip() in forward for query in recorded["queries"]], bool)
    by_way = {
        name: {
            measure: vars(accuracy(np.array(recorded[measure]["correct"])[mask]))
            for measure in ("icl", "task_vector")
        }
        for name, mask in (("forward", way), ("backward", ~way))
        if mask.any()
    }
    return {**value, "by_direction": by_way}


if __name__ == "__main__":
    main(NAME)
