"""Conflicting tasks: the prompt shows A, the injected vector says B (paper, Table 3).

    python -m experiments.conflicting_tasks
    python -m experiments.conflicting_tasks --all_pairs

Demonstrations of A and a query valid for both tasks; theta of B is written over the last token of
the FULL prompt, after the layer where B's own zero-shot accuracy peaks on dev. Each answer is
judged, by its first token as in the paper, by A's rule and by B's: A-rate, B-rate, neither, for the
plain prompt, for theta of B, and for what else could be written in its place: another theta of A,
read from other demonstrations (does any theta leave A alone?), theta of a task C that is related to
neither, and a random vector with theta's covariance. Whether theta of B raises the B-rate above
that of theta of C is tested on pairs, over distinct queries. Queries whose two answers coincide are
not used. The pairs are the paper's, with the translation pair that fails there;
--all_pairs takes every ordered pair of tasks that share at least 20 queries.

Writes conflicting_tasks.json and conflicting_tasks.png/.svg under --out.
Expected on the default model at the paper's settings: to_upper written into next_letter .96,
gerund into past .80, the others not.

Time: 3 minutes (2 cores, after main_results).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from experiments.commands.options import option
from experiments.commands.runner import main
from experiments.published import published
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.evaluation.answers import Scorer, accepted
from taskvec_jax.evaluation.random_vectors import random_with_covariance
from taskvec_jax.evaluation.reading import read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.scoring import scoring_rule
from taskvec_jax.evaluation.statistics import Outcomes, accuracy, compare
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit
from taskvec_jax.tasks import Pair
from taskvec_jax.tasks.related import are_related
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.vectors.sweep import inject_vectors

NAME = "conflicting_tasks"
PAPER_PAIRS = (
    ("algorithmic_next_letter", "algorithmic_to_upper"),
    ("algorithmic_list_last", "algorithmic_list_first"),
    ("algorithmic_prev_letter", "algorithmic_next_letter"),
    ("linguistic_present_simple_past_simple", "linguistic_present_simple_gerund"),
    ("translation_en_es", "translation_en_fr"),
)
PUBLISHED_NAMES = {"linguistic_present_simple": "inflection_present_simple"}
FEWEST_QUERIES = 20  # that a pair must share under --all_pairs


@dataclasses.dataclass(frozen=True)
class Options:
    """What this experiment alone can be asked for."""

    all_pairs: bool = option(
        False, "Conflicting tasks: take every ordered pair of tasks that share 20 queries."
    )


def run(study: Study, options: Options) -> dict[str, Any]:
    """Runs all pairs that the study's tasks allow."""
    settings = study.short_settings
    tasks = {task.name: task for task in study.tasks}
    fitted = {
        name: fit(task, study.model.tokenizer, settings.template, settings.filter)
        for name, task in tasks.items()
    }
    notes = []
    if options.all_pairs:
        pairs = [
            (a, b)
            for a, b in itertools.permutations(tasks, 2)
            if len(shared_queries(fitted[a], fitted[b])) >= FEWEST_QUERIES
        ]
    else:
        pairs = []
        for a, b in PAPER_PAIRS:
            if missing := [name for name in (a, b) if name not in tasks]:
                notes.append(f"{a} / {b} is left out: no task {', '.join(missing)} in this run")
            elif len(shared_queries(fitted[a], fitted[b])) < 2:
                notes.append(f"{a} / {b} is left out: the tokenizer leaves no shared queries")
            else:
                pairs.append((a, b))
    measured = {}
    with study.bar("conflicting tasks", len(pairs)) as begin:
        for a, b in pairs:
            begin(f"{a} / {b}")
            layer = study.layer(tasks[b], settings)
            third = next(
                (
                    task.name
                    for task in study.tasks
                    if task.name not in (a, b)
                    and not any(are_related(task, tasks[name]) for name in (a, b))
                ),
                None,
            )
            measured[f"{a}-{b}"] = study.unit(
                NAME,
                tasks[a],
                settings,
                functools.partial(
                    measure_pair,
                    study.model,
                    fitted[a],
                    fitted[b],
                    layer,
                    settings,
                    fitted[third] if third else None,
                ),
                other={"name": b, "sha256": studies.task_sha256(tasks[b])},
                third=third and {"name": third, "sha256": studies.task_sha256(tasks[third])},
                layer=layer,
            )
    pairs_out = {key: {**value, "published": _published(key)} for key, value in measured.items()}
    return study.result(
        NAME,
        settings,
        {
            "pairs": pairs_out,
            "notes": notes,
            "published_model": published()["conflicting"]["model"],
        },
        scored_by="paper",
    )


def _published(key: str) -> dict[str, float] | None:
    for ours, theirs in PUBLISHED_NAMES.items():
        key = key.replace(ours, theirs)
    return published()["conflicting"]["pairs"].get(key)


def shared_queries(a: FittedTask, b: FittedTask) -> list[tuple[Pair, Pair]]:
    """Pairs of A and of B with the same input and answers that cannot be mistaken for each other.

    Inputs are compared stripped: A may be posed ` x` and B plainly `x`.
    """
    theirs = {pair.input.strip(): pair for pair in b.pairs}
    return [
        (mine, theirs[mine.input.strip()])
        for mine in a.pairs
        if mine.input.strip() in theirs and not _mistakable(a, mine, b, theirs[mine.input.strip()])
    ]


def _mistakable(a: FittedTask, mine: Pair, b: FittedTask, other: Pair) -> bool:
    def accepts(fitted: FittedTask, pair: Pair, other: Pair) -> bool:
        rule = scoring_rule("paper", match=fitted.task.match, ignore_case=fitted.task.ignore_case)
        return any(rule.is_right(answer, accepted(pair)) for answer in accepted(other))

    return accepts(b, other, mine) or accepts(a, mine, other)


def draw_pair_prompts(
    a: FittedTask, b: FittedTask, settings: Settings
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of A and of B about the same queries, 2 * num_prompts of each (the paper: 100).

    Demonstrations and dummy queries never hold the query.
    """
    shared = shared_queries(a, b)
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    for i in range(2 * settings.num_prompts):
        rng = seeded(settings.seed, a.task.name, b.task.name, "conflict", i)
        queries = draw(rng, shared, 1)[0]
        for side, fitted, query in zip(sides, (a, b), queries, strict=True):
            rest = [p for p in fitted.pairs if p.input != query.input]
            shown = draw(rng, rest, settings.num_demonstrations + settings.num_dummy_queries)
            side.append(
                Prompt(
                    tuple(shown[: settings.num_demonstrations]),
                    query,
                    tuple(shown[settings.num_demonstrations :]),
                    fitted.template,
                )
            )
    return sides


def redrawn(prompts: list[Prompt], fitted: FittedTask, settings: Settings) -> list[Prompt]:
    """Prompts for the same queries with other demonstrations and dummy queries of the task."""
    found = []
    for i, prompt in enumerate(prompts):
        rng = seeded(settings.seed, fitted.task.name, "conflict, redrawn", i)
        rest = [p for p in fitted.pairs if p.input.strip() != prompt.query.input.strip()]
        shown = draw(rng, rest, settings.num_demonstrations + settings.num_dummy_queries)
        count = settings.num_demonstrations
        dummies = tuple(shown[count:])
        found.append(Prompt(tuple(shown[:count]), prompt.query, dummies, fitted.template))
    return found


def measure_pair(
    model: Model,
    a: FittedTask,
    b: FittedTask,
    layer: int,
    settings: Settings,
    c: FittedTask | None = None,
) -> dict[str, Any]:
    """A-rate, B-rate and neither for the plain prompt of A and with each vector at its end.

    Args:
      c: a task related to neither; None: there is none in this run.
    """
    of_a, of_b = draw_pair_prompts(a, b, settings)
    size = settings.batch_size
    theta = read_theta(model, of_b, size)[:, layer : layer + 1]  # [N, 1, D]
    vectors = {
        "theta": theta,
        "random": random_with_covariance(
            theta, len(of_a), settings.seed, a.task.name, b.task.name, "conflict"
        ),
        "theta_of_a": read_theta(model, redrawn(of_a, a, settings), size)[:, layer : layer + 1],
    }
    if c is not None:
        vectors["theta_of_c"] = read_theta(model, redrawn(of_a, c, settings), size)[
            :, layer : layer + 1
        ]
    texts = model.tokenizer.encode_all([prompt.icl() for prompt in of_a])
    tokens = inject_vectors(
        model,
        texts,
        np.concatenate(list(vectors.values()), axis=1),
        np.full(len(vectors), layer),
        size,
    ).tokens
    right = np.stack(
        [
            Scorer(model, a).by_first_token(of_a, tokens),
            Scorer(model, b).by_first_token(of_b, tokens),
        ]
    )  # [2, N, 3]
    names = ("plain", *vectors)
    queries = [prompt.query.input for prompt in of_a]
    right_b = {name: right[1, :, i].astype(int) for i, name in enumerate(names)}
    against = "theta_of_c" if c is not None else "random"
    test = compare([Outcomes(queries, right_b)], "theta", against)
    said = Scorer(model, a).words(tokens[:, 1])
    return {
        "a": a.task.name,
        "b": b.task.name,
        **{name: rates(right[0, :, i], right[1, :, i]) for i, name in enumerate(names)},
        "layer": layer,
        "third": c and c.task.name,
        "num_shared_queries": len(shared_queries(a, b)),
        "num_queries": test.num_queries,
        "b_rate_above": {"against": against, "difference": test.difference, "p": test.p},
        "examples": [
            {
                "query": pa.query.input,
                "answer_a": pa.query.output,
                "answer_b": pb.query.output,
                "said": word,
            }
            for pa, pb, word in list(zip(of_a, of_b, said, strict=True))[:12]
        ],
    }


def rates(right_a: np.ndarray, right_b: np.ndarray) -> dict[str, Any]:
    """Shares of answers right for A, right for B, and right for neither, with intervals."""
    shares = {"a": right_a, "b": right_b, "neither": ~(right_a | right_b)}
    return {name: vars(accuracy(right)) for name, right in shares.items()}


if __name__ == "__main__":
    main(NAME)
