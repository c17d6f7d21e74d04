"""The tour runs from its first cell to its last, and its stored outputs are those of its cells."""

from __future__ import annotations

from slow import slow

from experiments.notebooks.execute import TOUR, execute, read
from taskvec_jax.models.registry import DEFAULT_MODEL, SMALL_MODEL


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(notebook: dict) -> str:
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    return "\n".join(
        "".join(part)
        for output in outputs
        for part in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    )


def test_the_tour_runs_on_the_small_model_and_teaches_it_the_task():
    done = execute(read(TOUR), SMALL_MODEL)
    told = texts(done)
    assert SMALL_MODEL in told
    assert "with θ:  ['e" in told  # the letter after d
    assert "the same: True" in told
    assert "replaced: ['e" in told
    figures = [
        o for cell in code(done) for o in cell["outputs"] if "image/png" in o.get("data", {})
    ]
    assert len(figures) == 2


def test_the_stored_tour_is_of_the_default_model_and_whole():
    stored = read(TOUR)
    cells = code(stored)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    told = texts(stored)
    assert DEFAULT_MODEL in told
    assert "with θ:  [' slow" in told
    assert "step 3: loss" in told
    assert "Error" not in told


@slow  # two minutes
def test_the_tour_gives_its_stored_outputs_again_on_the_default_model():
    told, stored = texts(execute(read(TOUR))), texts(read(TOUR))
    kept = [
        line for line in stored.splitlines() if line.startswith(("without", "with θ", "replaced"))
    ]
    assert len(kept) >= 3
    assert [line for line in kept if line not in told] == []
