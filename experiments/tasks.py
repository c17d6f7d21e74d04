"""The tasks: what there is, what is wrong with a file, what a tokenizer keeps.

    python -m experiments.tasks
    python -m experiments.tasks --model=PATH
    python -m experiments.tasks --task_file=mine.json
    python -m experiments.tasks --show=translation_en_fr

Lists every task with its pairs and, with the model's tokenizer, how many of them it can pose and
in which form. Then what a score on them is worth: how many different answers there are, the share
of the most common one, the share that the best constant answer is right for by either rule, the
share of pairs that copy the input, and the share that one change of spelling turns into their
answers. A --task_file is checked first: every problem is printed with its line, and the exit status
is 2. --show prints each pair of a task with the tokens of its query and answer, and whether it is
kept.
Expected: seconds (no weights are loaded for a converted model).
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.commands.runner import show
from experiments.page.section import Cell, Section, Table, number, text
from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from experiments.run.own_tasks import tokenizer_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import accepted
from taskvec_jax.evaluation.controls import vocabulary_of
from taskvec_jax.evaluation.scoring import Vocabulary, best_constant, scoring_rule
from taskvec_jax.prompting.prompts import FittedTask, fit, render_query
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.tasks.regularity import commonest_change
from taskvec_jax.tasks.task_file import check_own_tasks


def main() -> None:
    """Lists, validates or shows tasks."""
    own = Path(FLAGS.task_file) if FLAGS.task_file else None
    if own is not None:
        validate(own)
    if FLAGS.show is not None:
        (task,) = command.tasks_from_flags([FLAGS.show])
        print_pairs(task, find_tokenizer())
        return
    tokenizer = find_tokenizer()
    show(listing(command.available_tasks_from_flags(), tokenizer))


def validate(path: Path) -> None:
    """Prints every problem of a file of own tasks.

    Raises:
      TaskVecError: there is one.
    """
    tasks, problems = check_own_tasks(path)
    for problem in problems:
        console.print(problem, markup=False)
    if problems:
        raise TaskVecError(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}")
    found = ", ".join(f"{task.name} ({len(task.pairs)} pairs)" for task in tasks)
    console.print(f"{path}: fine; {found}", markup=False)


def find_tokenizer() -> Tokenizer:
    """The tokenizer of --model, without its weights where it is converted already."""
    found = tokenizer_of(FLAGS.model, FLAGS.revision)
    return command.model_from_flags().tokenizer if found is None else found


def listing(tasks: Sequence[Task], tokenizer: Tokenizer) -> Section:
    """The table of tasks."""
    rows, notes = [], []
    vocabulary = vocabulary_of(tokenizer)
    for task in tasks:
        try:
            fitted = fit(task, tokenizer)
        except TaskVecError as error:
            notes.append(f"not usable: {error}")
            fitted = None
        if fitted and fitted.note:
            notes.append(fitted.note)
        rows.append(_row(task, fitted, vocabulary))
    return Section(
        "Tasks",
        notes,
        [
            Table(
                "Tasks and what the tokenizer keeps of them",
                [
                    "task",
                    "pairs",
                    "kept",
                    "form",
                    "answers",
                    "commonest",
                    "share",
                    "constant, whole",
                    "constant, token",
                    "copies",
                    "regular",
                    "change",
                    "example",
                ],
                rows,
            )
        ],
    )


def _row(task: Task, fitted: FittedTask | None, vocabulary: Vocabulary) -> list[Cell]:
    pairs = fitted.pairs if fitted else task.pairs
    answers = collections.Counter(pair.output.strip() for pair in pairs)
    common, times = answers.most_common(1)[0]
    copies = sum(pair.input.strip() == pair.output.strip() for pair in pairs)
    example = pairs[0]
    change, regular = commonest_change(pairs)
    constants = {
        name: best_constant(
            scoring_rule(name, match=task.match, ignore_case=task.ignore_case),
            [accepted(pair) for pair in pairs],
            vocabulary,
        )
        for name in ("full", "paper")
    }
    return [
        text(task.name),
        number(len(task.pairs), 0),
        number(len(fitted.pairs) if fitted else 0, 0),
        text(("␣x-> ␣y" if fitted.leading_space else "x->y") if fitted else "none"),
        number(len(answers), 0),
        text(common),
        number(times / len(pairs)),
        *(number(constant.share) for constant in constants.values()),
        number(copies / len(pairs)),
        number(regular),
        text(change),
        text(f"{render_query(example.input)}{example.output}"),
    ]


def print_pairs(task: Task, tokenizer: Tokenizer) -> None:
    """Every pair with its tokens, and why it is kept or not."""
    fitted = fit(task, tokenizer)
    kept = {pair.input for pair in fitted.pairs}
    space = " " if fitted.leading_space else ""
    for pair in task.pairs:
        asked = Pair(space + pair.input, space + pair.output)
        query = render_query(asked.input)
        tokens = [tokenizer.decode([token]) for token in tokenizer.encode(query)]
        answer = [
            tokenizer.decode([token]) for token in tokenizer.continuation(query, asked.output)
        ]
        mark = "kept" if asked.input in kept else "left out"
        console.print(f"{mark:<8}  {'|'.join(tokens)}  →  {'|'.join(answer)}", markup=False)
    console.print(f"{task.name}: {len(kept)} of {len(task.pairs)} pairs are kept", markup=False)


if __name__ == "__main__":
    command.define_model_flags()
    command.define_task_flags()
    flags.DEFINE_string("show", None, "Name of a task whose pairs are printed.")
    command.run(main)
