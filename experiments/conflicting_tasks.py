"""Conflicting tasks: the prompt shows A, the injected vector says B (paper, Table 3).

    python -m experiments.conflicting_tasks
    python -m experiments.conflicting_tasks --all_pairs

Demonstrations of A and a query valid for both tasks; theta of B is written over the last token of
the FULL prompt, after the layer where B's own zero-shot accuracy peaks on dev. Each answer is
judged by A's rule and by B's: A-rate, B-rate, neither, for the plain prompt, for theta of B, and
for a random vector in its place. Queries whose two answers coincide are not used. The pairs are
the paper's, with the translation pair that fails there; --all_pairs takes every ordered pair of
tasks that share at least 20 queries.

Writes conflicting_tasks.json and conflicting_tasks.png/.svg under --out.
Expected on the default model at the paper's settings: to_upper written into next_letter .96,
gerund into past .81, the others not (1 minute on 2 cores).
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
from taskvec_jax.evaluation.judging import Judge, accuracy, is_correct
from taskvec_jax.evaluation.protocol import Settings, random_like, read_theta
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import FittedTask, Prompt, fit
from taskvec_jax.tasks import Pair
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
    tokenizer = study.model.tokenizer
    fitted = {name: fit(task, tokenizer, settings.template) for name, task in tasks.items()}
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
            measured[f"{a}-{b}"] = study.unit(
                NAME,
                tasks[a],
                settings,
                functools.partial(measure_pair, study.model, fitted[a], fitted[b], layer, settings),
                other={"name": b, "sha256": studies.task_sha256(tasks[b])},
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
    return any(
        is_correct(b.task.match, other, answer) for answer in (mine.output.strip(), *mine.accepted)
    ) or any(
        is_correct(a.task.match, mine, answer) for answer in (other.output.strip(), *other.accepted)
    )


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


def measure_pair(
    model: Model, a: FittedTask, b: FittedTask, layer: int, settings: Settings
) -> dict[str, Any]:
    """A-rate, B-rate and neither for the plain prompt of A, theta of B, and a random vector."""
    of_a, of_b = draw_pair_prompts(a, b, settings)
    theta = read_theta(model, of_b, settings.batch_size)[:, layer]  # [N, D]
    noise = random_like(theta, settings.seed, a.task.name, b.task.name, "conflict")
    texts = model.tokenizer.encode_all([prompt.icl() for prompt in of_a])
    tokens = inject_vectors(
        model,
        texts,
        np.stack([theta, noise], axis=1),
        np.array([layer, layer]),
        settings.batch_size,
    ).tokens
    right = np.stack(
        [Judge(model, a).correct(of_a, tokens), Judge(model, b).correct(of_b, tokens)]
    )  # [2, N, 3]
    names = ("plain", "theta", "random")
    said = Judge(model, a).answers(tokens[:, 1])
    return {
        "a": a.task.name,
        "b": b.task.name,
        **{name: rates(right[0, :, i], right[1, :, i]) for i, name in enumerate(names)},
        "layer": layer,
        "num_shared_queries": len(shared_queries(a, b)),
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
