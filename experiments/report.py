"""One page for everything: rebuilt from the JSON files of results alone.

    python -m experiments.report --results=results/smollm2-135m-instruct_float32
    python -m experiments.report --results=results/A,results/B --out=results

The files of a directory must be of one run: one model, dtype, seed and settings. Several
directories stand one after the other, each under its model and what tells its run from the others.
Writes report.html under --out (the directory itself for one run): five lines for a reader who has
not read the paper, a glossary, tables that sort, filter and save as CSV, every figure in light and
dark with the values of its lines, worst examples, and for each number the command, versions and
hashes behind it. The page holds all it needs: no script, style, font or image comes from anywhere
else, and its content policy forbids it.

Time: seconds.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib
import json
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from absl import flags
from markupsafe import Markup

from experiments.commands.registry import EXPERIMENTS
from experiments.page import about, drawing, summary, tables
from experiments.page.section import section_of
from experiments.published import published
from experiments.run import flags as command
from experiments.run import identity
from experiments.run.flags import console
from experiments.run.results import prepare_out
from experiments.run.writing import write_whole
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.registry import DEFAULT_MODEL

NAMES = (*EXPERIMENTS, "emergence")
CROSS = "cross_models"
SAME = {"layer_sweep": "main_results"}  # shown where the other, which holds all of it, is missing
# A figure on a narrow screen is no smaller: its least text, 8 points, is 9 pixels then.
SMALLEST = 9 / (8 * 100 / 72)
PAGE = Path(__file__).parent / "page"


def page_of(name: str) -> Any:
    """The module that shows an experiment's results."""
    return importlib.import_module(f"experiments.page.{name}")


def build(
    directories: Sequence[Path], cross: Path | None = None, without: Collection[str] = ()
) -> str:
    """The page for some directories of results.

    Args:
      cross: directory of cross_models.json, if there is one.
      without: experiments whose results are left off the page.

    Raises:
      TaskVecError: a directory without results, or with results of several runs, or a file that is
        no result.
    """
    names_of: list[list[str]] = []
    runs: list[identity.Identity] = []
    for directory in directories:
        listed = [name for name in NAMES if name not in without]
        names = [name for name in listed if (directory / f"{name}.json").exists()]
        names = [name for name in names if SAME.get(name) not in names]
        if not names:
            raise TaskVecError(
                f"{directory}: no results; expected {NAMES[0]}.json and others, which"
                " experiments.paper writes"
            )
        found = {f"{name}.json": _run_of(directory, name) for name in names}
        identity.check_alike(directory, found)
        names_of.append(names)
        run = found[f"{names[0]}.json"]
        runs.append(run | {"model": about.model_name(str(run["model"]))})
    articles: list[dict[str, Any]] = []
    labels = identity.labels(runs, [Path(path) for path in about.tell_apart(directories)])
    for i, (directory, names, label) in enumerate(zip(directories, names_of, labels, strict=True)):
        parts = [_part(directory, name, f"{i}-", label) for name in names]
        articles.append({"model": label, "facts": about.facts(parts[0]["result"]), "parts": parts})
    first = [article["parts"][0]["section"].words for article in articles]
    title = "Task vectors: " + ", ".join(article["model"] for article in articles)
    several = len(articles) > 1
    results = {part["name"]: part["result"] for part in articles[0]["parts"]}
    headline = f"{len(articles)} runs side by side: {'; '.join(labels)}"
    lines = [summary.ASKED, summary.TRIED, *(words[0] for words in first)]
    if not several:  # the top of the page says it; once is enough
        headline = first[0][0]
        lines = summary.five_lines(results, headline, first[0][1:])
        top = articles[0]["parts"][0]
        top["section"] = dataclasses.replace(top["section"], words=first[0][1:])
    if cross is not None and _compares(cross, runs):
        side_by_side = {"model": "", "facts": {}, "parts": [_part(cross, CROSS, "")]}
        articles.insert(0 if several else 1, side_by_side)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["begun"] = about.begun
    where = ",".join(map(str, about.tell_apart(directories)))
    return environment.get_template("report.html.j2").render(
        title=title,
        several=several,
        headline=headline,
        lines=lines,
        glossary=summary.GLOSSARY,
        articles=articles,
        show_table=tables.show_table,
        inks=Markup(json.dumps(drawing.inks())),
        source=published()["source"]["paper"],
        rebuild=f"python -m experiments.report --results={shlex.quote(where)}",
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
        result = json.loads(path.read_text(encoding="utf-8"))
        images = drawing.images(page, result)
        shown = result if label is None else result | {"model": label}
        section = section_of(page, shown)
    provenance = result.get("provenance")
    return {
        "id": f"{prefix}{name.replace('_', '-')}",
        "name": name,
        "result": result,
        "section": section,
        "tables": section.page_tables or section.tables,
        "figures": [
            _figure(stem, section.captions.get(stem, stem), image) for stem, image in images.items()
        ],
        "command": about.without_directories(provenance["command"]) if provenance else "",
        "facts": _facts(result) if provenance else [],
    }


def _figure(stem: str, caption: str, drawn: drawing.Drawn) -> dict[str, Any]:
    """A figure as an image in the page itself, and what the page says of its lines."""
    lines = json.dumps(drawn.lines, ensure_ascii=False, separators=(",", ":"))
    return {
        "stem": stem,
        "caption": caption,
        "image": f"data:image/svg+xml;base64,{base64.b64encode(drawn.svg).decode()}",
        "width": drawn.width,
        "least": round(drawn.width * SMALLEST),
        "lines": Markup(lines.replace("<", "\\u003c").replace("&", "\\u0026")),
        "names": list(dict.fromkeys(line["name"] for line in drawn.lines)),
    }


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    provenance, settings = result["provenance"], dict(result["settings"])
    tasks = settings.pop("tasks", [])
    device = provenance["device"]
    found = [
        ("model", about.model_name(str(result["model"]))),
        ("source", ", ".join(f"{k} {v}" for k, v in provenance.get("source", {}).items())),
        ("weights", about.weights(result)),
        ("weights sha256", provenance["weights_sha256"]),
        ("tokenizer sha256", provenance["tokenizer_sha256"]),
        ("matmul precision", provenance["matmul_precision"]),
        ("device", f"{device['count']} x {device['kind']} ({device['platform']})"),
        ("date", provenance.get("date") or "not recorded"),
        ("commit", provenance.get("commit") or "not recorded"),
        ("seconds", f"{provenance['seconds']} (units found in the journal cost none)"),
        ("settings", ", ".join(f"{k}={v}" for k, v in settings.items() if v not in (None, {}))),
        ("tasks", ", ".join(tasks)),
        ("versions", ", ".join(f"{k} {v}" for k, v in provenance["versions"].items())),
    ]
    return [(name, about.without_directories(str(value))) for name, value in found]


def write(
    directories: Sequence[Path],
    out: Path,
    cross: Path | None = None,
    without: Collection[str] = (),
) -> Path:
    """Writes report.html whole or not at all."""
    path = out / "report.html"
    write_whole(path, build(directories, cross, without))
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
