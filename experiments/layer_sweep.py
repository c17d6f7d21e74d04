"""Accuracy by layer: where the task vector works (paper, Figures 3 and 4, Table 2).

    python -m experiments.layer_sweep
    python -m experiments.layer_sweep --model=PATH --tasks=knowledge_country_capital

For every task: theta is extracted from demonstrations + dummy queries after every layer and
written over the last `->` of a zero-shot query after the same layer. Prints a row a task and
writes layer_sweep.json and layer_sweep, layer_sweep_tasks (.png/.svg) under --out. The JSON holds
every answer to every test prompt under `outcomes`. A task that is done is kept in the journal
there: a run that was stopped goes on with the next one. Controls other than a random vector are in
`experiments.main_results`.

Expected on the default model at the paper's settings: see README.

Time: 15 minutes (18 tasks on 2 cores that did other work too; 2026-11-26).
"""

from __future__ import annotations

from typing import Any

from experiments.commands.runner import main
from experiments.run import flags as command
from experiments.run.flags import console
from experiments.run.study import Study
from taskvec_jax.distributed.plan import parameter_count, weight_bytes
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.summary import summarise
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import Task

NAME = "layer_sweep"
HEADER = (
    f"{'task':<38} {'zero-shot':^14} {'task vector':^14} {'ICL':^14} layer random queries  ICL-able"
)
LEGEND = (
    "Share of test prompts that are right [its 95 % interval]; the layer of theta, chosen on dev;"
    " how many of the queries differ; whether ICL adds .20 or more to zero-shot on dev."
)


def run(study: Study) -> dict[str, Any]:
    """Evaluates the tasks, printing a row for each."""
    console.print(work_line(study.model, study.tasks, study.settings), markup=False)
    results = run_tasks(study)
    return study.result(
        NAME,
        study.settings,
        {
            "tasks": results,
            "data": study.data(),
            **summarise(results, (), seed=study.settings.seed),
        },
    )


def work_line(model: Model, tasks: list[Task], settings: Settings) -> str:
    """How large the model is, and how much there is to do."""
    config = model.config
    count, size = parameter_count(config), weight_bytes(config, config.dtype)
    kernels = "" if config.quantization == "none" else f" with {config.quantization} kernels"
    return (
        f"{model.name}: {config.num_layers} layers, width {config.width},"
        f" {count / 1e6:.1f} M parameters, {size / 1e6:.0f} MB as {config.dtype}{kernels};"
        f" {len(tasks)} task{'s' * (len(tasks) != 1)} x {2 * settings.num_prompts} prompts,"
        f" theta from {settings.num_demonstrations} demonstrations"
        f" x {settings.num_dummy_queries} dummy queries"
    )


def run_tasks(study: Study) -> dict[str, dict[str, Any]]:
    """Evaluates the tasks one by one, or finds them done, printing a row for each."""
    results: dict[str, dict[str, Any]] = {}
    tasks, settings = study.tasks, study.settings
    console.print(LEGEND, markup=False)
    console.print(f"[bold]{HEADER}[/bold]")
    with command.progress_bar(study.overall) as bar:
        row = bar.add_task("prompts", total=2 * settings.num_prompts * len(tasks))
        study.advance = lambda prompts: bar.advance(row, prompts)
        for task in tasks:
            bar.update(row, description=task.name)
            result = study.sweep(task)
            results[task.name] = result
            bar.update(row, completed=2 * settings.num_prompts * len(results))
            bar.console.print(table_row(task.name, result), markup=False)
            for warning in result["warnings"]:
                bar.console.print(f"  warning: {warning}", markup=False)
        study.advance = lambda prompts: None
    return results


def cell(value: dict[str, Any]) -> str:
    """`.74 [.60-.84]`: share and 95 % interval."""

    def short(share: float) -> str:
        return f"{share:.2f}".removeprefix("0") if share < 0.995 else "1.0"

    return f"{short(value['accuracy'])} [{short(value['low'])}-{short(value['high'])}]"


def table_row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    cells = (result["baseline"], result["task_vector"], result["icl"])
    columns = " ".join(f"{cell(value):^14}" for value in cells)
    asked = f"{result['icl']['queries']} of {result['icl']['n']}"
    able = "yes" if result["icl_able"] else "no"
    random = result["random"]["accuracy"]
    return f"{name:<38} {columns} {result['best_layer']:>5} {random:>6.2f} {asked:>8}  {able}"


if __name__ == "__main__":
    main(NAME)
