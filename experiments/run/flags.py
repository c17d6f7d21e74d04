"""What every experiment shares: flags, and what they ask for."""

# Long because: flags stand beside what is made of them.

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from convert import cli as command
from convert.cli import FLAGS, console, define_list, progress_bar
from convert.help import group
from experiments.run import rerun
from taskvec_jax.distributed.plan import (
    GB,
    PLANNED_BATCH,
    RowSizes,
    device_kind,
    largest_batch,
    memory_to_use,
    plan_lines,
    refuse_too_large,
    share_bytes,
)
from taskvec_jax.distributed.processes import all_or_none, is_first_process, least
from taskvec_jax.distributed.sharding import MeshShape, shape_of
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.measuring import longest_rows
from taskvec_jax.evaluation.results import WORDS, Settings
from taskvec_jax.evaluation.statistics import prompts_for
from taskvec_jax.models.compilation import keep_programs
from taskvec_jax.models.loading import Prepared, prepare_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import describe
from taskvec_jax.prompting.templates import NAMED, Template
from taskvec_jax.tasks import Task, read_own_tasks, registry, select
from taskvec_jax.transformer.config import PRECISIONS, QUANTIZATIONS, DecoderConfig
from taskvec_jax.vectors.compiled_memory import largest_compiled_batch
from taskvec_jax.vectors.sweep import query_length, row_length

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
__all__ = ["FLAGS", "console", "define_list", "progress_bar"]  # of all commands


@group("Model")
def define_model_flags() -> None:
    """--model, --revision, --dtype, --quantization, --matmul_precision, --plan, --mesh and those of
    processes."""
    command.define_model_flags("float32")
    command.define_mesh_flags()
    flags.DEFINE_enum(
        "quantization",
        "none",
        list(QUANTIZATIONS),
        "How kernels of linear maps are kept. int8: one byte a number; int4: half of one; --dtype"
        " is then the dtype of all other parameters and of products.",
    )
    flags.DEFINE_enum(
        "matmul_precision",
        "highest",
        list(PRECISIONS),
        "How products of float32 numbers are computed on a GPU or TPU. highest: in float32. high:"
        " TF32, or three products of bfloat16. default: TF32, or bfloat16, which is fastest. A CPU"
        " knows one way.",
    )
    flags.DEFINE_bool("plan", False, "Say what the model needs and where it fits, and do nothing.")


@group("Prompts and scoring")
def define_prompt_flags() -> None:
    """The flags of `Settings`, and the choice of tasks."""
    defaults = Settings()
    flags.DEFINE_integer(
        "num_prompts",
        defaults.num_prompts,
        "Number of dev prompts, and of test prompts, for each task.",
    )
    flags.DEFINE_integer(
        "num_demonstrations", defaults.num_demonstrations, "Demonstrations in each prompt."
    )
    flags.DEFINE_integer(
        "num_dummy_queries",
        defaults.num_dummy_queries,
        "Dummy queries that theta is averaged over.",
    )
    flags.DEFINE_float(
        "half_width",
        None,
        "Instead of --num_prompts: as many as make the 95 % interval of a task's accuracy this much"
        " to either side at most, such as .05; how many, and about how long it takes, is said.",
        lower_bound=0.005,
        upper_bound=0.5,
    )
    flags.DEFINE_integer("seed", defaults.seed, "Seed for drawing prompts.")
    flags.DEFINE_enum(
        "rule",
        defaults.rule,
        list(WORDS["rule"]),
        "When an answer is right, which also chooses layers. full: a whole answer. paper: the first"
        " token, as the paper scores it, and queries drawn as the paper does.",
    )
    define_filter_flag()
    define_template_flags()
    with group("Memory and results"):
        flags.DEFINE_integer(
            "batch_size",
            defaults.batch_size,
            "Prompts that a compiled call works on, --num_prompts at most (on a CPU parts of them,"
            " of 25 or fewer); it changes no result.",
        )
        flags.DEFINE_float(
            "memory_gb",
            None,
            "Most memory to use, in GB; that of this machine when left out. Fewer prompts a call"
            " are taken to stay below it.",
        )
    with group("Tasks"):
        flags.DEFINE_list(
            "tasks",
            None,
            "Names of tasks, such as linguistic_antonyms or just antonyms, with commas between; all"
            " when left out.",
        )
    define_task_flags()


@group("Tasks")
def define_filter_flag() -> None:
    """Defines --filter."""
    flags.DEFINE_enum(
        "filter",
        Settings().filter,
        list(WORDS["filter"]),
        "Which pairs are kept. single_token: those whose answer is one token, outside knowledge."
        " none: longer answers too.",
    )


@group("Prompts and scoring")
def define_template_flags() -> None:
    """--template, --separator and --header: how prompts are written."""
    flags.DEFINE_string(
        "template",
        "paper",
        f"How a pair is written: a pair with {{x}} and {{y}} ('Q: {{x}}\\nA: {{y}}'), a name"
        f" ({', '.join(NAMED)}), or the path of a model's chat_template.jinja or"
        " tokenizer_config.json.",
    )
    flags.DEFINE_string("separator", None, "Between pairs; that of the template when left out.")
    flags.DEFINE_string(
        "header",
        None,
        "Before every prompt, with demonstrations and without; of a chat, the system message.",
    )


def template_from_flags() -> Template:
    """How the flags say that prompts are written.

    Raises:
      TaskVecError: no such template, or one that will not do.
    """
    return Template.of(FLAGS.template, separator=FLAGS.separator, header=FLAGS.header)


@group("Tasks")
def define_task_flags() -> None:
    """Where tasks come from."""
    flags.DEFINE_string(
        "task_data", None, "Directory of category/name.json files to use instead of our own tasks."
    )
    flags.DEFINE_string(
        "task_file",
        None,
        "File of tasks that join the others: CSV, TSV or JSONL of pairs, JSON, or Python; - is"
        " standard input.",
    )


def settings_from_flags() -> Settings:
    """The settings the flags ask for.

    A call is of --batch_size prompts, or of as many as there are: what is missing would be filled
    up with repetitions, and a quick look at 10 prompts take as long as one at 50.

    Raises:
      TaskVecError: one of them, or --memory_gb, cannot be meant.
    """
    if FLAGS.memory_gb is not None and not FLAGS.memory_gb > 0:  # nan is not either
        raise TaskVecError(f"--memory_gb={FLAGS.memory_gb:g}; it must be above 0")
    num_prompts = num_prompts_from_flags()
    return Settings(
        num_prompts=num_prompts,
        num_demonstrations=FLAGS.num_demonstrations,
        num_dummy_queries=FLAGS.num_dummy_queries,
        seed=FLAGS.seed,
        batch_size=min(FLAGS.batch_size, num_prompts),
        rule=FLAGS.rule,
        filter=FLAGS.filter,
        template=template_from_flags(),
    )


def num_prompts_from_flags() -> int:
    """--num_prompts, or what --half_width comes to.

    Raises:
      TaskVecError: both are given.
    """
    if "half_width" not in FLAGS or FLAGS.half_width is None:
        return FLAGS.num_prompts
    if FLAGS["num_prompts"].present:
        raise TaskVecError(
            f"--num_prompts={FLAGS.num_prompts} and --half_width={FLAGS.half_width:g} both say how"
            " many prompts; give one of them"
        )
    return prompts_for(FLAGS.half_width)


def within_memory(settings: Settings, model: Model, tasks: Sequence[Task]) -> Settings:
    """The settings with the largest batch, at most the one asked for, that fits; the weights need
    not be in memory yet (`Prepared.model`).

    What fits is what the compiler says of the programs for the longest prompts of these tasks under
    these settings (on a CPU, which says too little of its own, `footprint.sweep_bytes`), held
    against --memory_gb, or the memory of this machine without it.

    Raises:
      TaskVecError: --memory_gb is not above 0, or not even one prompt at a time fits in it.
    """
    config, mesh = model.config, shape_of(model.mesh)
    sizes = RowSizes(*longest_rows(model, tasks, settings))
    if FLAGS.memory_gb is not None:
        if not FLAGS.memory_gb > 0:  # nan is not either
            raise TaskVecError(f"--memory_gb={FLAGS.memory_gb:g}; it must be above 0")
        limit, why = FLAGS.memory_gb * GB, f"--memory_gb={FLAGS.memory_gb:g}"
        batch_size = largest_batch(config, limit, settings.batch_size, mesh, sizes)
    else:
        held = share_bytes(config, config.dtype, mesh.model) if model.weights_sha256 else 0
        limit = memory_to_use(held)
        why = f"{limit / GB:.1f} GB to use here"
        try:
            batch_size = largest_batch(config, limit, settings.batch_size, mesh, sizes)
        except TaskVecError:
            batch_size = 1  # the count is an upper bound: one prompt may fit all the same
        batch_size = least(batch_size)  # of several processes, which must compile the same
    if device_kind() != "cpu":  # the compiler knows better
        padded = RowSizes(row_length(sizes.prompt), query_length(sizes.query), sizes.reads)
        batch_size = least(largest_compiled_batch(model, limit, settings.batch_size, padded))
    if batch_size < settings.batch_size:
        console.print(f"{why}: {batch_size} prompts a call")
    return dataclasses.replace(settings, batch_size=batch_size)


def tasks_from_flags(names: list[str] | None = None, model: str | None = None) -> list[Task]:
    """The named tasks, or those that --tasks names, or the model's own with those of --task_file,
    or all; from where --task_data and --task_file say. Of --rerun, those of its file.

    Args:
      model: whose own tasks count; that of --model when None.
    """
    again = rerun.tasks()
    if again is not None:
        return again
    data, own = _task_paths()
    added, default = _own_tasks(model)
    names = names or FLAGS.tasks
    if names is None and default and data is None:
        users = [task.name for task in read_own_tasks(own)] if own else []
        names = list(dict.fromkeys([*default, *users]))
    return select(names, data, own, added)


def available_tasks_from_flags(model: str | None = None) -> list[Task]:
    """All tasks the flags and the model make known, whether asked for or not."""
    again = rerun.available()
    if again is not None:
        return again
    return list(registry(*_task_paths(), _own_tasks(model)[0]).values())


def own_task_names() -> list[str]:
    """Names of the tasks that the model of --model was trained on."""
    return _own_tasks(None)[1]


def _own_tasks(model: str | None) -> tuple[list[Task], list[str]]:
    from experiments.run import own_tasks

    return own_tasks.own_tasks(model or FLAGS.model, FLAGS.revision if not model else None)


def _task_paths() -> tuple[Path | None, Path | None]:
    data, own = (Path(path) if path else None for path in (FLAGS.task_data, FLAGS.task_file))
    return data, own


def model_from_flags() -> Model:
    """Loads the model the flags ask for, behind a progress bar."""
    return load(prepared_from_flags())


def model_within_memory(settings: Settings, tasks: Sequence[Task]) -> tuple[Model, Settings]:
    """The model the flags ask for, and the settings with a batch that fits beside it, which is
    chosen before the weights are read (`within_memory`)."""
    prepared = prepared_from_flags()
    settings = within_memory(settings, prepared.model, tasks)
    return load(prepared), settings


def load(prepared: Prepared) -> Model:
    """Reads a model's weights, behind a progress bar."""
    return command.reporting(prepared.load)


def prepared_from_flags() -> Prepared:
    """The model the flags ask for, but for its weights, behind a progress bar.

    Raises:
      TaskVecError: an unknown or unsupported model, or one that these devices cannot hold.
    """
    with all_or_none():
        if is_first_process():  # of several processes only its files count
            refuse_too_large_model()
    return command.reporting(
        lambda report: prepare_model(
            FLAGS.model,
            FLAGS.dtype,
            report,
            FLAGS.revision,
            command.mesh_from_flags(FLAGS.batch_size if "batch_size" in FLAGS else PLANNED_BATCH),
            FLAGS.quantization,
            FLAGS.matmul_precision,
        )
    )


def refuse_too_large_model() -> DecoderConfig:
    """Refuses the model the flags ask for where these devices cannot hold it; gives its config.

    Raises:
      TaskVecError: an unknown model, or one that is too large; it says what would fit.
    """
    _, config = describe(FLAGS.model, FLAGS.revision)
    planned = dataclasses.replace(config, dtype=FLAGS.dtype, quantization=FLAGS.quantization)
    refuse_too_large(FLAGS.model, planned, MeshShape.parse(FLAGS.mesh) if FLAGS.mesh else None)
    return config


def run(main: Callable[[], None], positional: Sequence[str] = ()) -> None:
    """Runs an experiment, or with --plan says what its model needs instead.

    Args:
      positional: flags that words without -- are taken for, in this order.
    """

    def planned() -> None:
        if "plan" in FLAGS and FLAGS.plan:
            for line in plan_lines(*describe(FLAGS.model, FLAGS.revision)):
                console.print(line, markup=False)
            return
        keep_programs()
        try:
            main()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise TaskVecError(
                f"{error.filename or 'a file'}: cannot be written ({error.strerror}); make room, or"
                " choose another --out"
            ) from None

    command.run(planned, positional)
