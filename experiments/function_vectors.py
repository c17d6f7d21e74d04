"""Function vectors: which heads carry the task, and their vector beside theta (beyond the paper).

    python -m experiments.function_vectors
    python -m experiments.function_vectors --tasks=linguistic_antonyms --head_trials=100

For each task: the mean output of every head at the arrow of in-context prompts; the average
indirect effect (AIE) of every head, which is the change of the answer's probability when that mean
is patched at the arrow of prompts with shuffled labels; and the function vector, the sum of what
the heads of largest AIE write. How many heads is chosen on dev, and so is the layer, for adding the
vector to the residual stream, for replacing the residual stream by it, and for each control.
Scored on the test prompts of the main results, zero-shot and after shuffled demonstrations, beside
theta. Source: Todd et al. 2023 (arXiv 2310.15213), who use 10 demonstrations; here as many as
theta has.

Prompts for means and effects are drawn from pairs that no test prompt asks for, where the task has
enough of them; where not, the result says so (`shared_queries`).

Writes function_vectors.json and function_vectors, function_vectors_scores, function_vectors_layers
(.png/.svg) under --out.
Expected on the default model: see BUILD_NOTES.md.

Time: 2 minutes a task (2 cores).
"""

# Long because: heads, vector and scores of a task are one experiment, each a journalled unit.

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.commands.options import option
from experiments.commands.runner import main
from experiments.run.study import Study, task_sha256
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.control_prompts import all_wrong_labels
from taskvec_jax.evaluation.geometry import cosine_distances
from taskvec_jax.evaluation.intervals import means
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.random_vectors import random_like
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import Outcomes, accuracy, beats_all, compare, decide
from taskvec_jax.prompting.prompts import Prompt, sample
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.vectors.copies import Schedule
from taskvec_jax.vectors.flops import head_loop_flops, head_map_flops
from taskvec_jax.vectors.function_vectors import (
    Head,
    function_vector,
    heads_beside,
    mean_outputs,
    rank_heads,
    written_by,
)
from taskvec_jax.vectors.head_map import map_heads
from taskvec_jax.vectors.programs import wavefront_schedule
from taskvec_jax.vectors.sweep import inject_vectors

NAME = "function_vectors"
SIZES = (1, 3, 10, 30)  # of head sets
SHARED = 10  # heads of each task that are compared between tasks
FEW_PAIRS = 30  # fewer pairs than this outside of the test queries: prompts are drawn from all
CONTROLS = ("baseline", "random_heads", "random", "other_tasks")


@dataclasses.dataclass(frozen=True)
class Options:
    """What this experiment alone can be asked for."""

    head_mean_prompts: int = option(
        100, "In-context prompts over which the output of each head is averaged."
    )
    head_trials: int = option(
        25, "Prompts with shuffled labels over which the effect of each head is averaged."
    )


def check_options(options: Options, config: DecoderConfig) -> None:
    """Refuses counts below one.

    Raises:
      TaskVecError: it names the flag.
    """
    del config
    for field in dataclasses.fields(options):
        if (got := getattr(options, field.name)) < 1:
            raise TaskVecError(f"--{field.name} is {got}; it must be at least 1")


def run(study: Study, options: Options) -> dict[str, Any]:
    """Heads and vectors of every task, then the scores, which need the other tasks' vectors."""
    check_options(options, study.model.config)
    heads, notes = study.each("heads", study.tasks, lambda task: task_heads(study, task, options))
    fitting = [task for task in study.tasks if task.name in heads]

    vectors, failed = study.each(
        "function vectors", fitting, lambda task: task_vector(study, task, options)
    )
    fitting = [task for task in fitting if task.name in vectors]

    def scored(task: Task) -> dict[str, Any]:
        others = [other for other in fitting if other.name != task.name]
        means = [vectors[other.name]["vector"] for other in others]
        digest = hashlib.sha256(np.asarray(means, np.float32).tobytes()).hexdigest()
        return study.unit(
            f"{NAME}/scores",
            task,
            study.settings,
            functools.partial(score_vector, study, task, options, means),
            options=dataclasses.asdict(options),
            others=[[other.name, task_sha256(other)] for other in others],
            other_vectors=digest,
        )

    scores, unscored = study.each("scores", fitting, scored)
    tasks = {
        name: {**heads[name], **_without(vectors[name], "vector"), **scores[name]}
        for name in scores
    }
    outcomes = {
        name: Outcomes(task["outcomes"]["queries"], task["outcomes"]["correct"])
        for name, task in tasks.items()
    }
    return study.result(
        NAME,
        study.settings,
        {
            "options": dataclasses.asdict(options),
            "tasks": tasks,
            **summary(outcomes, study.settings.seed),
            "shared_heads": shared_heads({name: task["aie"] for name, task in tasks.items()}),
            "num_layers": study.model.config.num_layers,
            "num_heads": study.model.config.num_heads,
            "notes": notes + failed + unscored,
        },
        scored_by="paper",
    )


def _unit(study: Study, task: Task, options: Options, what: str, compute: Any) -> Any:
    return study.unit(
        f"{NAME}/{what}",
        task,
        study.settings,
        functools.partial(compute, study, task, options),
        options=dataclasses.asdict(options),
    )


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def task_heads(study: Study, task: Task, options: Options) -> dict[str, Any]:
    """Prompts and indirect effects of a task's heads; a journalled unit (`find_heads`)."""
    return _unit(study, task, options, "heads", find_heads)


def task_vector(study: Study, task: Task, options: Options) -> dict[str, Any]:
    """The function vector of a task, its heads and its layers; a journalled unit
    (`choose_vector`)."""
    return _unit(study, task, options, "vectors", choose_vector)


def task_outputs(study: Study, task: Task, options: Options) -> np.ndarray:
    """Mean output of every head over a task's in-context prompts, float32 [L, H, K]; journalled."""
    what = study.what(
        f"{NAME}/outputs",
        task,
        study.settings,
        read_outputs,
        options=dataclasses.asdict(options),
    )
    return study.journal.array(what, lambda: read_outputs(study, task, options))


def read_outputs(study: Study, task: Task, options: Options) -> np.ndarray:
    """What `task_outputs` keeps."""
    prompts, _, _ = head_prompts(
        scorer_of(study.model, task, study.settings), study.settings, options
    )
    return mean_outputs(study.model, [prompt.icl() for prompt in prompts])


def head_prompts(
    scorer: Scorer, settings: Settings, options: Options
) -> tuple[list[Prompt], list[Prompt], bool]:
    """In-context prompts for means, prompts with shuffled labels, and whether some of their pairs
    are asked for in test prompts.

    Raises:
      TaskVecError: the task has fewer pairs than one prompt needs.
    """
    fitted = scorer.fitted
    asked = {prompt.query.input for prompt in draw_prompts(fitted, settings, "test")}
    left = tuple(pair for pair in fitted.pairs if pair.input not in asked)
    need = settings.num_demonstrations + 1 + settings.num_dummy_queries
    shared = len(left) < max(need, FEW_PAIRS)
    if not shared:
        fitted = dataclasses.replace(fitted, pairs=left)

    def drawn(split: str, count: int) -> list[Prompt]:
        return sample(
            fitted,
            seed=settings.seed,
            split=f"heads/{split}",
            count=count,
            num_demonstrations=settings.num_demonstrations,
            num_dummy_queries=settings.num_dummy_queries,
        )

    trials = drawn("trials", options.head_trials)
    name = fitted.task.name
    shuffled = all_wrong_labels(scorer, trials, settings.seed, name, "head")
    return drawn("mean", options.head_mean_prompts), shuffled, shared


def find_heads(study: Study, task: Task, options: Options) -> dict[str, Any]:
    """The average indirect effect of every head, and the prompts that it is measured on."""
    model, settings = study.model, study.settings
    scorer = scorer_of(model, task, settings)
    prompts, trials, shared = head_prompts(scorer, settings, options)
    outputs = task_outputs(study, task, options)
    answers = [scorer.first_token(prompt.query) for prompt in trials]
    texts = [prompt.icl() for prompt in trials]
    ids = model.tokenizer.encode_all(texts)
    found = map_heads(model, ids, answers, outputs, settings.batch_size)
    lengths = [len(one) for one in ids]
    return {
        "aie": found.effects().tolist(),
        "shuffled_probability": float(found.untouched.mean()),
        "prompts": {
            "mean": [prompt.icl() for prompt in prompts],
            "trials": texts,
            "answers": answers,
        },
        "shared_queries": shared,
        "flops": {
            "one_pass": sum(head_map_flops(model.config, length) for length in lengths),
            "loop": sum(head_loop_flops(model.config, length) for length in lengths),
        },
    }


@dataclasses.dataclass(frozen=True)
class Target:
    """Prompts of a split that vectors are written into, zero-shot or with shuffled labels.

    Attributes:
      prompts: what is asked.
      texts: token ids; the last token is written.
    """

    study: Study
    scorer: Scorer
    prompts: list[Prompt]
    texts: list[list[int]]

    def right(
        self,
        vectors: np.ndarray,
        layers: Sequence[int],
        operation: str,
        schedule: Schedule | None = None,
    ) -> np.ndarray:
        """Whether each answer is right: bool [N, 1 + C], the untouched one's first.

        Args:
          vectors: [C, D], the same for all prompts, or [N, C, D].
          layers: C of them.
          operation: "add" or "replace".
          schedule: see `inject_rows`; for few vectors None, one program whatever their layers.
        """
        model = self.study.model
        given = np.broadcast_to(vectors, (len(self.texts), *vectors.shape[-2:]))
        tokens = inject_vectors(
            model,
            self.texts,
            given,
            np.asarray(layers),
            self.study.settings.batch_size,
            schedule,
            operation=operation,
        ).tokens
        return self.scorer.by_first_token(self.prompts, tokens)

    def curves(self, vectors: np.ndarray, operation: str) -> np.ndarray:
        """Accuracy of each of C vectors [C, D] after every layer: [C, L].

        One vector after another: the logits of all at once would be the largest arrays by far, and
        every call is the same compiled program.
        """
        layers = range(self.study.model.config.num_layers)
        schedule = wavefront_schedule(len(layers))
        every = [np.tile(vector, (len(layers), 1)) for vector in vectors]
        right = [self.right(one, layers, operation, schedule)[:, 1:] for one in every]
        return np.stack([one.mean(axis=0) for one in right])


def targets(study: Study, task: Task, split: str) -> tuple[Target, Target]:
    """The prompts of a split zero-shot, and in context with shuffled labels."""
    scorer = scorer_of(study.model, task, study.settings)
    prompts = draw_prompts(scorer.fitted, study.settings, split)
    seed = (study.settings.seed, task.name, split)
    shuffled = all_wrong_labels(scorer, prompts, *seed)
    encode = study.model.tokenizer.encode_all
    return (
        Target(study, scorer, prompts, encode([p.zero_shot() for p in prompts])),
        Target(study, scorer, prompts, encode([p.icl() for p in shuffled])),
    )


def choose_vector(study: Study, task: Task, options: Options) -> dict[str, Any]:
    """Size of the head set and layer of the function vector, chosen on dev.

    The size is the one whose vector, added, is best at its best layer (ties to the fewest heads,
    then to the lowest layer), and the same for every use of the vector; the layer is chosen anew
    for replacing and for shuffled prompts.
    """
    aie = np.array(task_heads(study, task, options)["aie"])
    written = written_by(study.model, task_outputs(study, task, options))
    ranked = rank_heads(aie)
    sizes = [size for size in SIZES if size <= len(ranked)]
    dev, shuffled = targets(study, task, "dev")
    sets = np.stack([function_vector(written, ranked[:size]) for size in sizes])
    by_size = dev.curves(sets, "add")  # [sizes, L]
    chosen = int(np.argmax(by_size.max(axis=1)))
    vector = sets[chosen]
    curves = {
        "added": by_size[chosen],
        "replaced": dev.curves(vector[None], "replace")[0],
        "shuffled": shuffled.curves(vector[None], "add")[0],
    }
    theta = study.measured(task).theta.mean(axis=0)  # [L, D]
    cosines = 1 - cosine_distances(np.concatenate([vector[None], theta]))[0, 1:]
    return {
        "vector": vector.astype(float).tolist(),
        "heads": [list(head) for head in ranked[: sizes[chosen]]],
        "dev_accuracy_by_size": {
            str(size): float(curve.max()) for size, curve in zip(sizes, by_size, strict=True)
        },
        "accuracy_by_layer": {name: curve.tolist() for name, curve in curves.items()},
        "cosine_to_theta": cosines.tolist(),
    }


def score_vector(
    study: Study,
    task: Task,
    options: Options,
    other_vectors: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """Every column on test, each vector at the layer that dev gave it.

    Args:
      other_vectors: function vectors of the other tasks, whose mean is a control.
    """
    seed = study.settings.seed
    chosen = task_vector(study, task, options)
    vector = np.array(chosen["vector"], np.float32)
    curves = chosen["accuracy_by_layer"]
    written = written_by(study.model, task_outputs(study, task, options))
    heads: list[Head] = [(layer, head) for layer, head in chosen["heads"]]
    beside = heads_beside(heads, study.model.config.num_heads, seed, task.name)
    controls = {
        "random_heads": function_vector(written, beside),
        "random": random_like(vector, seed, task.name, "function vector"),
    }
    if other_vectors:
        controls["other_tasks"] = np.mean(other_vectors, axis=0).astype(np.float32)
    dev, dev_shuffled = targets(study, task, "dev")
    found = dev.curves(np.stack([*controls.values()]), "add")
    layers = {name: best_layer(curve) for name, curve in zip(controls, found, strict=True)}
    layers["function_vector"] = best_layer(curves["added"])
    test, test_shuffled = targets(study, task, "test")
    measured = study.measured(task)
    added = _columns(test, {"function_vector": vector, **controls}, layers, "add")
    layers["function_vector_replaced"] = best_layer(curves["replaced"])
    layers["task_vector"] = measured.layer
    replaced = _columns(
        test,
        {
            "function_vector_replaced": np.broadcast_to(vector, measured.theta[:, 0].shape),
            "task_vector": measured.theta[:, measured.layer],
        },
        layers,
        "replace",
    )
    layers["function_vector_shuffled"] = best_layer(curves["shuffled"])
    into = _columns(test_shuffled, {"function_vector_shuffled": vector}, layers, "add")
    dev_theta = _dev_theta(study, task)
    layers["task_vector_shuffled"] = best_layer(_own_curve(dev_shuffled, dev_theta))
    own = measured.theta[:, layers["task_vector_shuffled"]]
    theta = _columns(test_shuffled, {"task_vector_shuffled": own}, layers, "replace")
    correct = {
        "baseline": added[""],
        "icl": measured.scorer.by_first_token(measured.test, measured.icl.tokens),
        "shuffled_icl": into[""],
        **_named(added),
        **_named(replaced),
        **_named(into),
        **_named(theta),
    }
    return {
        "scores": {
            name: {**vars(accuracy(values)), "layer": layers.get(name)}
            for name, values in correct.items()
        },
        "outcomes": {
            "queries": [prompt.query.input for prompt in test.prompts],
            "correct": {name: values.astype(int).tolist() for name, values in correct.items()},
        },
    }


def _dev_theta(study: Study, task: Task) -> np.ndarray:
    """Theta of each dev prompt, [N, L, D]."""
    prompts = draw_prompts(
        scorer_of(study.model, task, study.settings).fitted, study.settings, "dev"
    )
    return read_theta(study.model, prompts, study.settings.batch_size)


def _own_curve(target: Target, theta: np.ndarray) -> np.ndarray:
    """Accuracy by layer when each prompt's own theta [N, L, D] is written, [L]."""
    schedule = wavefront_schedule(theta.shape[1])
    right = target.right(theta, range(theta.shape[1]), "replace", schedule)
    return right[:, 1:].mean(axis=0)


def _columns(
    target: Target, vectors: Mapping[str, np.ndarray], layers: Mapping[str, int], operation: str
) -> dict[str, np.ndarray]:
    """Right answers [N] of each vector, [D] or [N, D], at its layer; "" is the untouched text."""
    names = list(vectors)
    shape = (len(target.texts), vectors[names[0]].shape[-1])
    stacked = np.stack([np.broadcast_to(vectors[name], shape) for name in names], axis=1)
    right = target.right(stacked, [layers[name] for name in names], operation)
    return dict(zip(["", *names], right.T, strict=True))


def _named(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in columns.items() if name}


def summary(outcomes: Mapping[str, Outcomes], seed: int) -> dict[str, Any]:
    """Means over tasks with intervals, comparisons, and for which tasks labels matter."""
    tasks = list(outcomes.values())
    columns = [name for name in tasks[0].correct if all(name in task.correct for task in tasks)]
    against = compare(tasks, "function_vector", "task_vector")
    costs = {name: compare([task], "icl", "shuffled_icl") for name, task in outcomes.items()}
    cost = compare(tasks, "icl", "shuffled_icl")
    verdicts = beats_all(
        outcomes,
        "function_vector",
        {name: [c for c in CONTROLS if c in task.correct] for name, task in outcomes.items()},
    )
    return {
        "mean": {name: value._asdict() for name, value in means(tasks, columns, seed).items()},
        "against_theta": {
            **against._asdict(),
            "decision": decide(against.difference, against.p),
        },
        "cost_of_shuffling": {
            **cost._asdict(),
            "decision": decide(cost.difference, cost.p),
            "tasks": {name: paired.difference for name, paired in costs.items()},
        },
        "verdicts": {
            name: {**verdict._asdict(), "against": verdict.against._asdict()}
            for name, verdict in verdicts.items()
        },
    }


def shared_heads(effects: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """The heads of largest effect of each task, and how many two tasks have in common.

    Returns:
      `size`, the number of heads of each task; `tasks` by name, their heads; `common` [tasks x
      tasks], in that order; `expected`, what two random sets would have in common.
    """
    grids = {name: np.asarray(grid) for name, grid in effects.items()}
    every = next(iter(grids.values())).size
    size = min(SHARED, every)
    top = {name: rank_heads(grid)[:size] for name, grid in grids.items()}
    return {
        "size": size,
        "tasks": {name: [list(head) for head in heads] for name, heads in top.items()},
        "common": [[len({*a} & {*b}) for b in top.values()] for a in top.values()],
        "expected": size * size / every,
    }


if __name__ == "__main__":
    main(NAME)
