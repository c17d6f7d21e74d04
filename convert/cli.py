"""What all commands share: flags of the model, --help, a progress bar, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import jax
from absl import app, flags, logging
from jax.sharding import Mesh
from rich.console import Console

from taskvec_jax.distributed.plan import choose_mesh, mesh_line
from taskvec_jax.distributed.processes import found_cluster, is_first_process
from taskvec_jax.distributed.sharding import MeshShape, make_mesh, shape_of
from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.models.converting import Progress as Report
from taskvec_jax.models.registry import DEFAULT_MODEL
from taskvec_jax.printing import until_nobody_reads
from taskvec_jax.transformer.config import DTYPES, DecoderConfig

from . import help as helping
from .help import group
from .progress import Bar, Overall

FLAGS = flags.FLAGS
T = TypeVar("T")
RENAMED = {"weights": "quantization"}  # flags of earlier versions
console = Console(highlight=False, soft_wrap=True)


@group("Model")
def define_model_flags(dtype: str | None) -> None:
    """--model, --revision and --dtype, which is `dtype` when left out (None: as the source is)."""
    flags.DEFINE_string(
        "model",
        DEFAULT_MODEL,
        "A known name, ORG/NAME of the Hugging Face hub, or the path of a Hugging Face directory,"
        " .gguf file, Meta's consolidated.*.pth or converted model.",
    )
    flags.DEFINE_string("revision", None, "Branch, tag or commit on the hub, such as step1000.")
    as_source = "" if dtype else "; as the source has them when left out"
    flags.DEFINE_enum("dtype", dtype, list(DTYPES), f"Dtype of the parameters{as_source}.")


@group("Devices and processes")
def define_mesh_flags() -> None:
    """--mesh, and what several processes need to find one another."""
    flags.DEFINE_string(
        "mesh",
        None,
        "data:N,model:M: devices that prompts and parameters are split over. When left out, all"
        " devices are on data if the model fits one, else on model.",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT where process 0 of several listens. auto: ask the cluster (Slurm, TPU, ...),"
        " which is the default where Slurm or a TPU VM started the process.",
    )
    flags.DEFINE_integer("num_processes", None, "How many processes there are; see --coordinator.")
    flags.DEFINE_integer(
        "process_id", None, "Which process this is, from 0; process 0 prints and writes."
    )


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
    """A function that gives the mesh for a config: that of --mesh, or else a choice.

    It prints the mesh once if there is a choice, but not when conversion on first use asks for a
    mesh in another precision than that of the run.

    Raises:
      TaskVecError: --mesh cannot be read.
    """
    asked = MeshShape.parse(FLAGS.mesh) if FLAGS.mesh else None
    printed: set[str] = set()

    def choose(config: DecoderConfig) -> Mesh | None:
        if asked is None and jax.device_count() == 1:
            return None
        mesh = make_mesh(asked or choose_mesh(config, batch_size))
        line = mesh_line(config, shape_of(mesh), batch_size)
        run = FLAGS.dtype or config.dtype, FLAGS.quantization if "quantization" in FLAGS else "none"
        if (config.dtype, config.quantization) == run and line not in printed:
            printed.add(line)
            console.print(line, markup=False)
        return mesh

    return choose


def join_processes() -> None:
    """Joins the other processes if --coordinator is given, or a cluster has started several.

    Call it before any use of a device.

    Raises:
      TaskVecError: flags that do not go together, or the others cannot be reached.
    """
    if "coordinator" not in FLAGS:
        return
    where, count, index = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if where is None:
        if count is not None or index is not None:
            raise TaskVecError("--num_processes and --process_id need --coordinator=HOST:PORT")
        if found_cluster() is None:
            return
        where = "auto"
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
            f"--coordinator={FLAGS.coordinator or 'auto'}: the processes did not meet ({reason});"
            f" {_way_to_meet(where)}"
        ) from None
    console.quiet = not is_first_process()


def _way_to_meet(where: str | None) -> str:
    if where is None:  # the cluster was asked
        return (
            f"started by {found_cluster() or 'no cluster that is known'}: start the same command on"
            " every host at the same time, or give --coordinator=HOST:PORT, --num_processes and"
            " --process_id"
        )
    return "start --num_processes of them, with ids from 0, at the same time"


def progress_bar(overall: Overall | None = None) -> Bar:
    """A progress bar; lines printed through `console` stay above it.

    Args:
      overall: the pieces of work that it shows one of; None: there is one alone.
    """
    return Bar(console, overall)


def reporting(work: Callable[[Report], T], name: str | None = None) -> T:
    """Runs `work` with a progress bar and returns its result.

    Args:
      work: takes a function that reports progress.
      name: of the model, shown beside the bar; None: that of the flags.
    """
    name = name or FLAGS.model
    with progress_bar() as bar:
        row = bar.add_task(f"loading {name}", total=1)

        def report(what: str, done: int, total: int) -> None:
            bar.update(row, description=f"{what} {name}", completed=done, total=total)

        return work(report)


def run(main: Callable[[], None], positional: Sequence[str] = ()) -> None:
    """Runs a command: parses flags, and turns bad input into one line and exit status 2.

    Where nobody reads the output any more (`--help | head`) it ends quietly, with status 1.

    Args:
      positional: flags that words without -- are taken for, in this order.
    """

    def parse(argv: list[str]) -> list[str]:
        argv = [underscored(word) for word in argv]
        for word in argv[1:]:
            name = word.lstrip("-").partition("=")[0]
            if word.startswith("-") and name in RENAMED and RENAMED[name] in FLAGS:
                _refuse(f"--{name} is called --{RENAMED[name]} now; --help lists the flags")
        if helping.is_asked_for(argv[1:]):
            helping.show()
            sys.exit(0)
        try:
            rest = FLAGS(argv)
        except flags.Error as error:
            _refuse(helping.explain(error))
        for name in positional:
            if len(rest) > 1 and not FLAGS[name].present:
                FLAGS[name].parse(rest.pop(1))
        if len(rest) > 1:
            _refuse(f"unexpected argument {rest[1]!r}; flags start with --, --help lists them")
        return rest

    def wrapped(argv: list[str]) -> None:
        del argv
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # below it Orbax and JAX log many lines
        try:
            join_processes()
            main()
        except TaskVecError as error:
            _refuse(str(error))
        except KeyboardInterrupt as stopped:
            console.print("; ".join(["stopped", *map(str, stopped.args)]), markup=False)
            sys.exit(130)

    with until_nobody_reads():
        app.run(wrapped, flags_parser=parse)


def underscored(word: str) -> str:
    """`--all-families=1` as `--all_families=1`, if that is a flag; any other word as it is."""
    dashes = word[: len(word) - len(word.lstrip("-"))]
    name, equals, value = word.removeprefix(dashes).partition("=")
    known = name.replace("-", "_")
    if not dashes or not {known, known.removeprefix("no")} & set(FLAGS):
        return word
    return dashes + known + equals + value


def _refuse(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", markup=False)
    sys.exit(2)
