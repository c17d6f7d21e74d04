"""The whole paper in one command.

    python -m experiments.paper
    python -m experiments.paper --model=llama-7b,pythia-2.8b --num_prompts=100

Runs every experiment on every model of --model, one after the other, the main results first; what
two of them need is computed once. Writes results/<run>/*.json, where <run> names the model, its
dtype and whatever else tells the run from others (identity.py), their figures as PNG and SVG, and
report.html, one self-contained page, which is written anew after each experiment. With several
models also results/cross_models.json and a page for all of them. Each line of progress says which
experiment of how many is under way, and about how long the rest takes. Stopped at any moment, the
same command goes on where it was: finished work is found in the journal.

Expected on the default model at the paper's settings: the numbers of each experiment's own header.

Time: 76 minutes (2 cores with AVX-512).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from convert.progress import Overall
from experiments import cross_models, report
from experiments.commands.registry import IN_PAPER, Experiment
from experiments.commands.runner import checks_of, define_options, finish
from experiments.run import flags as command
from experiments.run import identity
from experiments.run import study as studies
from experiments.run.flags import FLAGS, console
from experiments.run.gemm import gemm_rate
from experiments.run.results import results_directory, results_name, run_from_flags
from experiments.run.spent import at_rate, in_words
from experiments.run.start import ask, define_flags, study_from_flags
from experiments.run.writing import WriteError
from taskvec_jax.distributed.plan import parameter_count
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.names import describe
from taskvec_jax.vectors.account import ACCOUNT


def main() -> None:
    """Runs everything the flags ask for."""
    names = FLAGS.model.split(",")
    several = len(names) > 1
    top = Path(FLAGS.out or "results")
    outs: dict[Path, str] = {}
    for name in names:  # before hours go into the first
        FLAGS.model = name
        ask(checks_of(IN_PAPER))
        asked = run_from_flags()
        out = top / results_name(asked) if several or not FLAGS.out else top
        if out in outs:
            raise TaskVecError(
                f"two models of --model={','.join(names)} would share {out}; name each once"
            )
        identity.check_directory(out, asked)
        outs[out] = name
    overall = overall_of(list(outs.values()))
    directories = []
    for out, name in outs.items():
        FLAGS.model = name
        directories.append(results_directory(out))
        run_model(directories[-1], overall)
    if several:
        cross_models.write(directories, top)
        path = report.write(directories, top, top)
        console.print(f"wrote {path}", markup=False)


def overall_of(models: Sequence[str]) -> Overall:
    """The experiments on all models; what one costs goes by its minutes and the parameters."""
    sizes = [parameter_count(describe(model, FLAGS.revision)[1]) for model in models]
    return Overall(
        {
            _piece(model, experiment): experiment.minutes * size
            for model, size in zip(models, sizes, strict=True)
            for experiment in IN_PAPER
        }
    )


def _piece(model: str, experiment: Experiment) -> str:
    return f"{experiment.name} on {model}"


def run_model(out: Path, overall: Overall) -> None:
    """Every experiment on one model; after each, the page without those that are to come.

    What an earlier run left of those will be overwritten, and may be of another version.
    """
    started, before = time.monotonic(), ACCOUNT.now()
    study = study_from_flags(out=out, checks=checks_of(IN_PAPER))
    study.overall = overall
    path = out
    with study.journal as journal:
        for place, experiment in enumerate(IN_PAPER):
            piece, computed = _piece(FLAGS.model, experiment), journal.computed
            overall.begin(piece)
            console.rule(f"experiment {overall.place}: {piece}", characters="-")
            run_or_leave_out(study, experiment)
            overall.end(computed=journal.computed > computed)
            if experiment.name == cross_models.READ:
                cross_models.write([out], out)
            to_come = [other.name for other in IN_PAPER[place + 1 :]]
            path = report.write([out], out, out, without=to_come)
    spent = ACCOUNT.since(before)
    if words := in_words(spent):
        console.print(f"all experiments: {words}; {at_rate(spent, gemm_rate(study.model))}")
    console.print(
        f"wrote {path} in {time.monotonic() - started:.0f} s;"
        f" {study.journal.computed} units were computed, the others were there",
        markup=False,
    )


def run_or_leave_out(study: studies.Study, experiment: Experiment) -> None:
    """Runs one experiment; one that cannot be run on so little does not stop the others.

    Raises:
      TaskVecError: the main results cannot be had, so nothing can.
    """
    try:
        finish(study, experiment)
    except WriteError:
        raise
    except TaskVecError as error:
        if experiment.name == cross_models.READ:
            raise
        # What an earlier run with other settings left there must not pass for this one's.
        (study.out / f"{experiment.name}.json").unlink(missing_ok=True)
        console.print(f"left out: {error}", markup=False)


if __name__ == "__main__":
    define_flags()
    define_options(IN_PAPER)
    flags.FLAGS["model"].help = "one model, or several with commas between"
    command.run(main)
