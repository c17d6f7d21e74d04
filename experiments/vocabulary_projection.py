"""What a task vector says when it is read as a prediction (paper, Section 5.2, Tables 5 and 7).

    python -m experiments.vocabulary_projection
    python -m experiments.vocabulary_projection --tasks=knowledge_country_capital

Theta averaged over the test prompts goes through the final norm and the unembedding, at the best
layer + 0, 1, 2, 3, 4 (the paper: + 2). Of the top 100 tokens those of letters only are kept,
without repeats, 20 of them. (The paper's code skips GPT-J's final norm; nothing is skipped here.)
Beside it, layer by layer, the median rank of two gold words in each prompt's own theta: the answer
of a dummy query, which is what theta was about to say, and the answer of the test query, which it
has never seen.

Writes vocabulary_projection.json and vocabulary_projection.png/.svg under --out.
Expected on the default model at the paper's settings: single capitals and function words, hardly
a task's name.

Time: 20 s (2 cores, after main_results).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from experiments.commands.runner import main
from experiments.published import published, published_name
from experiments.run.study import Study
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.vocabulary import gold_ranks, top_words
from taskvec_jax.tasks import Task

NAME = "vocabulary_projection"
OFFSETS = (0, 1, 2, 3, 4)


def run(study: Study) -> dict[str, Any]:
    """Projects every task's theta."""
    tasks = {}
    with study.bar("vocabulary", len(study.tasks)) as begin:
        for task in study.tasks:
            begin(task.name)
            layer = study.layer(task, study.settings)
            tasks[task.name] = study.unit(
                NAME,
                task,
                study.settings,
                functools.partial(project, study, task, layer),
                layer=layer,
            )
    name = published_name(study.model.name)
    theirs = published()["top_tokens"]["published_table"]
    return study.result(
        NAME,
        study.settings,
        {
            "tasks": tasks,
            "num_layers": study.model.config.num_layers,
            "vocab_size": study.model.config.vocab_size,
            "published_model": name if name in theirs else None,
            "published": theirs,
        },
    )


def project(study: Study, task: Task, layer: int) -> dict[str, Any]:
    """Top words at best + 0..4, and median gold ranks by layer."""
    theta = study.theta(task, study.settings)  # [N, L, D]
    model, num_layers = study.model, theta.shape[1]
    mean = theta.mean(axis=0)
    layers = [layer + offset for offset in OFFSETS if layer + offset < num_layers]
    scorer = scorer_of(model, task, study.settings)
    prompts = draw_prompts(scorer.fitted, study.settings, "test")
    gold = [[*map(scorer.first_token, (*p.dummy_queries, p.query))] for p in prompts]
    dummy, query = median_ranks(gold_ranks(model, theta, gold))
    return {
        "best_layer": layer,
        "layers": layers,
        "words": top_words(model, mean[layers]),
        "dummy_answer_rank": dummy.tolist(),
        "query_answer_rank": query.tolist(),
    }


def median_ranks(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians over prompts, by layer.

    Args:
      ranks: [N, L, dummies + 1], of the answers of a prompt's dummy queries and of its test query.

    Returns:
      Of the highest dummy answer [L], and of the query's [L]; of an even number of prompts the
      mean of the middle two.
    """
    highest = ranks[..., :-1].min(axis=-1)
    return np.median(highest, axis=0), np.median(ranks[..., -1], axis=0)


if __name__ == "__main__":
    main(NAME)
