"""Two runs, prompt by prompt: dtype, base or instruct, template, seed, model.

    python -m experiments.compare results/A/main_results.json results/B/main_results.json
    python -m experiments.compare A.json B.json --columns=icl,task_vector --out=compared.json

Reads layer_sweep.json or main_results.json of two runs and computes nothing with a model. In each
task prompts are paired by their query; a query that both ask several times is paired as often as
the rarer of the two, in order. For every column the means of both runs, the difference with its
intervals (these tasks; tasks like these) and an exact paired p-value; for single tasks the p-values
are corrected for their number (Holm).

Time: seconds.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.commands.runner import show
from experiments.page.section import Cell, Section, Table, number, text
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import FLAGS, console
from experiments.run.results import write_json
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.columns import outcomes_of
from taskvec_jax.evaluation.intervals import mean_difference, means
from taskvec_jax.evaluation.statistics import Outcomes, compare, decide, holm

NAME = "compare"
COLUMNS = ("baseline", "icl", "task_vector")


def read(path: Path) -> dict[str, Any]:
    """A result file with outcomes.

    Raises:
      TaskVecError: it cannot be read, or is no such file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        for task in result["tasks"].values():
            outcomes_of(task["outcomes"])
        identity.read(result)
        return result
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskVecError(
            f"{path}: no result with outcomes ({type(error).__name__}: {error}); give a"
            " layer_sweep.json or main_results.json of this version"
        ) from None


def paired(first: Mapping[str, Any], second: Mapping[str, Any], column: str) -> Outcomes | None:
    """The answers of one column to the queries that two runs of a task share.

    Args:
      first, second: `outcomes` of the task in either run.

    Returns:
      Columns "first" and "second"; None where they share no query, or one has no such column.
    """
    if not first.get(column) or not second.get(column):
        return None
    places: list[dict[str, list[int]]] = []
    for recorded in (first, second):
        found = collections.defaultdict(list)
        for i, query in enumerate(recorded["queries"]):
            found[query.strip()].append(i)
        places.append(found)
    queries, answers = [], ([], [])
    for query, here in places[0].items():
        for i, j in zip(here, places[1].get(query, ()), strict=False):
            queries.append(query)
            answers[0].append(first[column]["correct"][i])
            answers[1].append(second[column]["correct"][j])
    return (
        Outcomes(queries, dict(zip(("first", "second"), answers, strict=True))) if queries else None
    )


def compare_runs(
    one: Mapping[str, Any], other: Mapping[str, Any], columns: Sequence[str]
) -> dict[str, Any]:
    """Differences of two results, second minus first.

    Raises:
      TaskVecError: they share no task, no query or none of the columns, or score by two rules.
    """
    rules = {task["rule"] for result in (one, other) for task in result["tasks"].values()}
    if len(rules) > 1:
        raise TaskVecError(
            "the results are of two rules (paper and full), which are not compared; run one again"
            " with the other's --rule"
        )
    shared = [name for name in one["tasks"] if name in other["tasks"]]
    found: dict[str, Any] = {}
    for column in columns:
        outcomes = {
            name: pairs
            for name in shared
            if (
                pairs := paired(
                    one["tasks"][name]["outcomes"], other["tasks"][name]["outcomes"], column
                )
            )
        }
        if not outcomes:
            continue
        every = list(outcomes.values())
        tests = {name: compare([pairs], "second", "first") for name, pairs in outcomes.items()}
        adjusted = holm([test.p for test in tests.values()])
        pooled = compare(every, "second", "first")
        found[column] = {
            **{k: mean._asdict() for k, mean in means(every, ("first", "second")).items()},
            "difference": mean_difference(every, "second", "first")._asdict(),
            "p": pooled.p,
            "decision": decide(pooled.difference, pooled.p),
            "num_prompts": pooled.num_prompts,
            "num_queries": pooled.num_queries,
            "tasks": {
                name: {**test._asdict(), "p": p, "decision": decide(test.difference, p)}
                for (name, test), p in zip(tests.items(), adjusted, strict=True)
            },
        }
    if not found:
        raise TaskVecError(
            f"nothing to compare: the two results share {len(shared)} tasks, and in these no query"
            f" with one of the columns {', '.join(columns)}"
        )
    return {
        "experiment": NAME,
        "runs": [identity.read(result) for result in (one, other)],
        "columns": found,
    }


def section(result: Mapping[str, Any], labels: Sequence[str]) -> Section:
    """The comparison as a table, and what it is of."""
    rows = []
    for column, value in result["columns"].items():
        names = {"mean": value, **value["tasks"]}
        for name, row in names.items():
            if name == "mean":
                d = row["difference"]
                span = f"{d['low_these']:+.2f} to {d['high_these']:+.2f}"
                wide = "–" if d["low"] is None else f"{d['low']:+.2f} to {d['high']:+.2f}"
                means_of = [number(row[k]["accuracy"]) for k in ("first", "second")]
                change = Cell(f"{d['accuracy']:+.2f}", d["accuracy"])
            else:
                span = wide = ""
                means_of = [text(""), text("")]
                change = Cell(f"{row['difference']:+.2f}", row["difference"])
            rows.append(
                [
                    text(f"{column}, mean of {len(value['tasks'])}" if name == "mean" else name),
                    *means_of,
                    change,
                    text(span),
                    text(wide),
                    number(row["p"], 4),
                    text(row["decision"]),
                    text(f"{row['num_queries']} of {row['num_prompts']}"),
                ]
            )
    words = [f"first: {labels[0]}; second: {labels[1]}; differences are second minus first"]
    return Section(
        "Two runs, prompt by prompt",
        words,
        [
            Table(
                "Paired differences",
                [
                    "column",
                    "first",
                    "second",
                    "difference",
                    "95 %, these tasks",
                    "tasks like these",
                    "p",
                    "second is",
                    "queries of prompts",
                ],
                rows,
            )
        ],
    )


def main() -> None:
    """Compares the two files that the command line names."""
    paths = [Path(path) for path in (FLAGS.first, FLAGS.second) if path]
    if len(paths) != 2:
        raise TaskVecError("two files are compared: python -m experiments.compare A.json B.json")
    results = [read(path) for path in paths]
    found = compare_runs(results[0], results[1], FLAGS.columns)
    labels = identity.labels([identity.read(result) for result in results], paths)
    show(section(found, labels))
    if FLAGS.out:
        write_json(Path(FLAGS.out), found)
        console.print(f"wrote {FLAGS.out}", markup=False)


if __name__ == "__main__":
    flags.DEFINE_string("first", None, "A result file; may be given as the first plain word.")
    flags.DEFINE_string("second", None, "Another one; may be given as the second plain word.")
    command.define_list("columns", COLUMNS, "Columns to compare, with commas between.")
    flags.DEFINE_string("out", None, "A JSON file for the comparison; not written when left out.")
    command.run(main, ("first", "second"))
