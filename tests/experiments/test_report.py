"""The whole paper on a tiny model, and its page in a real browser."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from chromium import Browser, find_chromium
from slow import slow
from tiny_checkpoint import SMALL, run, save_tiny

from experiments import cross_models
from experiments.bijections import SOURCES
from experiments.commands.registry import IN_PAPER
from experiments.page.section import Cell, Table, text
from experiments.report import build, show_table
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.origin import path_key

TASKS = "algorithmic_to_upper,algorithmic_next_letter,linguistic_antonyms,knowledge_country_capital"


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory, tokenizer) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def paper(tmp_path_factory, tiny_path) -> Path:
    """Results of experiments.paper."""
    out = tmp_path_factory.mktemp("paper")
    result = run("paper", f"--model={tiny_path}", f"--tasks={TASKS}", *SMALL, f"--out={out}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "report.html" in result.stdout
    return out


def test_the_paper_writes_every_result_figure_and_the_page(paper, tiny_path):
    for name in (experiment.name for experiment in IN_PAPER):
        result = json.loads(
            (paper / f"{name}.json").read_text(),
            parse_constant=pytest.fail,
        )
        assert result["experiment"] == name
        assert result["provenance"]["command"].startswith("python -m experiments.paper")
        assert result["model"] == str(tiny_path)
        precision = [result[name] for name in ("dtype", "quantization", "revision")]
        assert precision == ["float32", "none", None]
        assert result["weights_sha256"] == "random 0"
        assert result["run"]["seed"] == 0
        assert result["run"]["num_prompts"] == 2
    stems = {path.stem for path in paper.glob("*.png")}
    assert stems == {path.stem for path in paper.glob("*.svg")}
    assert {"main_results", "accuracy_by_layer", "conflicting_tasks", "cross_models_depth"} <= stems
    assert not list(paper.glob(".*"))


def test_main_results_hold_every_control_and_the_published_numbers(paper):
    result = json.loads((paper / "main_results.json").read_text())
    assert list(result["tasks"]) == TASKS.split(",")
    for task in result["tasks"].values():
        assert set(task["controls"]) == {
            "best_constant",
            "copy",
            "last_layer_replay",
            "other_task",
            "nearest_task",
            "zero_demonstrations",
            "mean_theta",
            "random",
            "wrong_labels",
        }
        assert isinstance(task["beats"], bool)
        assert task["verdict"]
        assert task["published"] is None
        assert 0 < task["published_mean_of_7_models"]["task_vector"] <= 1
        assert 0 <= task["wrong_label_share"] <= 1
    assert set(result["common_layer_paper"]) == {"one_layer", "own_layer"}
    assert set(result["mean"]) == {"icl_able", "all"}


def test_a_result_file_alone_runs_the_same_again_and_two_runs_are_compared(paper, tmp_path):
    """Model, settings and pairs are in the file; every answer is the same, to the byte."""
    first = paper / "main_results.json"
    result = run("main_results", f"--rerun={first}", "--batch_size=4", f"--out={tmp_path}")
    assert result.returncode == 0, result.stdout + result.stderr
    one, two = (json.loads((p / "main_results.json").read_text()) for p in (paper, tmp_path))
    for key in ("tasks", "mean", "primary", "data", "run"):
        assert one[key] == two[key]
    result = run("compare", str(first), str(tmp_path / "main_results.json"))
    assert result.returncode == 0, result.stderr
    assert "task_vector, mean of 4" in result.stdout
    assert "not shown" in result.stdout
    refused = run("main_results", f"--rerun={first}", "--seed=1", f"--out={tmp_path / 'x'}")
    assert refused.returncode == 2
    assert "leave out --seed" in refused.stderr


def test_the_page_is_rebuilt_from_json_alone(paper, tmp_path):
    before = (paper / "report.html").read_bytes()
    result = run("report", f"--results={paper}", f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    rebuilt = (tmp_path / "report.html").read_bytes()
    # Without a comparison of models in --out that section is missing; all else is the same.
    section = re.compile(
        rb'<section id="main-results">.*?</section>|<section id="0-main.*?</section>', re.S
    )
    assert section.findall(before) == section.findall(rebuilt) != []
    assert build([paper], paper).encode() == before


def test_the_page_refers_to_nothing_outside_itself(paper):
    page = (paper / "report.html").read_text()
    for attribute in re.findall(r'(?:src|href|srcset|action)="([^"]*)"', page):
        assert attribute.startswith(("#", "data:")), attribute[:80]
    assert "@import" not in page
    assert "url(" not in page


def test_files_of_two_runs_are_not_put_under_one_headline(paper, tmp_path):
    """A geometry of another seed beside main results, as copied there."""
    for name in ("main_results", "task_geometry"):
        result = json.loads((paper / f"{name}.json").read_text())
        result["run"]["seed"] += name == "task_geometry"
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    with pytest.raises(TaskVecError, match=r"of two runs \(seed 0; seed 1\); put each run's files"):
        build([tmp_path])


def test_two_seeds_of_a_model_are_two_chapters_that_say_so(paper, tmp_path):
    directories = [tmp_path / "first", tmp_path / "second"]
    for seed, directory in enumerate(directories):
        directory.mkdir()
        result = json.loads((paper / "main_results.json").read_text())
        result["run"]["seed"] = seed
        (directory / "main_results.json").write_text(json.dumps(result))
    page = build(directories)
    for seed in (0, 1):
        assert re.search(rf'<h2 class="model">[^<]*tiny, seed {seed}</h2>', page)
        assert re.search(rf"<h1>[^<]*On [^<]*tiny, seed {seed} one vector", page)
    # A comparison of other runs, left there by an earlier command, is none of these.
    cross_models.write([directories[0]], tmp_path)
    assert 'id="cross-models"' not in build(directories, tmp_path)
    cross_models.write(directories, tmp_path)
    assert 'id="cross-models"' in build(directories, tmp_path)


def test_texts_are_escaped():
    table = Table("<b>", ["<i>"], [[text("<script>", note='"x"')], [Cell("1", 1.0, note="<u>")]])
    shown = str(show_table(table, named=True))
    assert "<script>" not in shown
    assert "<u>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(TaskVecError, match="no results; expected main_results"):
        build([tmp_path])
    (tmp_path / "main_results.json").write_text("{}")
    with pytest.raises(TaskVecError, match=r"not a result of experiments\.main_results"):
        build([tmp_path])


@slow  # a whole paper
def test_an_experiment_that_cannot_be_run_is_left_out_and_leaves_nothing_stale(tmp_path, tiny_path):
    """Three thetas are too few for geometry; all else runs."""
    (tmp_path / "task_geometry.json").write_text("{}")
    tasks = "algorithmic_to_upper,algorithmic_to_lower,algorithmic_next_letter"
    flags = (f"--model={tiny_path}", f"--tasks={tasks}", "--num_prompts=1", "--batch_size=4")
    result = run("paper", *flags, f"--out={tmp_path}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "left out: geometry needs at least 4 thetas" in result.stdout
    assert not (tmp_path / "task_geometry.json").exists()
    assert (tmp_path / "portability.json").exists()
    assert "report.html" in result.stdout


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(paper, tiny_path):
    before = {p.name: p.read_bytes() for p in paper.iterdir() if p.suffix in (".png", ".svg")}
    flags = (f"--model={tiny_path}", f"--tasks={TASKS}", *SMALL, f"--out={paper}")
    result = run("main_results", *flags, PYTHONHASHSEED="5")
    assert result.returncode == 0, result.stderr
    journal = (paper / "journal.jsonl").read_bytes()
    result = run("conflicting_tasks", *flags, PYTHONHASHSEED="6")
    assert result.returncode == 0, result.stderr
    assert (paper / "journal.jsonl").read_bytes() == journal
    assert {name: (paper / name).read_bytes() for name in before} == before


def test_all_pairs_of_tasks_that_share_queries_conflict(tmp_path, tiny_path):
    tasks = (
        "algorithmic_to_upper,algorithmic_next_letter,algorithmic_prev_letter,algorithmic_to_lower"
    )
    flags = (f"--model={tiny_path}", f"--tasks={tasks}", *SMALL, f"--out={tmp_path}")
    result = run("conflicting_tasks", "--all_pairs", *flags)
    assert result.returncode == 0, result.stderr
    pairs = json.loads((tmp_path / "conflicting_tasks.json").read_text())["pairs"]
    assert len(pairs) == 6  # lower-case letters three ways; to_lower takes capitals
    for pair in pairs.values():
        assert pair["a"] != pair["b"]
        for name in ("plain", "theta", "random"):
            assert {"a", "b", "neither"} == set(pair[name])
            assert pair[name]["a"]["n"] == 4


@slow  # two whole papers
def test_foreign_task_data_own_tasks_and_several_models_run_everything(
    tmp_path, tiny_path, tokenizer
):
    """The original's layout, category/name.json: {input: output}, or a list of pairs."""
    data = tmp_path / "data"
    words = "red blue green black white brown grey pink gold silver cream orange".split()
    for category, name in (("linguistic", "colours"), ("knowledge", "shades")):
        (data / category).mkdir(parents=True)
        pairs = dict(zip(words, words[1:] + words[:1], strict=True))
        listed = [{"input": word, "output": answer} for word, answer in pairs.items()]
        content = json.dumps(pairs if category == "linguistic" else listed)
        if category == "linguistic":  # an input is there twice, as in the original's files
            content = content.replace("{", '{"red": "never", ', 1)
        (data / category / f"{name}.json").write_text(content)
    own = tmp_path / "own.py"
    own.write_text(
        "from taskvec_jax.tasks import Pair, Task\n"
        "TASKS = [Task('own', 'same', tuple(Pair(c, c) for c in 'abcdefghijklmnop'))]\n"
    )
    other = save_tiny(tmp_path / "tiny2", tokenizer, seed=1)
    result = run(
        "paper",
        f"--model={tiny_path},{other}",
        f"--task_data={data}",
        "--rule=paper",
        f"--task_file={own}",
        "--tasks=linguistic_colours,knowledge_shades,own_same",
        f"--out={tmp_path / 'out'}",
        "--num_prompts=2",
        "--batch_size=4",
    )
    assert result.returncode == 0, result.stdout + result.stderr

    def directory_of(model: Path) -> Path:
        (found,) = (tmp_path / "out").glob(f"{path_key(model)}_float32_num_prompts2_*")
        return found

    for name in (experiment.name for experiment in IN_PAPER):
        for model in (tiny_path, other):
            found = json.loads((directory_of(model) / f"{name}.json").read_text())
            assert {"linguistic_colours", "knowledge_shades", "own_same"} <= set(
                found["settings"]["tasks"]
            )
    # None of the pairs of directions has its task here; every one of them says so.
    notes = json.loads((directory_of(tiny_path) / "bijections.json").read_text())["notes"]
    assert notes == [
        f"{pair} is left out: no task {source} in this run" for pair, source in SOURCES.items()
    ]
    assert notes[-1] == "copy is left out: no task linguistic_antonyms in this run"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "tiny2" in page
    models = json.loads((tmp_path / "out" / "cross_models.json").read_text())["models"]
    assert sum(model["ours"] for model in models.values()) == 2


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium on this machine; .ci/run installs it")
    browser = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page_without_a_complaint(paper, browser, width, theme, tmp_path):
    browser.open(paper / "report.html", width, theme)
    assert browser.complaints() == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests())
    # Nothing but tables and figures, each in its own frame, may be wider than the window.
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert browser.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    image = browser.screenshot()
    (tmp_path / "page.png").write_bytes(image)
    pixels = matplotlib.image.imread(io.BytesIO(image))
    assert pixels.shape[1] == width
    ground = np.median(pixels[..., :3])
    assert ground > 0.9 if theme == "light" else ground < 0.2
    assert np.std(pixels[..., :3]) > 0.05  # there is ink


COLUMN = """(() => {
  const table = document.querySelector("table.sortable");
  return [...table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[%d].textContent);
})()"""


def test_tables_sort_and_filter(paper, browser):
    browser.open(paper / "report.html", 1280, "light")
    names = browser.evaluate(COLUMN % 0)
    assert [name.replace("\u200b", "") for name in names] == TASKS.split(",")
    click = 'document.querySelector("table.sortable").tHead.querySelectorAll("button")[%d].click()'
    browser.evaluate(click % 0)
    assert browser.evaluate(COLUMN % 0) == sorted(names)
    browser.evaluate(click % 0)
    assert browser.evaluate(COLUMN % 0) == sorted(names, reverse=True)
    browser.evaluate(click % 0)
    assert browser.evaluate(COLUMN % 0) == names
    browser.evaluate(click % 8)  # the layer: numbers, largest first
    layers = [int(layer) for layer in browser.evaluate(COLUMN % 8)]
    assert layers == sorted(layers, reverse=True)
    type_in = """(() => { const input = document.querySelector(".filter input");
      input.value = "%s"; input.dispatchEvent(new Event("input")); })()"""
    browser.evaluate(type_in % "algorithmic UPPER")
    assert browser.evaluate(COLUMN % 0) == ["algorithmic_to_upper"]
    assert browser.evaluate('document.querySelector(".filter output").textContent') == "1 of 4 rows"
    browser.evaluate(type_in % "")
    assert len(browser.evaluate(COLUMN % 0)) == 4
    assert browser.complaints() == []
