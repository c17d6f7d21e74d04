"""Is the path through the arrow's state necessary in the whole prompt? (beyond the paper)

    python -m experiments.necessity
    python -m experiments.necessity --tasks=linguistic_antonyms

A task vector shows that the state at the arrow is sufficient. Here the whole in-context prompt is
run, and for every layer l at once (a) the query's tokens may not attend to the demonstrations in
layers above l; (b) the arrow's state after layer l is replaced by that of the same query after
demonstrations of another task; (c) both. Expected if the task is moved to the arrow in middle
layers and read from there: (a) low at small l and at ICL's level at large l; (b) at ICL's level at
small l, falling at and after the layers where theta works best. Shown with them: zero-shot, ICL,
and ICL with the other task's demonstrations, which (b) ends in.

The demonstrations of (b) are those of the other tasks in turn; one that shows the query itself is
left out. The first token of the prompt stays visible in (a) and (c): see vectors/necessity.py.

Writes necessity.json and necessity.png/.svg under --out.
Expected on the default model, linguistic_antonyms, 20 prompts: zero-shot .15, in context .70, (a)
crosses half of the gain at layer 16, (b) at 17.

Time: 1 minute a task (2 cores).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.run.study import Study, task_sha256
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.intervals import means
from taskvec_jax.evaluation.lending import prompts_of_others
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.statistics import Outcomes, icl_able
from taskvec_jax.prompting.places import find_places
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.necessity import KINDS, cut_task
from taskvec_jax.vectors.sweep import read_texts

NAME = "necessity"


def run(study: Study) -> dict[str, Any]:
    """All three curves of every task."""
    lenders = {task.name: task_sha256(task) for task in study.available}

    def measure(task: Task) -> dict[str, Any]:
        others = [[name, sha] for name, sha in lenders.items() if name != task.name]
        return study.unit(
            NAME,
            task,
            study.settings,
            functools.partial(measure_task, study, task),
            lenders=others,
        )

    tasks, notes = study.each(NAME, study.tasks, measure)
    able = [name for name, task in tasks.items() if task["icl_able"]]
    seed = study.settings.seed
    return study.result(
        NAME,
        study.settings,
        {
            "tasks": {
                name: {**task, "crossings": crossings(curves_of(task))}
                for name, task in tasks.items()
            },
            "mean": {
                "icl_able": summary([tasks[name] for name in able], seed) if able else None,
                "all": summary(list(tasks.values()), seed),
            },
            "num_layers": study.model.config.num_layers,
            "notes": notes,
        },
        scored_by="paper",
    )


def measure_task(study: Study, task: Task) -> dict[str, Any]:
    """Right answers of a task: zero-shot, in context, and cut in each way after each layer.

    Raises:
      TaskVecError: there is no other task to take demonstrations from.
    """
    model, settings = study.model, study.settings
    scorer = scorer_of(model, task, study.settings)
    test = draw_prompts(scorer.fitted, settings, "test")
    lent = prompts_of_others(model, task, study.available, settings)
    if not lent:
        raise TaskVecError(
            f"{task.name}: there is no other task whose demonstrations could stand before its"
            " queries; name more with --tasks or --task_file"
        )
    texts = [prompt.icl() for prompt in test]
    encode = model.tokenizer.encode_all
    others = encode([with_demonstrations(p, other) for p, other in zip(test, lent, strict=True)])
    states, other_icl = read_texts(model, [[ids] for ids in others], settings.batch_size)
    begins = [find_places(model.tokenizer, prompt).query for prompt in test]
    found = cut_task(model, encode(texts), begins, states[:, 0], settings.batch_size)
    zero = encode([prompt.zero_shot() for prompt in test])
    zero_shot = read_texts(model, [[ids] for ids in zero], settings.batch_size)[1].tokens[:, 0]

    def right(tokens: np.ndarray) -> list[Any]:
        return scorer.by_first_token(test, tokens).astype(int).T.tolist()

    return {
        "icl_able": _icl_able(study, scorer),
        "queries": [prompt.query.input for prompt in test],
        "correct": {
            "baseline": right(zero_shot),
            "icl": right(found.untouched),
            "other_icl": right(other_icl.tokens[:, 0]),
            **{kind: right(getattr(found, kind)) for kind in KINDS},  # [L][N]
        },
    }


def with_demonstrations(prompt: Prompt, other: Prompt) -> str:
    """A prompt's query after another's demonstrations, without one that shows the query."""
    query = prompt.query.input.strip()
    shown = tuple(pair for pair in other.demonstrations if pair.input.strip() != query)
    return dataclasses.replace(prompt, demonstrations=shown).icl()


def _icl_able(study: Study, scorer: Scorer) -> bool:
    """Whether in-context learning does the task, on its dev prompts."""
    dev = draw_prompts(scorer.fitted, study.settings, "dev")
    encode = study.model.tokenizer.encode_all
    answers = [
        read_texts(study.model, [[ids] for ids in encode(texts)], study.settings.batch_size)[1]
        for texts in ([p.icl() for p in dev], [p.zero_shot() for p in dev])
    ]
    icl, zero_shot = (scorer.by_first_token(dev, found.tokens[:, 0]) for found in answers)
    return bool(icl_able(icl, zero_shot))


def curves_of(task: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of every column of a task, by layer where it has layers."""
    return {name: np.mean(values, axis=-1).tolist() for name, values in task["correct"].items()}


def crossings(curves: Mapping[str, Any]) -> dict[str, int | None]:
    """The layers where (a) and (b) cross half of ICL's gain over zero-shot.

    Returns:
      `no_attention`: the first layer from which on it keeps at least half of the gain.
      `other_state`: the first layer at which less than half of the gain is left.
      None where there is no gain, or no such layer.
    """
    gain = curves["icl"] - curves["baseline"]
    if gain <= 0:
        return {"no_attention": None, "other_state": None}
    half = curves["baseline"] + gain / 2
    enough = [value >= half - 1e-9 for value in curves["no_attention"]]
    lost = [value < half - 1e-9 for value in curves["other_state"]]
    keeps = len(enough) - next(
        (i for i, kept in enumerate(reversed(enough)) if not kept), len(enough)
    )
    return {
        "no_attention": keeps if keeps < len(enough) else None,
        "other_state": lost.index(True) if True in lost else None,
    }


def summary(tasks: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Means over tasks with intervals, by layer where there are layers, and their crossings."""
    layers = len(tasks[0]["correct"][KINDS[0]])
    outcomes = []
    for task in tasks:
        correct = task["correct"]
        by_layer = {f"{kind} {at}": correct[kind][at] for kind in KINDS for at in range(layers)}
        flat = {name: correct[name] for name in ("baseline", "icl", "other_icl")}
        outcomes.append(Outcomes(task["queries"], {**flat, **by_layer}))
    columns = list(outcomes[0].correct)
    found = {name: value._asdict() for name, value in means(outcomes, columns, seed).items()}
    columns_of = {kind: [found[f"{kind} {at}"] for at in range(layers)] for kind in KINDS}
    single = {name: found[name] for name in ("baseline", "icl", "other_icl")}
    curves = {
        **{kind: [one["accuracy"] for one in values] for kind, values in columns_of.items()},
        **{name: value["accuracy"] for name, value in single.items()},
    }
    return {
        "num_tasks": len(tasks),
        **single,
        **columns_of,
        "crossings": crossings(curves),
    }


if __name__ == "__main__":
    main(NAME)
