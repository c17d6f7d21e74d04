"""What a task vector could do at best: vectors learned by gradient beside extracted ones.

    python -m experiments.learned_task_vector
    python -m experiments.learned_task_vector --tasks=linguistic_antonyms --layers=10,12,14
    python -m experiments.learned_task_vector --every_task --layers=best

Through the frozen decoder, Adam trains the vector that, written over the last token of a zero-shot
query, makes the task's answer most likely: one vector a layer, all layers in one program. Trained
on pairs that are asked neither on dev nor on test, stopped on dev, scored on test beside each
prompt's own extracted theta, the mean theta it starts from, and in-context learning (learned
vectors: arXiv 2509.24169). --loss=kl asks for the next-token distribution of the whole prompt
instead of the answer; --vector_norm holds the vector at a multiple of theta's norm; --init sets
where it starts. --num_positions=P learns P vectors a layer, written together over the last P tokens
of the query; they start from the mean residual stream at the last P tokens of the dummy prompts.
Before the arrow stands what is asked: a word of one token is gone with P=2, and no vector can
answer what it cannot see (antonyms: 0.00); longer ones keep their beginning.
--layers: all, best (the main results' layer of each task), or numbers.
Beside each task stands a control task: the same inputs with the outputs of other pairs, dealt at
random and kept, learned and scored in the same way. What a vector reaches there it owes to the
answers being few or to its own freedom; selectivity is the accuracy on the task minus that on its
control (Hewitt and Liang, arXiv 1909.03368).
Runs on one task of each category unless --tasks names others or --every_task asks for all.

Writes learned_task_vector.json and learned_task_vector, learned_task_vector_cosine (.png/.svg)
under --out.
Expected on the default model: antonyms .60 extracted, .74 learned, .58 in context; plurals .88,
1.00, .86; cosine to mean theta .9.

Time: 4 minutes (four tasks at all 30 layers, 2 cores; all 18 with --layers=best, 7).
"""

# Long because: the experiment deals its own data (splits by pair, examples with answers).

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from experiments.commands.options import option
from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.geometry import log_softmax
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.random_vectors import random_like
from taskvec_jax.evaluation.reading import draw_prompts, read_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import accuracy
from taskvec_jax.prompting.prompts import (
    FittedTask,
    Prompt,
    sample,
)
from taskvec_jax.tasks import Task
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.tasks.task import Pair
from taskvec_jax.transformer.checks import check_finite
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.vectors.examples import Examples, make_examples
from taskvec_jax.vectors.learning import Learned, Recipe, check_layers, learn_vector
from taskvec_jax.vectors.patching import read_states
from taskvec_jax.vectors.sweep import inject_vectors, sweep_layers

NAME = "learned_task_vector"
FEW_TRAIN = 16  # with fewer pairs left to learn from, the pairs themselves are dealt
DRAWS = 20  # times num_prompts: how far to look for prompts whose query belongs to a split


@dataclasses.dataclass(frozen=True)
class Options:
    """What this experiment alone can be asked for."""

    layers: str = option(
        "all", "Learned vectors: all, best (the layer chosen on dev), or layers with commas."
    )
    every_task: bool = option(False, "Learned vectors: of all tasks, not of one a category.")
    steps: int = option(Recipe.steps, "Learned vectors: steps of Adam.")
    learning_rate: float = option(
        Recipe.learning_rate,
        "Learned vectors: in units of the root mean square of theta at the layer.",
    )
    train_batch: int = option(Recipe.batch_size, "Learned vectors: queries in a step.")
    init: Literal["theta", "zero", "random"] = option("theta", "Learned vectors: where they start.")
    loss: Literal["label", "kl"] = option("label", "Learned vectors: what they are trained on.")
    vector_norm: float | None = option(
        None, "Learned vectors: held at this multiple of theta's norm; free when left out."
    )
    num_positions: int = option(
        1, "Learned vectors: written at this many last tokens of the query, together."
    )


def recipe_of(options: Options, seed: int) -> Recipe:
    """How the options say that vectors are trained.

    Raises:
      TaskVecError: numbers out of range, or options that do not go together.
    """
    if options.init == "zero" and options.vector_norm is not None:
        raise TaskVecError(
            "--init=zero has no direction, so --vector_norm cannot scale it; allowed with"
            " --vector_norm: --init=theta or --init=random"
        )
    if options.num_positions < 1:
        raise TaskVecError(f"--num_positions={options.num_positions}; it must be at least 1")
    return Recipe(
        steps=options.steps,
        batch_size=options.train_batch,
        learning_rate=options.learning_rate,
        norm=options.vector_norm,
        seed=seed,
    )


def check_options(options: Options, config: DecoderConfig) -> None:
    """Refuses what cannot be meant on a model.

    Raises:
      TaskVecError: as of `recipe_of` and `parse_layers`.
    """
    recipe_of(options, seed=0)
    parse_layers(options.layers, config.num_layers)


def run(study: Study, options: Options) -> dict[str, Any]:
    """Learns and scores the vectors of every task chosen."""
    given, recipe = options, recipe_of(options, study.settings.seed)
    num_layers = study.model.config.num_layers
    asked = parse_layers(given.layers, num_layers)

    def measure(task: Task) -> dict[str, Any]:
        extracted_layer = study.layer(task, study.settings)
        layers = [extracted_layer] if asked is None else asked
        found = study.unit(
            NAME,
            task,
            study.settings,
            functools.partial(
                learn_task, study, task, layers, recipe, given.init, given.loss, given.num_positions
            ),
            layers=layers,
            recipe=dataclasses.asdict(recipe),
            init=given.init,
            loss=given.loss,
            num_positions=given.num_positions,
        )
        what = vectors_unit(
            study, task, layers, recipe, given.init, given.loss, given.num_positions
        )
        made = f"learned vectors of {task.name}"
        study.vectors.keep(task, "learned", what, layers, made=made, settings=what["recipe"])
        return found | {"extracted_layer": extracted_layer}

    tasks = study.tasks if given.every_task else studies.chosen_tasks(study, TASKS)
    results, notes = study.each("learned vectors", tasks, measure)
    return study.result(
        NAME,
        study.settings,
        {
            "recipe": {
                **dataclasses.asdict(recipe),
                "init": given.init,
                "loss": given.loss,
                "num_positions": given.num_positions,
            },
            "num_layers": num_layers,
            "tasks": results,
            "notes": notes,
        },
        scored_by="paper",
    )


def parse_layers(words: str, num_layers: int) -> list[int] | None:
    """--layers as a list; None for `best`.

    Raises:
      TaskVecError: it is something else, or a layer there is not.
    """
    if words == "best":
        return None
    if words == "all":
        return list(range(num_layers))
    try:
        layers = sorted({int(word) for word in words.split(",")})
    except ValueError:
        raise TaskVecError(
            f"--layers={words}; allowed: all, best, or numbers with commas between, such as 10,12"
        ) from None
    try:
        check_layers(layers, num_layers)
    except TaskVecError as error:
        raise TaskVecError(f"--layers={words}: {error}") from None
    return layers


@dataclasses.dataclass(frozen=True)
class Split:
    """The pairs of a task, none of them in two parts.

    Attributes:
      train: pairs to learn from.
      dev: pairs to stop on.
      test: prompts to score; their queries are neither in train nor in dev.
      dealt: the test prompts are not the main results': too few pairs were left beside them.
    """

    train: list[Pair]
    dev: list[Pair]
    test: list[Prompt]
    dealt: bool


def split_pairs(fitted: FittedTask, settings: Settings) -> Split:
    """Test prompts as in the main results, and the pairs they do not ask for.

    A task of few pairs asks for nearly all of them: then half of the pairs are dealt to train, a
    quarter each to dev and test, and test prompts are the first whose query is in the test part.

    Raises:
      TaskVecError: too few pairs for three parts, or none of the prompts asks for the test part.
    """
    test = draw_prompts(fitted, settings, "test")
    asked = {p.query for p in test}
    dev = list(dict.fromkeys(p.query for p in draw_prompts(fitted, settings, "dev")))
    dev = [pair for pair in dev if pair not in asked]
    train = [pair for pair in fitted.pairs if pair not in asked and pair not in dev]
    if len(train) >= FEW_TRAIN and dev:
        return Split(train, dev, test, dealt=False)
    order = draw(seeded(settings.seed, fitted.task.name, "deal"), fitted.pairs, len(fitted.pairs))
    half, quarter = len(order) // 2, len(order) // 4
    need = settings.num_demonstrations + 1 + settings.num_dummy_queries
    if not quarter or half < need:
        raise TaskVecError(
            f"{fitted.task.name}: {len(order)} pairs are too few to learn from: half of them must"
            f" make prompts of {need} pairs; ask for fewer demonstrations, or choose other tasks"
        )
    train, dev, held = order[:half], order[half:-quarter], set(order[-quarter:])
    many = dataclasses.replace(settings, num_prompts=settings.num_prompts * DRAWS)
    test = [p for p in draw_prompts(fitted, many, "test") if p.query in held]
    if not test:
        raise TaskVecError(
            f"{fitted.task.name}: no prompt asks for a pair held out; raise --num_prompts"
        )
    return Split(train, dev, test[: settings.num_prompts], dealt=True)


def relabel(split: Split, fitted: FittedTask, seed: int) -> Split:
    """The control task: every input with the output of a pair drawn for it, the same wherever it
    stands, so that there is something to remember and nothing to understand."""
    rng = seeded(seed, fitted.task.name, "relabel")
    outputs = dict(zip(fitted.pairs, draw(rng, fitted.pairs, len(fitted.pairs)), strict=True))

    def other(pair: Pair) -> Pair:
        return outputs[pair]._replace(input=pair.input)

    test = [dataclasses.replace(prompt, query=other(prompt.query)) for prompt in split.test]
    return Split([*map(other, split.train)], [*map(other, split.dev)], test, split.dealt)


def answer_tokens(scorer: Scorer, pair: Pair) -> list[int]:
    """The tokens that are right after a pair's query: whole answers, or the first token of one
    where answers may be several tokens long."""
    tokenizer, fitted = scorer.model.tokenizer, scorer.fitted
    space = " " if fitted.leading_space else ""
    query = fitted.zero_shot(pair)
    found = []
    for answer in (pair.output, *(space + accepted for accepted in pair.accepted)):
        ids = tokenizer.continuation(query, answer)
        if len(ids) == 1 or (ids and fitted.task.match == "prefix"):
            found.append(ids[0])
    return sorted(set(found))


def mean_states(study: Study, prompts: list[Prompt], num_positions: int) -> np.ndarray:
    """Mean over dummy prompts of the residual stream at their last tokens.

    Returns:
      float32 [L, D], the mean theta, for one position; [L, P, D] for several.
    """
    model, size = study.model, study.settings.batch_size
    if num_positions == 1:
        return read_theta(model, prompts, size).mean(axis=0)
    texts = [text for prompt in prompts for text in prompt.dummies()]
    tokens, last = model.tokenizer.pad(model.tokenizer.encode_all(texts))
    places = last[:, None] - np.arange(num_positions, dtype=np.int32)[::-1]
    total = np.zeros((num_positions, model.config.num_layers, model.config.width))
    for start in range(0, len(texts), size):
        rows = np.minimum(np.arange(start, start + size), len(texts) - 1)
        states, _ = read_states(model.decoder, model.params, tokens[rows], places[rows])
        check_finite(states)
        total += states[: len(texts) - start].sum(axis=0)
    return (total / len(texts)).swapaxes(0, 1).astype(np.float32)


def check_queries(scorer: Scorer, num_positions: int) -> None:
    """Refuses to write over more tokens than the task's shortest query has.

    Raises:
      TaskVecError: it names that query.
    """
    texts = [scorer.fitted.zero_shot(pair) for pair in scorer.fitted.pairs]
    lengths = [len(ids) for ids in scorer.model.tokenizer.encode_all(texts)]
    if num_positions > (most := min(lengths)):
        raise TaskVecError(
            f"{scorer.fitted.task.name}: --num_positions={num_positions}, but the query"
            f" {texts[lengths.index(most)]!r} has {most} tokens; allowed: 1 to {most}"
        )


def at_last(values: np.ndarray, num_positions: int) -> np.ndarray:
    """Of values [C, ...] or [C, P, ...] for several positions: those at the last token."""
    return values if num_positions == 1 else values[:, -1]


def learn_task(
    study: Study,
    task: Task,
    layers: list[int],
    recipe: Recipe,
    init: str,
    loss: str,
    num_positions: int = 1,
) -> dict[str, Any]:
    """Learns one task's vectors and scores them on test; keeps the vectors in the journal.

    With several positions, cosine and norm_ratio are of the vector at the last token, and the mean
    theta that is scored stands at all of them.

    Raises:
      TaskVecError: too few pairs, a query shorter than num_positions, or a loss that diverges.
    """
    model, settings = study.model, study.settings
    scorer = scorer_of(model, task, settings)
    check_queries(scorer, num_positions)
    split = split_pairs(scorer.fitted, settings)
    # Mean theta is read from prompts made of train pairs alone, so that no answer leaks into it.
    own = dataclasses.replace(scorer.fitted, pairs=tuple(split.train))
    train_prompts = sample(
        own,
        seed=settings.seed,
        split="train",
        count=settings.num_prompts,
        num_demonstrations=settings.num_demonstrations,
        num_dummy_queries=settings.num_dummy_queries,
    )
    mean = mean_states(study, train_prompts, num_positions)[layers]  # [C, D] or [C, P, D]
    norms = np.linalg.norm(mean, axis=-1)
    initial = {
        "theta": mean,
        "zero": np.zeros_like(mean),
        "random": random_like(mean, settings.seed, task.name, "learned vector"),
    }[init]

    def learn(split: Split) -> Learned:
        dev_prompts = [Prompt((), pair, ()) for pair in split.dev]
        return learn_vector(
            model,
            examples(study, scorer, split.train, split.train, loss),
            examples(study, scorer, split.dev, split.train, loss),
            lambda said: scorer.by_first_token(dev_prompts, said),
            initial,
            norms,
            layers,
            recipe,
        )

    learned = learn(split)
    control = relabel(split, scorer.fitted, settings.seed)
    scores = score_test(study, scorer, split.test, layers, mean, learned)
    of_control = score_vectors(study, scorer, control.test, layers, learn(control).vectors)
    what = vectors_unit(study, task, layers, recipe, init, loss, num_positions)
    study.journal.keep_array(what, learned.vectors)
    ends = (at_last(vectors, num_positions) for vectors in (learned.vectors, mean))
    ratio = at_last(np.linalg.norm(learned.vectors, axis=-1) / norms, num_positions)
    return {
        "layers": layers,
        "pairs": {"train": len(split.train), "dev": len(split.dev)},
        "dealt": split.dealt,
        **scores,
        "control": of_control,
        "selectivity": [
            task["accuracy"] - other["accuracy"]
            for task, other in zip(scores["learned"], of_control, strict=True)
        ],
        "learned_layer": layers[best_layer(learned.dev_accuracy)],
        "dev_accuracy": learned.dev_accuracy.tolist(),
        "dev_accuracy_of_mean": learned.dev_accuracies[0].tolist() if init == "theta" else None,
        "step": learned.step.tolist(),
        "checks": learned.checks,
        "dev_losses": learned.dev_losses.tolist(),
        "train_losses": learned.losses.tolist(),
        "cosine": [cosine(a, b) for a, b in zip(*ends, strict=True)],
        "norm_ratio": ratio.tolist(),
    }


def vectors_unit(
    study: Study,
    task: Task,
    layers: list[int],
    recipe: Recipe,
    init: str,
    loss: str,
    num_positions: int,
) -> dict[str, Any]:
    """The name in the journal of a task's learned vectors, [C, D] or [C, P, D]."""
    return study.what(
        f"{NAME}/vectors",
        task,
        study.settings,
        learn_task,
        layers=layers,
        recipe=dataclasses.asdict(recipe),
        init=init,
        loss=loss,
        num_positions=num_positions,
    )


def examples(
    study: Study, scorer: Scorer, pairs: Sequence[Pair], shown: Sequence[Pair], loss: str
) -> Examples:
    """Zero-shot queries of pairs; with loss "kl", beside what the model says after demonstrations
    drawn from `shown`."""
    model, settings = study.model, study.settings
    queries = model.tokenizer.encode_all([scorer.fitted.zero_shot(pair) for pair in pairs])
    wanted = None
    if loss == "kl":
        texts = []
        for pair in pairs:
            others = [other for other in shown if other.input != pair.input]
            rng = seeded(settings.seed, scorer.fitted.task.name, "kl", pair.input)
            shots = draw(rng, others, settings.num_demonstrations)
            texts.append(Prompt(tuple(shots), pair, (), settings.template).icl())
        wanted = next_token_log_probabilities(study, texts)
    return make_examples(queries, [answer_tokens(scorer, pair) for pair in pairs], wanted)


def next_token_log_probabilities(study: Study, texts: list[str]) -> np.ndarray:
    """float32 [N, V] after each text."""
    model, size = study.model, study.settings.batch_size
    tokens, last = model.tokenizer.pad(model.tokenizer.encode_all(texts))
    found = []
    for start in range(0, len(texts), size):
        rows = np.minimum(np.arange(start, start + size), len(texts) - 1)
        logits = read_states(model.decoder, model.params, tokens[rows], last[rows, None])[1]
        found.append(log_softmax(logits[: len(texts) - start]).astype(np.float32))
    return np.concatenate(found)


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cosine of two vectors; None if one has no direction."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else None


def score_test(
    study: Study,
    scorer: Scorer,
    test: list[Prompt],
    layers: list[int],
    mean: np.ndarray,
    learned: Learned,
) -> dict[str, Any]:
    """Accuracy on test by layer of own thetas, their mean and the learned vectors; and the ends."""
    model, size = study.model, study.settings.batch_size
    queries = model.tokenizer.encode_all([p.zero_shot() for p in test])
    theta, icl = read_prompts(scorer, test, size)
    swept = scorer.by_first_token(test, sweep_layers(model, queries, theta, size).tokens)
    both = np.concatenate([mean, learned.vectors])
    of_both = score_vectors(study, scorer, test, layers * 2, both)
    return {
        "baseline": vars(accuracy(swept[:, 0])),
        "icl": vars(accuracy(scorer.by_first_token(test, icl.tokens))),
        "extracted": [vars(accuracy(right)) for right in swept[:, 1:][:, layers].T],
        "mean_theta": of_both[: len(layers)],
        "learned": of_both[len(layers) :],
    }


def score_vectors(
    study: Study, scorer: Scorer, test: list[Prompt], layers: list[int], vectors: np.ndarray
) -> list[dict[str, Any]]:
    """Accuracy on test of each of C vectors [C, D] or [C, P, D], written after its layer."""
    model = study.model
    queries = model.tokenizer.encode_all([prompt.zero_shot() for prompt in test])
    everywhere = np.broadcast_to(vectors, (len(test), *vectors.shape))
    size = study.settings.batch_size
    said = inject_vectors(model, queries, everywhere, np.array(layers), size).tokens[:, 1:]
    return [vars(accuracy(right)) for right in scorer.by_first_token(test, said).T]


if __name__ == "__main__":
    main(NAME)
