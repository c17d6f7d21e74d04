"""From flags to a study: what is asked for is looked over before anything is loaded or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from convert.help import group
from convert.progress import in_words
from experiments.run import flags as command
from experiments.run import own_tasks, preemption, rerun, timing
from experiments.run.flags import FLAGS, console
from experiments.run.journal import Journal
from experiments.run.results import (
    check_results,
    results_directory,
    short_demonstrations,
)
from experiments.run.study import Study
from taskvec_jax.distributed.processes import all_or_none, is_first_process
from taskvec_jax.distributed.sharding import MeshShape
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.injection_check import check_injection
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.converting import check_dtype
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import fit
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.checks import check_texts
from taskvec_jax.transformer.config import DecoderConfig


def define_flags() -> None:
    """All flags a study needs."""
    command.define_model_flags()
    command.define_prompt_flags()
    with group("Memory and results"):
        flags.DEFINE_string("out", None, "Directory for results; results/<run> when left out.")
        rerun.define_flag()


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the flags ask for, looked over before anything is loaded or written.

    Attributes:
      settings: of the run.
      tasks: those to run, whether they fit or not.
      available: all that are known.
      fitted: the tasks that fit and why the others do not (`fitting_tasks`); None where the
        model's tokenizer is not here yet.
    """

    settings: Settings
    tasks: list[Task]
    available: list[Task]
    fitted: tuple[list[Task], dict[str, str]] | None


def ask(checks: Sequence[Callable[[DecoderConfig], None]] = ()) -> Asked:
    """Reads the flags of a study and finds what is wrong with them, without the model's weights.

    Args:
      checks: each is called with the model's config, and raises TaskVecError where the options of
        an experiment that will be run cannot be meant.

    Raises:
      TaskVecError: flags that cannot be meant, an unknown model or task, a named task that does not
        fit.
    """
    rerun.apply()
    settings = command.settings_from_flags()
    tasks, available = command.tasks_from_flags(), command.available_tasks_from_flags()
    check_dtype(FLAGS.dtype)
    if FLAGS.mesh:
        MeshShape.parse(FLAGS.mesh)
    fitted = None
    with all_or_none():
        if is_first_process():  # of several processes only its files count
            config = command.refuse_too_large_model()
            for check in checks:
                check(config)
            tokenizer = own_tasks.tokenizer_of(FLAGS.model, FLAGS.revision)
            if tokenizer is not None:
                must_fit = bool(FLAGS.tasks)
                fitted = fitting_tasks(tokenizer, tasks, settings, must_fit, config)
    return Asked(settings, tasks, available, fitted)


def study_from_flags(
    model: Model | None = None,
    out: Path | None = None,
    checks: Sequence[Callable[[DecoderConfig], None]] = (),
) -> Study:
    """Loads the model and opens the journal that the flags ask for.

    Args:
      checks: as for `ask`.

    Raises:
      TaskVecError: flags that do not fit, or a model whose writes and reads do not agree.
    """
    asked = ask(checks)
    out = out or results_directory()
    journal = open_journal(out)
    if model is None:
        console.print("Reading the model's weights")
        model, settings = command.model_within_memory(asked.settings, asked.tasks)
    else:
        settings = command.within_memory(asked.settings, model, asked.tasks)
    rerun.check_weights(model)
    check_results(out, model)
    short = short_demonstrations()
    tasks, left_out = asked.fitted or fitting_tasks(
        model.tokenizer, asked.tasks, settings, must_fit=bool(FLAGS.tasks)
    )
    tell_left_out(left_out)
    study = Study(
        model=model,
        tasks=tasks,
        available=asked.available,
        settings=settings,
        short_settings=dataclasses.replace(settings, num_demonstrations=short),
        out=out,
        journal=journal,
        named=bool(FLAGS.tasks),
        record={
            "task_data": FLAGS.task_data,
            "task_file": FLAGS.task_file,
            "left_out": left_out,
        },
    )
    difference = check_injection(model, settings.batch_size)
    console.print(
        f"{model.name}: own residual re-injected after each layer: top logit moves by"
        f" {difference:.1e} at most"
    )
    if FLAGS.half_width is not None:
        say_time(study)
    return study


def say_time(study: Study) -> None:
    """One line: how many prompts --half_width comes to, and about how long they take."""
    found = timing.estimate(
        study.model,
        study.tasks[0],
        study.settings,
        num_tasks=len(study.tasks),
        num_known=len(study.available),
    )
    console.print(
        f"--half_width={FLAGS.half_width:g}: {study.settings.num_prompts} prompts of each split;"
        " about "
        + ", ".join(f"{in_words(s)} for {name}" for name, s in found.items())
        + " here. A task with fewer pairs asks for fewer distinct queries, and its interval stays"
        " wider than it looks.",
        markup=False,
    )


def open_journal(out: Path) -> Journal:
    """The journal of a directory, which SIGTERM ends between two units."""
    preemption.listen()
    journal = Journal(out, preemption.stop_if_asked)
    if journal.unreadable:
        console.print(
            f"{journal.path}: {journal.unreadable} damaged line"
            f"{'s' * (journal.unreadable > 1)}; what stood there is computed again",
            markup=False,
        )
    return journal


def fitting_tasks(
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    settings: Settings,
    must_fit: bool,
    config: DecoderConfig | None = None,
) -> tuple[list[Task], dict[str, str]]:
    """The tasks that a tokenizer and these settings can pose, found before any costs time.

    Args:
      must_fit: the tasks were named one by one, so one that does not fit is an error.
      config: of the model, whose context a prompt must not exceed; None: that is seen later.

    Returns:
      The tasks, and why the others were left out, by name.

    Raises:
      TaskVecError: a named task does not fit, or none does.
    """
    fitting, left_out, why = [], {}, TaskVecError("there is no task to run; name one with --tasks")
    for task in tasks:
        try:
            fitted = fit(task, tokenizer, settings.template, settings.filter)
            (first,) = draw_prompts(fitted, dataclasses.replace(settings, num_prompts=1), "test")
            if config is not None:
                _check_length(config, task, tokenizer.encode_all([first.icl(), *first.dummies()]))
        except TaskVecError as error:
            if must_fit:
                raise
            why = error
            left_out[task.name] = str(error)
        else:
            fitting.append(task)
    if not fitting:
        raise why
    return fitting, left_out


def _check_length(config: DecoderConfig, task: Task, texts: Sequence[Sequence[int]]) -> None:
    try:
        check_texts(config, texts)
    except TaskVecError as error:
        raise TaskVecError(f"{task.name}: {error}") from None


def tell_left_out(left_out: Mapping[str, str]) -> None:
    """A line for each task that is left out."""
    for reason in left_out.values():
        console.print(f"left out: {reason}", markup=False)
