"""What controls are made from: demonstrations with wrong labels, or with none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from taskvec_jax.evaluation.answers import Scorer, accepted
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Pair


def without_demonstrations(prompt: Prompt) -> Prompt:
    """The same queries and no demonstrations: what is left is the form of the prompt."""
    return dataclasses.replace(prompt, demonstrations=())


def wrong_labels(scorer: Scorer, prompt: Prompt, *seed: object) -> Prompt:
    """The same demonstrations with labels that are all wrong, where that is possible.

    Their own labels are passed round so that each one is wrong where it comes to stand. Where no
    order does that, because most of the labels are alike for example, the ones that cannot be
    placed give way to other outputs of the task; and where all of these would be right too, a
    label stays (`share_wrong` counts them).
    """
    shown = prompt.demonstrations
    rng = seeded("wrong labels", *seed)
    labels = draw(rng, [pair.output for pair in shown], len(shown))
    others = list(dict.fromkeys(pair.output for pair in scorer.fitted.pairs))
    others = draw(rng, others, len(others))
    placed = _place(scorer, shown, labels)
    outputs = [
        labels[placed[i]]
        if i in placed
        else next((o for o in others if is_wrong(scorer, pair, o)), pair.output)
        for i, pair in enumerate(shown)
    ]
    return dataclasses.replace(
        prompt,
        demonstrations=tuple(
            pair._replace(output=output, accepted=())
            for pair, output in zip(shown, outputs, strict=True)
        ),
    )


def all_wrong_labels(scorer: Scorer, prompts: Sequence[Prompt], *seed: object) -> list[Prompt]:
    """`wrong_labels` of each prompt, drawn from the seed and the prompt's number."""
    return [wrong_labels(scorer, prompt, *seed, i) for i, prompt in enumerate(prompts)]


def is_wrong(scorer: Scorer, pair: Pair, label: str) -> bool:
    """Whether a label is no right answer to a pair, by the rule `full`."""
    return not scorer.rule("full").is_right(label, accepted(pair))


def share_wrong(scorer: Scorer, prompts: Sequence[Prompt], relabelled: Sequence[Prompt]) -> float:
    """The share of demonstrations whose label is wrong.

    Args:
      relabelled: the prompts with the labels that `wrong_labels` gave them.
    """
    wrong = [
        is_wrong(scorer, pair, new.output)
        for prompt, other in zip(prompts, relabelled, strict=True)
        for pair, new in zip(prompt.demonstrations, other.demonstrations, strict=True)
    ]
    return sum(wrong) / len(wrong) if wrong else 1.0


def _place(scorer: Scorer, pairs: Sequence[Pair], labels: Sequence[str]) -> dict[int, int]:
    """Number of a pair -> number of a label that is wrong for it, each label once, for as many
    pairs as possible: a largest matching, found by augmenting paths (Kuhn 1955)."""
    wrong = [[j for j, label in enumerate(labels) if is_wrong(scorer, p, label)] for p in pairs]
    taken: dict[int, int] = {}  # label -> pair

    def find(i: int, tried: set[int]) -> bool:
        for j in wrong[i]:
            if j not in tried:
                tried.add(j)
                if j not in taken or find(taken[j], tried):
                    taken[j] = i
                    return True
        return False

    for i in range(len(pairs)):
        find(i, set())
    return {i: j for j, i in taken.items()}
