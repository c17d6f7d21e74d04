"""The page, of made-up results of every experiment, as text and in a real browser."""

# Long because: its text and what a browser makes of it are tested on one page, built once.

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import matplotlib.image
import numpy as np
import pytest
import synthetic
from chromium import Browser, find_chromium

from experiments import cross_models
from experiments.commands.registry import EXPERIMENTS
from experiments.page import about, conflicting_tasks, drawing, necessity, summary
from experiments.page.section import Cell, Table, left_out, score, section_of, text
from experiments.page.tables import show_table, to_csv
from experiments.report import build
from taskvec_jax.errors import TaskVecError

TASKS = 4
SHORT = ("main_results",)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A directory with the page of every experiment."""
    out = synthetic.write(tmp_path_factory.mktemp("results"), TASKS)
    (out / "report.html").write_text(build([out]), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def page(results) -> str:
    return (results / "report.html").read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself(page):
    for attribute in re.findall(r'(?:src|href|srcset|action)="([^"]*)"', page):
        assert attribute.startswith(("#", "data:")), attribute[:80]
    assert "@import" not in page
    assert "url(" not in page


def test_every_experiment_is_on_the_page(page):
    shown = set(re.findall(r'<section id="0-([a-z-]*)"', page))
    names = {name.replace("_", "-") for name in synthetic.EXPERIMENTS}
    assert shown == names - {"layer-sweep"}  # which the main results hold


def test_a_layer_sweep_alone_has_a_page(tmp_path):
    page = build([synthetic.write(tmp_path, TASKS, ("layer_sweep",))])
    assert '<section id="0-layer-sweep"' in page
    assert page.count("<figure>") == 2


def test_the_top_says_which_run_it_is_of_and_what_was_asked_and_found(page):
    header = html.unescape(page[page.index("<header>") : page.index("</header>")])
    for word in (
        *("smollm2-135m-instruct", "Q4_1 weights computed in float32", "50 test prompts a task"),
        *("<dt>seed</dt><dd>0</dd>", "whole answers", "2026-11-26", "0123456789ab"),
    ):
        assert word in header
    lines = re.findall(r"<li>(.*?)</li>", header)
    assert len(lines) == 5
    assert lines[0] == summary.ASKED
    assert re.search(r"Asked without examples the model gets \d+% right", lines[2])
    for word in ("dummy query", "zero-shot", "verdict", "last-layer replay", "rule: first tokens"):
        assert f"<dt>{word}</dt>" in header


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("smollm2-135m-instruct", "Q4_1"),
        ("gemma-3-270m", "Q4_K_M"),
        ("qwen2.5-coder-1.5b-instruct", "Q4_K_M"),
        ("my/model-IQ2_XS.gguf", "IQ2_XS"),
    ],
)
def test_weights_read_from_a_quantized_file_are_never_called_not_quantized(model, kind):
    result = {"model": model, "dtype": "float32", "quantization": "none"}
    assert about.weights(result) == f"{kind} weights computed in float32"


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda one: one.name)
def test_an_experiment_that_scores_first_tokens_says_so(experiment):
    """Whatever the run's rule: in its file, in the corner of its figures and in its words."""
    source = Path(str(experiment.module.__file__)).read_text()
    assert ("by_first_token(" in source) == ('scored_by="paper"' in source)


def test_a_result_scored_by_first_tokens_in_a_run_of_whole_answers_says_so(results):
    result = json.loads((results / "necessity.json").read_text()) | {"scored_by": "paper"}
    result["settings"]["rule"] = "full"
    assert "rule: first tokens" in about.stamp(result)
    assert "Answers are scored by their first token here." in section_of(necessity, result).words
    whole = result | {"scored_by": "full"}
    assert "rule: whole answers" in about.stamp(whole)
    assert section_of(necessity, whole) == necessity.section(whole)


def test_no_directory_of_a_machine_is_on_the_page(tmp_path):
    for name in ("one", "two"):
        directory = tmp_path / "someone" / name
        synthetic.write(directory, TASKS, SHORT, model=f"/home/someone/models/{name}.Q4_K_M.gguf")
    page = html.unescape(build([tmp_path / "someone" / name for name in ("one", "two")]))
    assert "/home/someone" not in page
    assert str(tmp_path) not in page
    assert "two.Q4_K_M.gguf" in page
    assert "Q4_K_M weights computed in float32" in page
    assert "--results=one,two" in page


def test_models_are_named_without_their_directories():
    assert about.model_name("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
    assert about.model_name("/models/llama/final/") == "final"
    assert about.model_name("../models/final") == "final"
    said = about.without_directories("python -m x --model=/a/b/c.gguf --out='/tmp/y z' a/b 1/2")
    assert said == "python -m x --model=c.gguf --out='y z' a/b 1/2"
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/z")]
    assert [str(path) for path in about.tell_apart(paths)] == ["x/run", "y/run", "a/z"]


def test_a_sentence_begins_with_a_capital_and_a_models_name_stays_as_it_is():
    assert about.begun("mean of 13 tasks") == "Mean of 13 tasks"
    assert about.begun("smollm2-135m peaks") == "smollm2-135m peaks"
    assert about.begun("") == ""


def test_tasks_are_called_by_their_names_unless_two_share_one():
    titles = about.task_titles({"knowledge_my_x": "knowledge", "a_same": "a", "b_same": "b"})
    assert titles == {"knowledge_my_x": "my x", "a_same": "same (a)", "b_same": "same (b)"}
    own = {"knowledge_base_my_x": "knowledge_base"}
    assert about.task_titles(own) == {"knowledge_base_my_x": "my x"}


def test_what_was_left_out_is_one_line():
    notes = [f"{name} is left out: no task {name} in this run" for name in ("a_b", "c", "d")]
    assert left_out(notes) == ["Not among the tasks of this run, so left out: a b; c; d."]
    assert left_out(["own_x: too few pairs", "own_y: none"]) == [
        "Left out: own_x: too few pairs; own_y: none."
    ]
    assert left_out([]) == []


def test_a_verdict_that_is_not_shown_is_not_painted_as_bad(page):
    assert not re.search(r'class="[^"]*\bbad\b', page)
    assert "not shown" in page


def test_a_table_has_a_row_a_task_at_most(tmp_path):
    """What is varied within a task is a column: no table has more rows than there are tasks."""
    page = build([synthetic.write(tmp_path, TASKS, ("dose", "patch_map", "portability"))])
    for body in re.findall(r"<tbody>(.*?)</tbody>", page, re.S):
        assert body.count("<tr>") <= TASKS


def test_many_pairs_of_tasks_are_tables_of_one_task_by_the_other():
    result = synthetic.make("conflicting_tasks", 19)
    shown = conflicting_tasks.section(result)
    assert len(result["pairs"]) == len(shown.tables[0].rows) > 30
    assert max(len(table.rows) for table in shown.page_tables) <= 30
    table = shown.page_tables[0]
    titles = about.titles_of(result)
    for row in table.rows:
        for name, cell in zip(table.columns[1:], row[1:], strict=True):
            (b,) = (task for task, title in titles.items() if title == name)
            pair = result["pairs"].get(f"{row[0].exact}-{b}")
            assert cell.value == (pair["theta"]["b"]["accuracy"] if pair else -1)
    assert all(len(word) < 900 for word in shown.words)
    few = conflicting_tasks.section(synthetic.make("conflicting_tasks", 4))
    assert few.page_tables == ()


def test_every_table_is_a_file_of_all_its_values(results, page):
    files = re.findall(
        r'download="([a-z_]+_\d+\.csv)" href="data:text/csv;charset=utf-8,(.*?)"', page
    )
    assert len(files) == page.count('<table class="sortable">') > 20
    assert len({name for name, _ in files}) == len(files)
    rows = list(csv.DictReader(io.StringIO(unquote(dict(files)["main_results_1.csv"]))))
    tasks = json.loads((results / "main_results.json").read_text())["tasks"]
    found = {row["task"]: row for row in rows}
    for name, task in tasks.items():  # by the names that commands accept
        assert float(found[name]["task vector"]) == pytest.approx(task["task_vector"]["accuracy"])
        low = task["task_vector"]["low"]
        assert found[name]["task vector: note"].startswith(f"{low:.2f}–")


def test_a_file_of_values_keeps_digits_dashes_and_notes():
    third = {"accuracy": 1 / 3, "low": 0.1, "high": 0.7, "n": 6}
    table = Table(
        "t",
        ["name", "score"],
        [[Cell("x, y", exact="own_x"), score(third)], [text("z"), score(None)]],
    )
    assert to_csv(table).splitlines() == [
        "name,score,score: note",
        'own_x,0.3333333333,"0.10–0.70, n = 6"',
        "z,,",
    ]


def test_files_of_two_runs_are_not_put_under_one_headline(tmp_path):
    """A geometry of another seed beside main results, as copied there."""
    synthetic.write(tmp_path, TASKS, SHORT)
    synthetic.write(tmp_path, TASKS, ("task_geometry",), seed=1)
    with pytest.raises(TaskVecError, match=r"of two runs \(seed 0; seed 1\); put each run's files"):
        build([tmp_path])


def test_two_seeds_of_a_model_are_two_chapters_that_say_so(tmp_path):
    directories = [tmp_path / "first", tmp_path / "second"]
    for seed, directory in enumerate(directories):
        synthetic.write(directory, TASKS, SHORT, seed=seed)
    page = build(directories)
    for seed in (0, 1):
        assert re.search(rf'<h2 class="model">[^<]*instruct, seed {seed}</h2>', page)
        assert re.search(rf"<h1>2 runs side by side: [^<]*instruct, seed {seed}[;<]", page)
        assert re.search(rf"<li>On [^<]*instruct, seed {seed} one vector", page)
    # A comparison of other runs, left there by an earlier command, is none of these.
    cross_models.write([directories[0]], tmp_path)
    assert 'id="cross-models"' not in build(directories, tmp_path)
    cross_models.write(directories, tmp_path)
    assert 'id="cross-models"' in build(directories, tmp_path)


def test_texts_are_escaped():
    table = Table("<b>", ["<i>"], [[text("<script>", note='"x"')], [Cell("1", 1.0, note="<u>")]])
    shown = str(show_table(table, named=True, file="x.csv"))
    assert "<script>" not in shown
    assert "<u>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(TaskVecError, match="no results; expected main_results"):
        build([tmp_path])
    (tmp_path / "main_results.json").write_text("{}")
    with pytest.raises(TaskVecError, match=r"not a result of experiments\.main_results"):
        build([tmp_path])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium on this machine; .ci/run installs it")
    browser = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_a_browser_shows_the_page_without_a_complaint(results, browser, width, theme, tmp_path):
    browser.open(results / "report.html", width, theme)
    assert browser.complaints() == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests())
    # Nothing but tables and figures, each in its own frame, may be wider than the window.
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert browser.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    # The least text of a figure, 8 points of 100 pixels an inch, is 9 pixels or more.
    scales = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map(p =>"
        " p.querySelector('img').clientWidth / parseFloat(p.style.maxWidth))"
    )
    assert min(scales) * 8 * 100 / 72 >= 8.99
    image = browser.screenshot()
    (tmp_path / "page.png").write_bytes(image)
    pixels = matplotlib.image.imread(io.BytesIO(image))
    assert pixels.shape[1] == width
    ground = np.median(pixels[..., :3])
    assert ground > 0.9 if theme == "light" else ground < 0.2
    assert np.std(pixels[..., :3]) > 0.05  # there is ink


def test_on_a_dark_page_a_figure_has_light_inks_and_no_ground(results, browser):
    browser.open(results / "report.html", 1280, "dark")
    drawn, file = browser.evaluate(
        "(() => { const i = document.images[0];"
        " return [i.currentSrc, i.getAttribute('src')].map(s => atob(s.split(',')[1])); })()"
    )
    assert file.startswith("<?xml")
    for light, other in drawing.inks().items():
        assert light in file
        assert light not in drawn
        assert other in drawn
    assert drawn.count("#ffffff") == file.count("#ffffff") - 1
    browser.open(results / "report.html", 1280, "light")
    same = "document.images[0].currentSrc === document.images[0].getAttribute('src')"
    assert browser.evaluate(same)


def test_paper_shows_everything(results, browser):
    """Nothing is folded or cut, and a dark screen's page is printed in dark ink on white."""
    browser.open(results / "report.html", 1030, "dark")  # A4 landscape without its margins
    browser.evaluate('dispatchEvent(new Event("beforeprint"))')
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[feature])
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    wide = browser.evaluate(
        "[...document.querySelectorAll('.scroll, .wide')].filter(e => e.scrollWidth > innerWidth)"
        ".map(e => e.getAttribute('aria-label'))"
    )
    assert wide == []
    low = browser.evaluate(
        "[...document.querySelectorAll('td')].filter(e => !e.getBoundingClientRect().height).length"
    )
    assert low == 0
    light = "[...document.images].every(i => i.currentSrc === i.getAttribute('src'))"
    assert browser.evaluate(light)
    browser.evaluate('dispatchEvent(new Event("afterprint"))')
    assert browser.evaluate("document.querySelectorAll('details[open]').length") == 0
    browser.call("Emulation.setEmulatedMedia", media="", features=[])


COLUMN = """(() => {
  const table = document.querySelector("table.sortable");
  return [...table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[%d].textContent);
})()"""


def test_tables_sort_and_filter(results, browser):
    browser.open(results / "report.html", 1280, "light")
    names = browser.evaluate(COLUMN % 0)
    titles = about.task_titles(synthetic.names_of(TASKS)).values()
    assert sorted(names) == sorted(titles)
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
    browser.evaluate(type_in % "algorithmic_list FIRST")  # by the name that commands accept
    assert browser.evaluate(COLUMN % 0) == ["list first"]
    assert browser.evaluate('document.querySelector(".filter output").textContent') == (
        f"1 of {TASKS} rows"
    )
    browser.evaluate(type_in % "")
    assert len(browser.evaluate(COLUMN % 0)) == TASKS
    assert browser.complaints() == []


def test_a_figure_says_the_values_of_the_line_pointed_at_and_shows_one_that_is_picked(
    results, browser
):
    browser.open(results / "report.html", 1280, "light")
    result = json.loads((results / "main_results.json").read_text())
    name, task = next(iter(result["tasks"].items()))
    title, curve = about.titles_of(result)[name], task["dev_accuracy_by_layer"]
    best = int(np.argmax(curve))
    figure = (
        "[...document.querySelectorAll('figure')].find(f => f.querySelector('img').alt.startsWith"
    )
    figure += "('Zero-shot prompts with theta'))"
    point = """(() => { const f = %s, plot = f.querySelector(".plot");
      const line = JSON.parse(f.querySelector(".lines").textContent).find(l => l.name === "%s");
      const box = plot.getBoundingClientRect(), [x, y] = line.at[%d];
      const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
      plot.dispatchEvent(new PointerEvent("%s", { ...at, bubbles: true }));
      const tip = f.querySelector(".tip");
      return [tip.hidden, tip.textContent, f.querySelectorAll("polyline").length,
              f.querySelector("select").value]; })()"""
    hidden, said, drawn, picked = browser.evaluate(point % (figure, title, best, "pointermove"))
    assert (hidden, drawn, picked) == (False, 1, "")
    assert said == f"{title} · layer {best}: {curve[best]:.2f}"
    *_, picked = browser.evaluate(point % (figure, title, best, "click"))
    assert picked == title
    assert browser.evaluate(f"{figure}.querySelector('output').textContent") == (
        f"highest: layer {best}: {curve[best]:.2f}"
    )
    assert browser.complaints() == []
