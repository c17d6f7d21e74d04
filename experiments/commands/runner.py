"""Runs experiments: one from its command line, or several on one study."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.commands import options, seeds
from experiments.commands.registry import EXPERIMENTS, Experiment
from experiments.page import drawing
from experiments.page.about import model_name
from experiments.page.section import Section, lines, section_of
from experiments.run import flags as command
from experiments.run.flags import console
from experiments.run.results import results_directory, write_json
from experiments.run.spent import in_words
from experiments.run.start import define_flags, study_from_flags
from experiments.run.study import Study
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.vectors.account import ACCOUNT

SEVERAL_SEEDS = ("layer_sweep", "main_results")  # experiments with --seeds


def main(name: str) -> None:
    """The command line of one experiment, `python -m experiments.<name>`."""
    experiment = EXPERIMENTS[name]
    define_flags()
    if experiment.name in SEVERAL_SEEDS:
        seeds.define_flag()
    define_options([experiment])
    command.run(lambda: run_alone(experiment))


def define_options(experiments: Sequence[Experiment]) -> None:
    """Defines the flags of the experiments' own options."""
    for experiment in experiments:
        if experiment.options is not None:
            options.define(experiment.options)


def checks_of(experiments: Sequence[Experiment]) -> list[Callable[[DecoderConfig], None]]:
    """For each experiment that can refuse its options: what refuses those of the command line."""

    def check_of(experiment: Experiment) -> Callable[[DecoderConfig], None]:
        return lambda config: experiment.module.check_options(given_to(experiment), config)

    return [
        check_of(experiment)
        for experiment in experiments
        if hasattr(experiment.module, "check_options")
    ]


def given_to(experiment: Experiment) -> Any:
    """The options that the command line gives to an experiment; None if it has none."""
    return None if experiment.options is None else options.from_flags(experiment.options)


def run_alone(experiment: Experiment) -> None:
    """Runs one experiment on a study of its own, or with --seeds on one for each seed."""
    models: list[Model] = []

    def run(out: Path | None = None) -> dict[str, Any]:
        where = None if out is None else results_directory(out)
        study = study_from_flags(*models, out=where, checks=checks_of([experiment]))
        models[:] = [study.model]
        with study.journal:
            return finish(study, experiment)

    if experiment.name in SEVERAL_SEEDS and (asked := seeds.from_flags()):
        seeds.run_each(asked, run)
    else:
        run()


def finish(study: Study, experiment: Experiment) -> dict[str, Any]:
    """Runs one experiment, writes its JSON and figures, and says what it found."""
    study.started = time.monotonic()
    given = given_to(experiment)
    module, before = experiment.module, ACCOUNT.now()
    result = module.run(study) if given is None else module.run(study, given)
    path = study.out / f"{experiment.name}.json"
    write_json(path, result)
    written = draw_all(experiment, result, study.out)
    named = result | {"model": model_name(str(result["model"]))}
    show(section_of(experiment.page, named))
    if words := in_words(ACCOUNT.since(before)):
        console.print(words, markup=False)
    console.print(f"wrote {', '.join(map(str, [path, *written]))}", markup=False)
    return result


def draw_all(experiment: Experiment, result: dict[str, Any], out: Path) -> list[Path]:
    """Draws an experiment's figures from its result as PNG and SVG."""
    return drawing.write_all(experiment.page, result, out)


def show(section: Section) -> None:
    """Prints the first table and the words."""
    if section.tables:
        for i, line in enumerate(lines(section.tables[0])):
            console.print(line, markup=False, style="bold" if i == 0 else None)
    for sentence in section.words:
        console.print(sentence, markup=False)
