"""The tasks: what there is, what is wrong with a file, what a tokenizer keeps.

    python -m experiments.tasks
    python -m experiments.tasks --model=PATH
    python -m experiments.tasks --new=mine.csv
    python -m experiments.tasks mine.csv
    python -m experiments.tasks - < mine.csv
    python -m experiments.tasks --show=translation_en_fr

Lists every task with its pairs and, with the model's tokenizer, how many of them it can pose and
in which form. Then what a score on them is worth: how many different answers there are, the share
of the most common one, the share that the best constant answer is right for by either rule, the
share of pairs that copy the input, and the share that one change of spelling turns into their
answers.

A file of one's own (CSV, TSV, JSON, JSONL, Python; see taskvec_jax/tasks/task_file.py; `-` is
standard input) is looked over instead: every problem is printed with its line, and the exit status
is 2; else what the tokenizer keeps of each task, why the rest is left out, with a pair of each kind
and its tokens, and the command that runs it. The least a file needs is two columns,

    France,Paris
    Bolivia,Sucre,La Paz

where further columns are other answers that are also right. --new=FILE writes a file to begin with,
with comments (.csv or .py). --show prints each pair of a task with the tokens of its query and
answer, and whether it is kept.
No weights are loaded for a converted model.

Time: seconds.
"""

from __future__ import annotations

import collections
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.commands.runner import show
from experiments.examples.template import write_template
from experiments.page.section import Cell, Section, Table, number, text
from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from experiments.run.own_tasks import tokenizer_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import accepted
from taskvec_jax.evaluation.controls import vocabulary_of
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.scoring import Vocabulary, best_constant, scoring_rule
from taskvec_jax.prompting.prompts import (
    FEW_PAIRS,
    NOT_ONE,
    FittedTask,
    fit,
    is_single,
    why_left_out,
)
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.tasks.regularity import commonest_change
from taskvec_jax.tasks.task_file import check_own_tasks

MANY_TOKENS = (
    "answers of several tokens are kept with --filter=none, and are then generated and compared"
    " whole"
)
# Flags that the command repeats.
SAID = ("model", "revision", "filter", "template", "separator", "header")


def main() -> None:
    """Lists, validates or shows tasks, or writes a file to begin with."""
    if FLAGS.new is not None:
        path = Path(FLAGS.new)
        write_template(path)
        console.print(
            f"wrote {path}; put your pairs into it, then: python -m experiments.tasks"
            f" {shlex.quote(str(path))}",
            markup=False,
        )
        return
    own = Path(FLAGS.task_file) if FLAGS.task_file else None
    tasks = [] if own is None else validate(own)
    template = command.template_from_flags()
    if FLAGS.show is not None:
        (task,) = command.tasks_from_flags([FLAGS.show])
        print_pairs(task, find_tokenizer(), template)
    elif tasks:
        tokenizer = find_tokenizer()
        show(listing(tasks, tokenizer, template))
        for task in tasks:
            explain(task, tokenizer, template)
    else:
        show(listing(command.available_tasks_from_flags(), find_tokenizer(), template))


def validate(path: Path) -> list[Task]:
    """The tasks of a file of own tasks; prints every problem of it.

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
    return tasks


def explain(task: Task, tokenizer: Tokenizer, template: Template) -> None:
    """Says which pairs of a task are left out and why, and the command that runs it."""
    kept, faults = sifted(task, tokenizer, template)
    for reason, pairs in faults.items():
        shown = written(pairs[0], tokenizer, template)
        count = f"{len(pairs)} pair{'s' * (len(pairs) > 1)}"
        console.print(f"{task.name}: {count} left out: {reason}; such as {shown}", markup=False)
    if NOT_ONE in faults:
        console.print(f"{task.name}: {MANY_TOKENS}", markup=False)
    settings = Settings()
    need = settings.num_demonstrations + settings.num_dummy_queries + 1
    if len(kept) < need:
        console.print(
            f"{task.name}: cannot be run: a prompt of {settings.num_demonstrations} demonstrations,"
            f" {settings.num_dummy_queries} dummy queries and a query needs {need} different pairs,"
            f" and {len(kept)} are kept" + (f"; {MANY_TOKENS}" if NOT_ONE in faults else ""),
            markup=False,
        )
        return
    if len(kept) < FEW_PAIRS:
        console.print(
            f"{task.name}: {len(kept)} pairs are few: prompts repeat each other, and the layer is"
            " chosen on queries that it is also scored on",
            markup=False,
        )
    file = "FILE, where this is kept," if FLAGS.task_file == "-" else FLAGS.task_file
    given = [f"--{name}={FLAGS[name].value}" for name in SAID if FLAGS[name].present]
    words = ["python", "-m", "experiments.layer_sweep", f"--task_file={FLAGS.task_file}"]
    line = shlex.join([*words, f"--tasks={task.name}", *given])
    if FLAGS.task_file == "-":
        line += f"  (with the same input again, or --task_file={file} in place of -)"
    console.print(f"to run it: {line}", markup=False)


def sifted(
    task: Task, tokenizer: Tokenizer, template: Template
) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """The pairs that are kept, and why the others are not -> these, as written in a prompt."""
    try:
        fitted = fit(task, tokenizer, template, FLAGS.filter)
        space, inner = fitted.leading_space, not template.answer_space
    except TaskVecError:
        space, inner = bool(template.answer_space), False
    single = is_single(task, FLAGS.filter)
    kept, faults = [], collections.defaultdict(list)
    for pair in task.pairs:
        before = " " if space and inner else ""
        gap = template.answer_space or before
        pair = Pair(before + pair.input, gap + pair.output, pair.accepted)
        if reason := why_left_out(pair, tokenizer, single, template):
            faults[reason].append(pair)
        else:
            kept.append(pair)
    return kept, dict(faults)


def written(pair: Pair, tokenizer: Tokenizer, template: Template) -> str:
    """The tokens of a query and of what its answer adds, for people."""
    query = template.zero_shot(pair.input)
    before = [token for _, token in spelled(tokenizer, query)]
    added = spelled(tokenizer, query + pair.output)[len(before) :]
    return f"{'|'.join(before)}  →  {'|'.join(token for _, token in added)}"


def spelled(tokenizer: Tokenizer, text: str) -> list[tuple[int, str]]:
    """(id, text) of each token."""
    return [(i, tokenizer.piece(i)) for i in tokenizer.encode(text)]


def find_tokenizer() -> Tokenizer:
    """The tokenizer of --model, without its weights where it is converted already."""
    found = tokenizer_of(FLAGS.model, FLAGS.revision)
    return command.model_from_flags().tokenizer if found is None else found


def listing(tasks: Sequence[Task], tokenizer: Tokenizer, template: Template = PAPER) -> Section:
    """The table of tasks."""
    rows, notes = [], []
    vocabulary = vocabulary_of(tokenizer)
    for task in tasks:
        try:
            fitted = fit(task, tokenizer, template, FLAGS.filter)
        except TaskVecError as error:
            notes.append(f"not usable: {error}")
            fitted = None
        if fitted and fitted.note:
            notes.append(fitted.note)
        rows.append(_row(task, fitted, template, vocabulary))
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


def _row(
    task: Task, fitted: FittedTask | None, template: Template, vocabulary: Vocabulary
) -> list[Cell]:
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
        text(_form(fitted) if fitted else "none"),
        number(len(answers), 0),
        text(common),
        number(times / len(pairs)),
        *(number(constant.share) for constant in constants.values()),
        number(copies / len(pairs)),
        number(regular),
        text(change),
        text(" ".join(template.show(example.input, example.output).split("\n"))),
    ]


def _form(fitted: FittedTask) -> str:
    if fitted.template != PAPER:
        return fitted.template.pair.replace("\n", " ")
    return "␣x-> ␣y" if fitted.leading_space else "x->y"


def print_pairs(task: Task, tokenizer: Tokenizer, template: Template) -> None:
    """Every pair with its tokens, and why it is left out if it is."""
    kept, faults = sifted(task, tokenizer, template)
    why = {pair.input: reason for reason, pairs in faults.items() for pair in pairs}
    pairs = {pair.input.strip(): pair for some in (kept, *faults.values()) for pair in some}
    for own in task.pairs:
        pair = pairs[own.input.strip()]
        mark = "left out" if pair.input in why else "kept"
        reason = f"  ({why[pair.input]})" if pair.input in why else ""
        line = f"{mark:<8}  {written(pair, tokenizer, template)}{reason}"
        console.print(line, markup=False)
    console.print(f"{task.name}: {len(kept)} of {len(task.pairs)} pairs are kept", markup=False)


if __name__ == "__main__":
    command.define_model_flags()
    command.define_task_flags()
    command.define_filter_flag()
    command.define_template_flags()
    flags.DEFINE_string("show", None, "Name of a task whose pairs are printed.")
    flags.DEFINE_string(
        "new", None, "Path of a file of own tasks to begin with, .csv or .py, to be written."
    )
    command.run(main, ("task_file",))
