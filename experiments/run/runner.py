"""experiments.run.runner"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from experiments.page.section import show
from experiments.run import flags as command
from experiments.run.flags import console
from experiments.run.study import Study, study_from_flags


def run_experiment(module: Any) -> None:
    """The command line of one experiment.

    Args:
      module: has NAME, `run(study)` -> result, `draw_figures(result)` -> figures by file stem, and
        `section(result)` -> `Section`; perhaps `check_flags(config)`, which raises TaskVecError.
    """
    study = study_from_flags(modules=[module])
    try:
        finish(study, module)
    finally:
        study.journal.close()


def run_main(name: str) -> None:
    """Runs the experiment whose module name (`__name__`) is given, as a command."""
    command.run(lambda: run_experiment(sys.modules[name]))


def finish(study: Study, module: Any) -> dict[str, Any]:
    """Runs one experiment, writes its JSON and the figures drawn from it."""
    study.started = time.monotonic()
    result = module.run(study)
    path = study.out / f"{module.NAME}.json"
    command.write_json(path, result)
    written = draw_all(module, result, study.out)
    show(module.section(result))
    console.print(f"wrote {', '.join(map(str, [path, *written]))}", markup=False)
    return result


def draw_all(module: Any, result: dict[str, Any], out: Path) -> list[Path]:
    """Draws an experiment's figures from its result as PNG and SVG."""
    from experiments.page import figures  # matplotlib is slow to import

    written = []
    with figures.theme("light"):
        for stem, figure in module.draw_figures(result).items():
            written += figures.save(figure, out / stem)
    return written
