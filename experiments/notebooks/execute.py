"""Runs the cells of a notebook without Jupyter, and stores what they give.

    python -m experiments.notebooks.execute                      tour.ipynb, in its place
    python -m experiments.notebooks.execute --replace_model=pythia-icl-small --out=/tmp/tour.ipynb

Cells are run one after the other in one namespace; what a cell prints, the value of its last line
and the figures it draws become its outputs. A cell that raises stops the run. --replace_model takes
the place of the name in the notebook's `MODEL = ...`.

Time: 2 minutes (tour.ipynb on the default model).
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from absl import flags

from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from experiments.run.writing import write_whole
from taskvec_jax.errors import TaskVecError

TOUR = Path(__file__).with_name("tour.ipynb")
MODEL = re.compile(r'^MODEL = "[^"]*"', re.MULTILINE)


def main() -> None:
    """Runs the notebook that the flags name and writes it."""
    path = Path(FLAGS.notebook)
    notebook = execute(read(path), FLAGS.replace_model)
    out = Path(FLAGS.out or path)
    write_whole(out, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    console.print(f"wrote {out}", markup=False)


def read(path: Path) -> dict[str, Any]:
    """A notebook's JSON.

    Raises:
      TaskVecError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskVecError(f"{path}: cannot be read as a notebook ({error})") from None


def execute(notebook: dict[str, Any], model: str | None = None) -> dict[str, Any]:
    """The notebook with the outputs of its code cells.

    Args:
      model: takes the place of the name in `MODEL = ...`, in what is run alone; None: as it is.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            source = "".join(cell["source"])
            if model is not None:
                source = MODEL.sub(f'MODEL = "{model}"', source)
            pyplot.close("all")
            outputs = run_cell(source, names, count)
            figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
            cell = {**cell, "execution_count": count, "outputs": [*outputs, *map(_drawn, figures)]}
        cells.append(cell)
    pyplot.close("all")
    return {**notebook, "cells": cells}


def run_cell(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Runs a cell; what it printed, and the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"<cell {count}>", "exec"), names)
        value = None if last is None else eval(compile(last, f"<cell {count}>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(text)})
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        outputs.append(
            {
                "output_type": "execute_result",
                "execution_count": count,
                "data": data,
                "metadata": {},
            }
        )
    return outputs


def _drawn(figure: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
    png = base64.b64encode(buffer.getvalue()).decode()
    data = {"image/png": png, "text/plain": ["<Figure>"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    flags.DEFINE_string("notebook", str(TOUR), "The notebook to run.")
    flags.DEFINE_string("replace_model", None, "Model to run it on, in place of its own.")
    flags.DEFINE_string("out", None, "Where it goes with its outputs; its own place when left out.")
    command.run(main)
