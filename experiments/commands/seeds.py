"""An experiment under several seeds: each run whole, and what the means have in common.

    python -m experiments.main_results --seeds=0,1,2

Each seed draws its own prompts and has a directory of its own; the model is loaded once. What is
said over them is in seeds.json: for every column the mean over tasks of each seed, their mean, and
the lowest and highest. A seed's own interval is of its prompts; the spread over seeds shows what
another draw of prompts, of demonstrations too, would have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from convert import help as helping
from experiments.page.section import Table, span, text
from experiments.run.flags import FLAGS, console
from experiments.run.results import prepare_out, results_name, run_from_flags, write_json
from taskvec_jax.errors import TaskVecError

NAME = "seeds"
GROUPS = {"icl_able": "tasks that ICL does", "all": "all tasks"}


@helping.group("Prompts and scoring")
def define_flag() -> None:
    """--seeds."""
    flags.DEFINE_list(
        "seeds",
        None,
        "Whole numbers with commas between: one run for each seed, each in a directory of its own,"
        " and seeds.json over them. Instead of --seed.",
    )


def from_flags() -> list[int]:
    """The seeds of --seeds; none when it is left out.

    Raises:
      TaskVecError: not whole numbers, one twice, or --seed beside it.
    """
    words = FLAGS.seeds or []
    try:
        found = [int(word) for word in words]
    except ValueError:
        raise TaskVecError(
            f"--seeds={','.join(words)}; allowed: whole numbers with commas between, such as 0,1,2"
        ) from None
    if len(set(found)) != len(found):
        raise TaskVecError(f"--seeds={','.join(words)} names a seed twice")
    if found and (FLAGS["seed"].present or ("rerun" in FLAGS and FLAGS.rerun)):
        raise TaskVecError("--seeds draws with several seeds; leave out --seed and --rerun")
    return found


def run_each(seeds: list[int], run: Callable[[Path], Mapping[str, Any]]) -> None:
    """Runs each seed and writes what they say together.

    Args:
      run: runs the experiment as the flags say into a directory, and gives its result.
    """
    top = Path(FLAGS.out or "results")
    results: dict[int, Mapping[str, Any]] = {}
    for i, seed in enumerate(seeds, start=1):
        FLAGS["seed"].value = seed
        console.rule(f"seed {seed}, {i} of {len(seeds)}", characters="-")
        name = f"seed{seed}" if FLAGS.out else results_name(run_from_flags())
        results[seed] = run(top / name)
    found = together(results)
    for row in table(found).rows:
        console.print("  ".join(cell.text for cell in row), markup=False)
    path = prepare_out(str(top)) / f"{NAME}.json"
    write_json(path, found)
    console.print(f"wrote {path}", markup=False)


def together(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Means of several seeds side by side.

    Args:
      results: seed -> a result with `mean`.
    """
    over: dict[str, Any] = {}
    for group in GROUPS:
        have = {seed: r["mean"][group] for seed, r in results.items() if r["mean"][group]}
        columns = [c for c in next(iter(have.values()), {}) if all(c in m for m in have.values())]
        over[group] = {
            column: _spread([means[column]["accuracy"] for means in have.values()])
            for column in columns
        }
    return {
        "experiment": NAME,
        "of": next(iter(results.values()))["experiment"],
        "seeds": {
            str(seed): {
                key: r.get(key) for key in ("mean", "groups", "primary", "pairing_share", "peak")
            }
            for seed, r in results.items()
        },
        "over_seeds": over,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "lowest": float(min(values)),
        "highest": float(max(values)),
    }


def table(found: Mapping[str, Any]) -> Table:
    """The means by seed, and over seeds."""
    seeds = list(found["seeds"])
    rows = []
    for group, title in GROUPS.items():
        for column, value in found["over_seeds"][group].items():
            of_seeds = [found["seeds"][s]["mean"][group] for s in seeds]
            rows.append(
                [
                    text(f"{column}, {title}:"),
                    *(text(span(m[column]) if m else "–") for m in of_seeds),
                    text(
                        f"over seeds {value['mean']:.2f}, from {value['lowest']:.2f} to"
                        f" {value['highest']:.2f}"
                    ),
                ]
            )
    return Table("Means by seed", ["column", *(f"seed {s}" for s in seeds), "over seeds"], rows)
