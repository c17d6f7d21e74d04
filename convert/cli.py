"""What every command line shares: flags of the model, a progress bar, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import jax
from absl import app, flags, logging
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from taskvec_jax.distributed.plan import choose_mesh, mesh_line
from taskvec_jax.distributed.processes import is_first_process
from taskvec_jax.distributed.sharding import MeshShape, make_mesh, shape_of
from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.models.converting import Progress as Report
from taskvec_jax.models.registry import DEFAULT_MODEL
from taskvec_jax.transformer.config import DTYPES, DecoderConfig

FLAGS = flags.FLAGS
T = TypeVar("T")
console = Console(highlight=False, soft_wrap=True)


def define_model_flags(dtype: str | None) -> None:
    """--model, --revision and --dtype, which is `dtype` when left out (None: as the source is)."""
    flags.DEFINE_string(
        "model",
        DEFAULT_MODEL,
        "a known name, ORG/NAME of the Hugging Face hub, or the path of a Hugging Face directory,"
        " .gguf file, Meta's consolidated.*.pth or converted model",
    )
    flags.DEFINE_string("revision", None, "branch, tag or commit on the hub, such as step1000")
    as_source = "" if dtype else "; as the source has them when left out"
    flags.DEFINE_enum("dtype", dtype, list(DTYPES), f"of the parameters{as_source}")


def define_mesh_flags() -> None:
    """--mesh, and what several processes need to find one another."""
    flags.DEFINE_string(
        "mesh",
        None,
        "data:N,model:M, devices that prompts and parameters are split over; when left out, all"
        " devices are on data if the model fits one, else on model",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT where process 0 of several listens; auto: ask the cluster (Slurm, TPU, ...)",
    )
    flags.DEFINE_integer("num_processes", None, "how many processes there are; see --coordinator")
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0; 0 prints and writes")


def define_list(
    name: str,
    default: Sequence[str] | None,
    explained: str,
    check: Callable[[str], object] = str,
    required: bool = False,
) -> None:
    """A flag of at least one word, with commas between.

    Args:
      check: refuses a word with a TaskVecError, before anything is done.
    """
    flags.DEFINE_list(
        name, None if default is None else list(default), explained, required=required
    )

    def valid(words: list[str] | None) -> bool:
        if words is not None and not words:
            raise flags.ValidationError("it is empty; name at least one")
        try:
            for word in words or ():
                check(word)
        except TaskVecError as error:
            raise flags.ValidationError(str(error)) from None
        return True

    flags.register_validator(name, valid)


def mesh_from_flags(batch_size: int) -> Callable[[DecoderConfig], Mesh | None]:
    """What --mesh asks for, or the choice for a config; said aloud, once, where there is a choice.

    Conversion on first use asks too, for a model in the source's precision: that is not said.

    Raises:
      TaskVecError: --mesh cannot be read.
    """
    asked = MeshShape.parse(FLAGS.mesh) if FLAGS.mesh else None
    said: set[str] = set()

    def choose(config: DecoderConfig) -> Mesh | None:
        if asked is None and jax.device_count() == 1:
            return None
        mesh = make_mesh(asked or choose_mesh(config, batch_size))
        line = mesh_line(config, shape_of(mesh), batch_size)
        run = FLAGS.dtype or config.dtype, FLAGS.quantization if "quantization" in FLAGS else "none"
        if (config.dtype, config.quantization) == run and line not in said:
            said.add(line)
            console.print(line, markup=False)
        return mesh

    return choose


def join_processes() -> None:
    """Becomes one of several processes if --coordinator says so, before any device is touched.

    Raises:
      TaskVecError: flags that do not go together, or the others cannot be reached.
    """
    if "coordinator" not in FLAGS:
        return
    where, count, index = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if where is None:
        if count is not None or index is not None:
            raise TaskVecError("--num_processes and --process_id need --coordinator=HOST:PORT")
        return
    if where == "auto":
        where = None
    elif count is None or index is None or not 0 <= index < count:
        raise TaskVecError(
            f"--coordinator={where} with --num_processes={count} --process_id={index}: allowed are"
            " a number of processes and an id from 0 below it, or --coordinator=auto alone"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(where, count, index)
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise TaskVecError(
            f"--coordinator={FLAGS.coordinator}: the processes did not meet ({reason}); start"
            " --num_processes of them, with ids from 0, at the same time"
        ) from None
    console.quiet = not is_first_process()


def progress_bar() -> Progress:
    """The house's progress bar; rows printed through its console stay above it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def reporting(work: Callable[[Report], T], name: str | None = None) -> T:
    """Does a piece of work on a model, that of the flags unless another is named, behind a progress
    bar, and gives its result."""
    name = name or FLAGS.model
    with progress_bar() as bar:
        row = bar.add_task(f"loading {name}", total=1)

        def report(what: str, done: int, total: int) -> None:
            bar.update(row, description=f"{what} {name}", completed=done, total=total)

        return work(report)


def run(main: Callable[[], None]) -> None:
    """Runs a command: parses flags, and turns bad input into one line and exit status 2."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = FLAGS(argv)
        except flags.Error as error:
            _refuse(f"{error}; --help lists the flags")
        if len(rest) > 1:
            _refuse(f"unexpected argument {rest[1]!r}; flags start with --, --help lists them")
        return rest

    def wrapped(argv: list[str]) -> None:
        del argv
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax and JAX speak at length below that
        try:
            join_processes()
            main()
        except TaskVecError as error:
            _refuse(str(error))
        except KeyboardInterrupt:
            console.print("stopped")
            sys.exit(130)

    app.run(wrapped, flags_parser=parse)


def _refuse(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", markup=False)
    sys.exit(2)
