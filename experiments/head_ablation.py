"""Which heads in-context learning needs: function-vector heads or induction heads (2502.14010).

    python -m experiments.head_ablation
    python -m experiments.head_ablation --tasks=linguistic_antonyms

Heads are taken out of the whole in-context prompt by their mean over tokens of prompts of all
tasks, so that what they say of this task is lost at every token. Sets of 2, 5, 10 and 20 % of all
heads: those of largest average indirect effect on this task; those of largest prefix-matching score
on repeated random tokens (induction heads); induction heads that are not in the first set; and
random heads of the same layers as the first set. Source: Yin and Steinhardt 2025 (arXiv
2502.14010), who find that in-context accuracy falls far more without the first than without the
others. Runs on one task of each category unless --tasks names others.

Writes head_ablation.json and head_ablation.png/.svg under --out.
Expected on the default model: see BUILD_NOTES.md.

Time: 3 minutes a task (2 cores).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import function_vectors
from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.fingerprint import fingerprint
from experiments.run.study import Study, task_sha256
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.intervals import means
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.statistics import Outcomes, compare
from taskvec_jax.prompting.prompts import sample
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.function_vectors import Head, heads_beside, rank_heads
from taskvec_jax.vectors.head_ablation import (
    ablate_heads,
    mean_outputs_of_tokens,
    prefix_matching,
)

NAME = "head_ablation"
SHARES = (0.02, 0.05, 0.1, 0.2)  # of all heads
SETS = ("function_vector", "induction", "induction_only", "random")
MEAN_PROMPTS = 4  # of each task, over whose tokens outputs are averaged
HEADS = function_vectors.Options()  # the heads are those of that experiment as it stands


def run(study: Study) -> dict[str, Any]:
    """Accuracy in context without each set of heads, task by task."""
    scores = induction_scores(study)
    lenders = [[task.name, task_sha256(task)] for task in study.available]

    def measure(task: Task) -> dict[str, Any]:
        return study.unit(
            NAME,
            task,
            study.settings,
            functools.partial(measure_task, study, task),
            lenders=lenders,
            heads=fingerprint(function_vectors.find_heads),
        )

    tasks, notes = study.each(NAME, studies.chosen_tasks(study, TASKS), measure)
    outcomes = [Outcomes(task["queries"], task["correct"]) for task in tasks.values()]
    columns = list(outcomes[0].correct)
    largest = f"function_vector {set_sizes(scores.size)[-1]}"
    against = {
        name: compare(outcomes, f"{name} {set_sizes(scores.size)[-1]}", largest)._asdict()
        for name in SETS[1:]
    }
    return study.result(
        NAME,
        study.settings,
        {
            "tasks": tasks,
            "sizes": set_sizes(scores.size),
            "induction_scores": scores.tolist(),
            "mean": {
                name: value._asdict()
                for name, value in means(outcomes, columns, study.settings.seed).items()
            },
            "against_function_vector": against,
            "num_heads": scores.size,
            "notes": notes,
        },
        scored_by="paper",
    )


def set_sizes(num_heads: int) -> list[int]:
    """How many heads the sets have, each at least one more than the one before."""
    return sorted({max(1, round(share * num_heads)) for share in SHARES})


def induction_scores(study: Study) -> np.ndarray:
    """Prefix-matching score of every head, [L, H]; journalled."""
    what = f"{NAME}/induction"
    compute = functools.partial(find_induction, study)
    return np.array(study.unit(what, None, study.settings, compute))


def find_induction(study: Study) -> list[list[float]]:
    """What `induction_scores` keeps."""
    return prefix_matching(study.model, study.settings.seed).tolist()


def ablated_outputs(study: Study) -> np.ndarray:
    """Mean output of every head over all tokens of prompts of all tasks, float32 [L, H, K];
    journalled."""
    what = study.what(
        f"{NAME}/outputs",
        None,
        study.settings,
        read_outputs,
        lenders=[[task.name, task_sha256(task)] for task in study.available],
    )
    return study.journal.array(what, lambda: read_outputs(study))


def read_outputs(study: Study) -> np.ndarray:
    """What `ablated_outputs` keeps. Tasks that the tokenizer cannot pose are passed over."""
    texts = []
    for task in study.available:
        try:
            prompts = sample(
                scorer_of(study.model, task, study.settings).fitted,
                seed=study.settings.seed,
                split="heads/ablated",
                count=MEAN_PROMPTS,
                num_demonstrations=study.settings.num_demonstrations,
                num_dummy_queries=study.settings.num_dummy_queries,
            )
        except TaskVecError:
            continue
        texts += [prompt.icl() for prompt in prompts]
    return mean_outputs_of_tokens(study.model, study.model.tokenizer.encode_all(texts))


def head_sets(
    effects: np.ndarray, scores: np.ndarray, size: int, *seed: object
) -> dict[str, list[Head]]:
    """The heads of each set of one size.

    Args:
      effects, scores: [L, H], average indirect effect and prefix-matching score.
    """
    carrying, inducing = rank_heads(effects)[:size], rank_heads(scores)
    apart = [head for head in inducing if head not in carrying][:size]
    return {
        "function_vector": carrying,
        "induction": inducing[:size],
        "induction_only": apart,
        "random": heads_beside(carrying, effects.shape[1], *seed, size),
    }


def measure_task(study: Study, task: Task) -> dict[str, Any]:
    """Right answers of a task without each set of heads, and which heads two sets share."""
    model, settings = study.model, study.settings
    scorer = scorer_of(model, task, study.settings)
    test = draw_prompts(scorer.fitted, settings, "test")
    effects = np.array(function_vectors.task_heads(study, task, HEADS)["aie"])
    scores = induction_scores(study)
    names, sets = ["icl"], [_mask([], effects.shape)]
    for size in set_sizes(effects.size):
        for name, heads in head_sets(effects, scores, size, settings.seed, task.name).items():
            names.append(f"{name} {size}")
            sets.append(_mask(heads, effects.shape))
    texts = model.tokenizer.encode_all([prompt.icl() for prompt in test])
    tokens = ablate_heads(model, texts, np.stack(sets), ablated_outputs(study), settings.batch_size)
    right = scorer.by_first_token(test, tokens)
    common = [
        len(set(rank_heads(effects)[:size]) & set(rank_heads(scores)[:size]))
        for size in set_sizes(effects.size)
    ]
    return {
        "queries": [prompt.query.input for prompt in test],
        "correct": {
            name: column.astype(int).tolist() for name, column in zip(names, right.T, strict=True)
        },
        "common": common,
    }


def _mask(heads: Sequence[Head], shape: tuple[int, ...]) -> np.ndarray:
    """bool [L, H], True for these heads."""
    mask = np.zeros(shape, bool)
    for head in heads:
        mask[head] = True
    return mask


if __name__ == "__main__":
    main(NAME)
