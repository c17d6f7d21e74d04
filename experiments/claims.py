"""Published claims about a model, run again: published, ours, and whether they agree.

    python -m experiments.claims --model=pythia-6.9b
    python -m experiments.claims --claims_file=mine.json

The claims are data (published/claims.json: the task-vector paper's 7 models, the 29 of "Steering
off Course", function vectors, TaskV-M, 2605.04061); --claims_file reads others of the same form.
Each is measured as it was: on its tasks, with its number of demonstrations, its rule for the layer.
The verdict is "agrees" when the 95 % interval of the difference, from both n, holds 0 and reaches
no more than .15 to either side of its middle; "disagrees" when it excludes 0; else "undecided". It
is "not comparable", with the reason, where pairs, template, demonstrations or layer rule are
others: the built-in tasks have the papers' names but pairs of their own, so that most claims need
the authors' data, given with --task_data and named with --claims_pairs as the claims name it.

Writes claims.json and claims.png/.svg under --out.

Time: a layer sweep (of the claims' tasks; minutes on a GPU for the published models).
"""

# Long because: what is run for a claim, and what is made of it, are read together.

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import function_vectors, positions, several_vectors
from experiments.commands.options import option
from experiments.commands.runner import main
from experiments.published.claims import FILE, OURS, TEMPLATE, Claim, claims_about
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.intervals import means
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.measuring import measure
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import Interval, Outcomes, wilson
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.sweep import sweep_layers

NAME = "claims"
HALF_WIDTH = 0.15  # of the interval of the difference: agreement within more is not shown
OWN = ("baseline", "icl", "task_vector")  # quantities that are measured here
RULES = {"none", "dev", "best_on_test", "third", "fixed"}  # that a task vector's layer follows


@dataclasses.dataclass(frozen=True)
class Options:
    """What this experiment alone can be asked for."""

    claims_file: str = option("", "A JSON file of claims to run; those of the project if empty.")
    claims_pairs: str = option(
        OURS,
        "Whose pairs the tasks of this run are, as the claims call it; for the authors' own data"
        " given with --task_data, such as 2310.15916.",
    )


def run(study: Study, options: Options) -> dict[str, Any]:
    """Every claim about the model.

    Raises:
      TaskVecError: there is none, or the file cannot be read.
    """
    path = Path(options.claims_file) if options.claims_file else FILE
    claims = claims_about(study.model.name, path)
    if not claims:
        raise TaskVecError(
            f"no claim is about {study.model.name}; give claims about it with --claims_file, in the"
            " form of experiments/published/claims.json"
        )
    results: dict[str, Any] = {}
    found = []
    with study.bar(NAME, len(claims)) as begin:
        for claim in claims:
            begin(claim.title())
            found.append(run_claim(study, claim, options.claims_pairs, results))
    return study.result(
        NAME,
        study.settings,
        {"claims": found, "pairs": options.claims_pairs, "half_width": HALF_WIDTH},
        scored_by="paper",
    )


def run_claim(study: Study, claim: Claim, pairs: str, results: dict[str, Any]) -> dict[str, Any]:
    """What was published, ours, and the verdict.

    Args:
      pairs: whose pairs the study's tasks are.
      results: experiments that were run for claims before this one, by name and tasks.
    """
    reasons = differences(study, claim, pairs)
    outcomes, failed = measured(study, claim, results)
    ours = None
    if outcomes:
        ours = ours_of(outcomes, study.settings.seed)
    value: dict[str, Any] = {
        "claim": dataclasses.asdict(claim),
        "ours": ours,
        "num_tasks": len(outcomes),
        "difference": None,
        "reasons": [*reasons, *failed],
    }
    if ours is None or value["reasons"]:
        return {**value, "verdict": "not comparable"}
    assert claim.n is not None  # else that were a reason
    theirs = wilson(round(claim.value * claim.n), claim.n)
    difference = interval_of_difference(Interval(**ours), theirs._replace(value=claim.value))
    return {**value, "difference": difference._asdict(), "verdict": verdict(difference)}


def differences(study: Study, claim: Claim, pairs: str) -> list[str]:
    """Why a claim cannot be compared with a run of this study; empty if it can."""
    known = {task.name for task in study.available}
    missing = [*claim.other_tasks, *(name for name in claim.tasks if name not in known)]
    shots = study.settings.num_demonstrations
    own = claim.quantity in OWN
    reasons = {
        f"other pairs: theirs are of {claim.pairs}, ours of {pairs}": claim.pairs != pairs,
        f"other template: {claim.template!r}": claim.template != TEMPLATE,
        f"other tasks: {', '.join(missing)}": bool(missing),
        "the source does not say of how many answers it is a share": claim.n is None,
        f"other layer rule: {claim.layer_rule}": claim.layer_rule
        not in (RULES if own else {"none", "dev"}),
        f"{claim.num_demonstrations} demonstrations, here {shots}: give"
        f" --num_demonstrations={claim.num_demonstrations}": not own
        and claim.num_demonstrations not in (None, shots),
    }
    if claim.layer is not None and claim.layer >= study.model.config.num_layers:
        reasons[f"layer {claim.layer} is not in this model"] = True
    return [reason for reason, holds in reasons.items() if holds]


def measured(
    study: Study, claim: Claim, results: dict[str, Any]
) -> tuple[list[Outcomes], list[str]]:
    """Our right answers for a claim, in the column "value", task by task; and what failed."""
    known = {task.name: task for task in study.available}
    tasks = [known[name] for name in claim.tasks if name in known]
    if not tasks:
        return [], []
    if claim.quantity in OWN:
        count = claim.num_demonstrations or study.settings.num_demonstrations
        settings = dataclasses.replace(study.settings, num_demonstrations=count)
        outcomes, failed = [], []
        for task in tasks:
            try:
                found = study.unit(
                    NAME,
                    task,
                    settings,
                    functools.partial(measure_task, study.model, task, settings),
                )
            except TaskVecError as error:
                failed.append(str(error))
                continue
            outcomes.append(Outcomes(found["queries"], {"value": column(claim, found)}))
        return outcomes, failed
    experiment = experiment_of(claim.quantity)
    if experiment is None:
        return [], [f"no experiment here measures {claim.quantity!r}"]
    key = " ".join([experiment, *(task.name for task in tasks)])
    if key not in results:
        narrowed = dataclasses.replace(study, tasks=tasks, named=True)
        results[key] = EXPERIMENTS[experiment](narrowed)
    found = results[key]["tasks"]
    absent = [task.name for task in tasks if task.name not in found]
    outcomes = [
        Outcomes(
            found[task.name]["outcomes"]["queries"],
            {"value": found[task.name]["outcomes"]["correct"][claim.quantity]},
        )
        for task in tasks
        if task.name in found and claim.quantity in found[task.name]["outcomes"]["correct"]
    ]
    return outcomes, [f"{name} could not be measured" for name in absent]


EXPERIMENTS: Mapping[str, Callable[[Study], dict[str, Any]]] = {
    function_vectors.NAME: lambda study: function_vectors.run(study, function_vectors.Options()),
    positions.NAME: positions.run,
    several_vectors.NAME: several_vectors.run,
}


def experiment_of(quantity: str) -> str | None:
    """The experiment whose columns have a quantity of that name."""
    if quantity in ("function_vector", "function_vector_replaced"):
        return function_vectors.NAME
    if quantity in {condition.name for condition in positions.CONDITIONS}:
        return positions.NAME
    if quantity.split()[0] in ("base", *several_vectors.WAYS):
        return several_vectors.NAME
    return None


def measure_task(model: Any, task: Task, settings: Settings) -> dict[str, Any]:
    """Right answers on test zero-shot, in context, and with theta after every layer."""
    found = measure(model, task, settings)
    queries = model.tokenizer.encode_all([prompt.zero_shot() for prompt in found.test])
    swept = sweep_layers(model, queries, found.theta, settings.batch_size).tokens
    right = found.scorer.by_first_token(found.test, swept).astype(int).T.tolist()
    return {
        "queries": [prompt.query.input for prompt in found.test],
        "baseline": right[0],
        "task_vector": right[1:],  # [L][N]
        "icl": found.scorer.by_first_token(found.test, found.icl.tokens).astype(int).tolist(),
        "dev_layer": found.layer,
    }


def column(claim: Claim, found: Mapping[str, Any]) -> list[int]:
    """The answers that a claim counts, its layer chosen by its own rule."""
    if claim.quantity != "task_vector":
        return found[claim.quantity]
    by_layer = np.array(found["task_vector"])
    layers = {
        "best_on_test": best_layer(by_layer.mean(axis=1)),
        "third": round(len(by_layer) / 3),
        "fixed": min(claim.layer or 0, len(by_layer) - 1),
    }
    return found["task_vector"][layers.get(claim.layer_rule, found["dev_layer"])]


def ours_of(outcomes: Sequence[Outcomes], seed: int) -> dict[str, float]:
    """Mean over tasks with an interval for these tasks: the wider end of a bootstrap of queries,
    which has no width where all answers are alike, and of a score interval with n the number of
    distinct queries."""
    mean = means(outcomes, ["value"], seed)["value"]
    queries = sum(len(task.sums(["value"])[1]) for task in outcomes)
    counted = wilson(round(mean.accuracy * queries), queries)
    return {
        "value": mean.accuracy,
        "low": min(mean.low_these, counted.low),
        "high": max(mean.high_these, counted.high),
    }


def interval_of_difference(ours: Interval, theirs: Interval) -> Interval:
    """Ours minus theirs, two independent shares: the square-and-add interval (Newcombe 1998)."""
    value = ours.value - theirs.value
    below = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    above = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Interval(value, value - below, value + above)


def verdict(difference: Interval) -> str:
    """Agrees, disagrees or undecided, by the rule at the top."""
    if difference.low > 0 or difference.high < 0:
        return "disagrees"
    narrow = (difference.high - difference.low) / 2 <= HALF_WIDTH
    return "agrees" if narrow else "undecided"


if __name__ == "__main__":
    main(NAME)
