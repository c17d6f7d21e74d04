"""What is worth a sweep: in-context learning against zero-shot, for all tasks.

    python -m experiments.screen --model=pythia-1.4b
    python -m experiments.screen --tasks=linguistic_antonyms,translation_fr_en --num_prompts=100

Reads the dev prompts of every task with and without their demonstrations; no theta is read and
nothing is injected. A task is worth sweeping if in-context learning is right on .20 more of them
than zero-shot is: only then is there something for a task vector to carry. The numbers are those
that a later sweep under the same settings finds on dev, and the tasks it calls ICL-able.

Time: 1 minute (2 cores).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.commands.runner import show
from experiments.page.section import Section, Table, number, score, text
from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from experiments.run.start import fitting_tasks, tell_left_out
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.columns import Predicted, score_columns
from taskvec_jax.evaluation.reading import draw_prompts, read_in_context
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import ICL_GAIN, accuracy, icl_able
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.sweep import read_texts


def screen_task(model: Model, task: Task, settings: Settings) -> dict[str, Any]:
    """In-context and zero-shot accuracy of a task on its dev prompts.

    Raises:
      TaskVecError: the task does not suit the tokenizer or the settings.
    """
    scorer = scorer_of(model, task, settings)
    dev = draw_prompts(scorer.fitted, settings, "dev")
    encode = model.tokenizer.encode_all
    asked = encode([prompt.zero_shot() for prompt in dev])
    _, plain = read_texts(model, [[text] for text in asked], settings.batch_size)
    columns = {
        "icl": Predicted(
            read_in_context(scorer, dev, settings.batch_size).begun(),
            encode([prompt.icl() for prompt in dev]),
        ),
        "baseline": Predicted([(token,) for token in plain.tokens[:, 0].tolist()], asked),
    }
    scored = score_columns(scorer, dev, columns=columns, rule=settings.rule)
    queries = [prompt.query.input for prompt in dev]
    return {
        **{name: vars(accuracy(scored[name]["correct"], queries)) for name in columns},
        "icl_able": icl_able(scored["icl"]["correct"], scored["baseline"]["correct"]),
    }


def section(found: dict[str, dict[str, Any]]) -> Section:
    """The table, those with most to gain first, and the flag that sweeps what is worth it."""
    gain = {n: t["icl"]["accuracy"] - t["baseline"]["accuracy"] for n, t in found.items()}
    rows = [
        [
            text(name),
            score(found[name]["baseline"]),
            score(found[name]["icl"]),
            number(gain[name]),
            text("yes" if found[name]["icl_able"] else "no"),
        ]
        for name in sorted(found, key=lambda name: -gain[name])
    ]
    worth = [name for name, task in found.items() if task["icl_able"]]
    mean = np.mean([task["icl"]["accuracy"] for task in found.values()])
    words = [
        f"{len(worth)} of {len(found)} tasks are worth sweeping (ICL gains {ICL_GAIN:.2f} or more;"
        f" mean of ICL {mean:.2f}).",
        f"--tasks={','.join(worth)}" if worth else "In-context learning does none of these tasks.",
    ]
    columns = ["task", "zero-shot", "ICL", "gain", "worth sweeping"]
    return Section("What is worth a sweep?", words, [Table("On dev prompts", columns, rows)])


def main() -> None:
    """Screens the tasks that the flags ask for."""
    settings, asked = command.settings_from_flags(), command.tasks_from_flags()
    model, settings = command.model_within_memory(settings, asked)
    tasks, left_out = fitting_tasks(model.tokenizer, asked, settings, must_fit=bool(FLAGS.tasks))
    tell_left_out(left_out)
    found = {}
    with command.progress_bar() as bar:
        row = bar.add_task("screening", total=len(tasks))
        for task in tasks:
            bar.update(row, description=f"screening {task.name}")
            found[task.name] = screen_task(model, task, settings)
            bar.advance(row)
    show(section(found))
    console.print(f"rule {settings.rule}, {settings.num_prompts} dev prompts a task", markup=False)


if __name__ == "__main__":
    command.define_model_flags()
    command.define_prompt_flags()
    command.run(main)
