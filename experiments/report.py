"""One page for everything: rebuilt from the JSON files of results alone.

    python -m experiments.report --results=results/smollm2-135m-instruct_float32
    python -m experiments.report --results=results/A,results/B --out=results

The files of a directory must be of one run: one model, dtype, seed and settings. Several
directories stand one after the other, each under its model and what tells its run from the others.
Writes report.html under --out (the directory itself for one run): a headline in words, tables
that sort and filter, every figure in light and dark, worst examples, and for each number the
command, versions and hashes behind it. The page holds all it needs: no script, style, font or
image comes from anywhere else, and its content policy forbids it.

Time: seconds.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import html
import importlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from absl import flags
from markupsafe import Markup

from experiments.commands.registry import ON_PAGE
from experiments.page.section import Cell, Section, Table
from experiments.published import published
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import console
from experiments.run.results import prepare_out
from experiments.run.writing import write_whole
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.registry import DEFAULT_MODEL

NAMES = tuple(experiment.name for experiment in ON_PAGE)
CROSS = "cross_models"
TEMPLATE = Path(__file__).parent / "page" / "report.html.j2"
LONG_TEXT = 40
MANY_ROWS = 40  # a longer table scrolls in its own frame
LEAD = 2  # sentences of the first section that open the page


def page_of(name: str) -> Any:
    """The module that shows an experiment's results."""
    return importlib.import_module(f"experiments.page.{name}")


def build(directories: Sequence[Path], cross: Path | None = None) -> str:
    """The page for some directories of results.

    Args:
      cross: directory of cross_models.json, if there is one.

    Raises:
      TaskVecError: a directory without results, or with results of several runs, or a file that is
        no result.
    """
    names_of: list[list[str]] = []
    runs: list[identity.Identity] = []
    for directory in directories:
        names = [name for name in NAMES if (directory / f"{name}.json").exists()]
        if not names:
            raise TaskVecError(
                f"{directory}: no results; expected {NAMES[0]}.json and others, which"
                " experiments.paper writes"
            )
        found = {f"{name}.json": _run_of(directory, name) for name in names}
        identity.check_alike(directory, found)
        names_of.append(names)
        runs.append(found[f"{names[0]}.json"])
    articles: list[dict[str, Any]] = []
    labels = identity.labels(runs, directories)
    for i, (directory, names, label) in enumerate(zip(directories, names_of, labels, strict=True)):
        parts = [_part(directory, name, f"{i}-", label) for name in names]
        articles.append({"model": label, "run": identity.describe(runs[i]), "parts": parts})
    first = [article["parts"][0]["section"].words for article in articles]
    title = "Task vectors: " + ", ".join(article["model"] for article in articles)
    several = len(articles) > 1
    if cross is not None and _compares(cross, runs):
        side_by_side = {"model": "", "run": "", "parts": [_part(cross, CROSS, "")]}
        articles.insert(0 if several else 1, side_by_side)
    lead = []
    if not several:  # the top of the page says it; once is enough
        top = articles[0]["parts"][0]
        lead, rest = first[0][1:LEAD], first[0][LEAD:]
        top["section"] = dataclasses.replace(top["section"], words=rest)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    results = ",".join(map(str, directories))
    return template.render(
        title=title,
        several=several,
        headline=" ".join(words[0] for words in first),
        lead=lead,
        articles=articles,
        show_table=show_table,
        source=published()["source"]["paper"],
        rebuild=f"python -m experiments.report --results={shlex.quote(results)}",
    )


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """Says of which file it is that it cannot be read, or is no result of an experiment."""
    try:
        yield
    except OSError as error:
        raise TaskVecError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise TaskVecError(
            f"{path}: not a result of experiments.{name} of this version"
            f" ({type(error).__name__}: {error}); run the experiment again"
        ) from None


def _run_of(directory: Path, name: str) -> identity.Identity:
    """The run that a result file is of."""
    path = directory / f"{name}.json"
    with _reading(path, name):
        return identity.read(json.loads(path.read_text(encoding="utf-8")))


def _compares(directory: Path, runs: Sequence[identity.Identity]) -> bool:
    """Whether the comparison of models in a directory is one of these runs, and of no others."""
    path = directory / f"{CROSS}.json"
    if not path.exists():
        return False
    with _reading(path, CROSS):
        models = json.loads(path.read_text(encoding="utf-8"))["models"].values()
        compared = [model["run"] for model in models if model["ours"]]

    def covered(some: Sequence[identity.Identity], by: Sequence[identity.Identity]) -> bool:
        return all(any(not identity.differences(one, other) for other in by) for one in some)

    return covered(runs, compared) and covered(compared, runs)


def _part(directory: Path, name: str, prefix: str, label: str | None = None) -> dict[str, Any]:
    """An experiment's section of the page.

    Args:
      prefix: of its address on the page.
      label: what the page calls the run; None: it is of several.
    """
    path = directory / f"{name}.json"
    page = page_of(name)
    with _reading(path, name):
        content = path.read_text(encoding="utf-8")
        result = json.loads(content)
        if label is not None:
            result["model"] = label
        section: Section = page.section(result)
        images = _images(name, content)
    provenance = result.get("provenance")
    return {
        "id": f"{prefix}{name.replace('_', '-')}",
        "result": result,
        "section": section,
        "figures": [
            {"stem": stem, "caption": section.captions.get(stem, stem), **image}
            for stem, image in images.items()
        ],
        "provenance": provenance,
        "facts": _facts(result) if provenance else [],
    }


@functools.cache
def _images(name: str, content: str) -> dict[str, dict[str, Any]]:
    """An experiment's figures as data addresses, by stem: drawn once for all pages of a run."""
    from experiments.page import figures  # matplotlib is slow to import

    drawn: dict[str, dict[str, Any]] = {}
    for theme in ("light", "dark"):
        with figures.theme(theme):
            for stem, figure in page_of(name).draw_figures(json.loads(content)).items():
                image = base64.b64encode(figures.render(figure, "svg")).decode()
                entry = drawn.setdefault(stem, {"width": round(100 * figure.get_figwidth())})
                entry[theme] = f"data:image/svg+xml;base64,{image}"
                figures.plt.close(figure)
    return drawn


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    provenance, settings = result["provenance"], dict(result["settings"])
    tasks = settings.pop("tasks", [])
    device = provenance["device"]
    return [
        ("model", str(result["model"])),
        ("source", ", ".join(f"{k} {v}" for k, v in provenance.get("source", {}).items())),
        ("weights sha256", provenance["weights_sha256"]),
        ("tokenizer sha256", provenance["tokenizer_sha256"]),
        (
            "dtype",
            f"{provenance['dtype']}, quantization {result.get('quantization')}, matmul precision"
            f" {provenance['matmul_precision']}",
        ),
        ("device", f"{device['count']} x {device['kind']} ({device['platform']})"),
        ("seconds", f"{provenance['seconds']} (units found in the journal cost none)"),
        ("settings", ", ".join(f"{k}={v}" for k, v in settings.items() if v not in (None, {}))),
        ("tasks", ", ".join(tasks)),
        ("versions", ", ".join(f"{k} {v}" for k, v in provenance["versions"].items())),
    ]


def show_table(table: Table, named: bool) -> Markup:
    """A table as HTML, with its filter.

    Args:
      named: show the caption; a folded table shows it already.
    """
    words = [any(row[i].value is None for row in table.rows) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" aria-sort="none"{_class(["words"] if is_words else [])}>'
        f'<button type="button">{html.escape(column)}</button></th>'
        for column, is_words in zip(table.columns, words, strict=True)
    )
    body, foot = (
        "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
        for rows in (table.rows, table.summary)
    )
    foot = f"<tfoot>\n{foot}\n</tfoot>" if table.summary else ""
    title = f"<b>{html.escape(table.caption)}</b>" if named else ""
    tall = " tall" if len(table.rows) > MANY_ROWS else ""
    label = html.escape(f"filter: {table.caption}", quote=True)
    return Markup(
        f'<div class="sheet"><div class="filter">{title}'
        f'<input type="search" placeholder="filter rows" aria-label="{label}"><output></output>'
        f'</div><div class="scroll{tall}" tabindex="0" role="group" aria-label="{label}">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody>{foot}</table>"
        "</div></div>"
    )


def _cell(cell: Cell) -> str:
    classes = [cell.tone] if cell.tone else []
    if cell.value is None:
        classes.append("words")
        if len(cell.text) > LONG_TEXT:
            classes.append("long")
    value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
    tip, small = "", ""
    if cell.note and cell.value is None:
        tip = f' title="{html.escape(cell.note, quote=True)}"'
    elif cell.note:
        small = f"<small>{html.escape(cell.note)}</small>"
    words = html.escape(cell.text).replace("_", "_<wbr>")
    return f"<td{_class(classes)}{value}{tip}>{words}{small}</td>"


def _class(names: list[str]) -> str:
    return f' class="{" ".join(names)}"' if names else ""


def write(directories: Sequence[Path], out: Path, cross: Path | None = None) -> Path:
    """Writes report.html whole or not at all."""
    path = out / "report.html"
    write_whole(path, build(directories, cross))
    return path


def main() -> None:
    """Builds the page the flags ask for."""
    directories = [Path(path) for path in flags.FLAGS.results]
    default = directories[0] if len(directories) == 1 else Path("results")
    out = prepare_out(flags.FLAGS.out or str(default))
    console.print(f"wrote {write(directories, out, out)}", markup=False)


if __name__ == "__main__":
    command.define_list(
        "results", [f"results/{DEFAULT_MODEL}_float32"], "directories of results, one a run"
    )
    flags.DEFINE_string("out", None, "where report.html goes; the directory of a single run")
    command.run(main)
