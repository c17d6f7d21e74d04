"""Models side by side: best layer against depth, averages (paper, Figures 3 and 4).

    python -m experiments.cross_models \\
        --results=results/smollm2-135m-instruct_float32,results/llama-7b_bfloat16

Reads main_results.json of each directory and computes nothing with a model. Each of our runs has a
row of its own, labelled by its model and by everything in which the runs differ: revision, dtype,
quantization, seed, settings. They stand beside the seven models of the paper. Best layer: the peak
of the mean dev curve over tasks whose best exceeds 0.75. Averages: over tasks where ICL beats the
baseline by 0.20 or more.

Writes cross_models.json and cross_models_depth, cross_models_averages (.png/.svg) under --out.

Time: seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.commands.registry import Experiment
from experiments.commands.runner import draw_all, show
from experiments.published import published
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.results import prepare_out, write_json
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.records import Result

NAME = "cross_models"
READ = "main_results"  # the experiment whose result it reads
MEASURES = ("baseline", "task_vector", "icl")


CROSS_MODELS = Experiment(NAME, in_paper=False)


def compare(directories: Sequence[Path]) -> dict[str, Any]:
    """What the main results of several runs, and the published ones, say side by side.

    Raises:
      TaskVecError: a directory without the main_results.json of this version, or one named twice.
    """
    places = [directory.resolve() for directory in directories]
    for place in places:
        if places.count(place) > 1:
            raise TaskVecError(f"{place} is named twice; name each directory of results once")
    models, runs = [], []
    for directory in directories:
        path = directory / f"{READ}.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            good, curves = result["curve_of_good_tasks"], result["tasks"].values()
            mean_all = np.mean([task["dev_accuracy_by_layer"] for task in curves], axis=0)
            averages = result["averages_where_icl_gains"]
            runs.append(identity.read(result))
            models.append(
                {
                    "run": runs[-1],
                    "date": (result.get("provenance") or {}).get("date"),
                    "num_layers": result["num_layers"],
                    "num_tasks": len(result["tasks"]),
                    "curve": good["mean"] or mean_all.tolist(),
                    "curve_tasks": len(good["tasks"]) or len(result["tasks"]),
                    "peak_layer": result["common_layer"]
                    if good["peak_layer"] is None
                    else good["peak_layer"],
                    "averages": {name: averages[name] for name in MEASURES},
                    "averages_tasks": len(averages["tasks"]),
                    "ours": True,
                }
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TaskVecError(
                f"{path}: no result of experiments.main_results ({type(error).__name__}: {error});"
                " run experiments.main_results first"
            ) from None
    facts = published()
    theirs = {f"{name} (paper)" for name in facts["mean_accuracy_by_layer_figure3"]}
    found = {
        f"{label} ({directory})" if label in theirs else label: model
        for label, model, directory in zip(
            identity.labels(runs, directories), models, directories, strict=True
        )
    }
    for name, curve in facts["mean_accuracy_by_layer_figure3"].items():
        averages = facts["averages"][name]["figure4_filter_icl_minus_baseline_ge_0.20"]
        found[f"{name} (paper)"] = {
            "num_layers": curve["num_layers"],
            "num_tasks": 18,
            "curve": curve["mean"],
            "curve_tasks": curve.get("n_tasks"),
            "peak_layer": curve["peak_layer_0based_block_output"],
            "averages": {measure: averages[measure] for measure in MEASURES},
            "averages_tasks": averages["n_tasks"],
            "ours": False,
        }
    return Result({"experiment": NAME, "models": found, "published_source": facts["source"]})


def write(directories: Sequence[Path], out: Path) -> dict[str, Any]:
    """Writes the comparison and its figures."""
    result = compare(directories)
    write_json(out / f"{NAME}.json", result)
    draw_all(CROSS_MODELS, result, out)
    return result


def main() -> None:
    """Compares the directories the flags name."""
    out = prepare_out(flags.FLAGS.out or "results")
    show(CROSS_MODELS.page.section(write([Path(path) for path in flags.FLAGS.results], out)))
    command.console.print(f"wrote {out / NAME}.json and its figures", markup=False)


if __name__ == "__main__":
    command.define_list("results", None, "directories of results, one a run", required=True)
    flags.DEFINE_string("out", None, "directory for the comparison; results when left out")
    command.run(main)
