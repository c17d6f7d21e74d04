"""Own tasks: what is read, and what is wrong with a file, line by line."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest

from taskvec_jax.errors import TaskVecError
from taskvec_jax.tasks import Pair, Task, read_own_tasks, registry, select, task_file
from taskvec_jax.tasks.task_file import check_own_tasks

GOOD = """[
 {"category": "own", "name": "next",
  "pairs": {"one": "two", "two": "three"}},
 {"category": "knowledge", "name": "sea",
  "pairs": [{"input": "Oslo", "output": "North Sea", "accepted": ["Skagerrak"]}]}
]
"""
PYTHON = """from taskvec_jax.tasks import Pair, Task
TASKS = [Task("own", "square", tuple(Pair(str(i), str(i * i)) for i in range(2, 9)))]
"""


def test_a_json_file_of_tasks_is_read(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(GOOD)
    first, second = read_own_tasks(path)
    assert first.name == "own_next"
    assert first.pairs == (Pair("one", "two"), Pair("two", "three"))
    assert type(first.pairs[0].input) is str
    assert second.pairs == (Pair("Oslo", "North Sea", ("Skagerrak",)),)


def test_a_task_of_a_file_says_how_it_is_posed_and_scored_or_takes_its_categorys_conventions(
    tmp_path,
):
    pairs = '"name": "x", "pairs": {"a": "b"}'
    texts = {
        '"category": "own"': ("exact", "auto", False),
        '"category": "knowledge"': ("prefix", False, False),
        '"category": "knowledge", "match": "exact", "leading_space": "auto"': (
            "exact",
            "auto",
            False,
        ),
        '"category": "own", "match": "prefix", "leading_space": true': ("prefix", True, False),
        '"category": "algorithmic"': ("exact", False, False),
        '"category": "translation"': ("exact", "auto", True),
        '"category": "translation", "ignore_case": false': ("exact", "auto", False),
    }
    path = tmp_path / "mine.json"
    for text, wanted in texts.items():
        path.write_text(f"{{{text}, {pairs}}}")
        (task,) = read_own_tasks(path)
        assert (task.match, task.leading_space, task.ignore_case) == wanted
        assert type(task.match) is str


def test_a_python_file_of_tasks_joins_the_others(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PYTHON)
    assert "own_square" in registry(own=path)
    (task,) = select(["own_square"], None, path)
    assert task.pairs[0] == Pair("2", "4")
    assert len(registry(own=path)) == 19


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            '{"category": "own",\n "name": "x",\n "pairs": {"a": "b",}}',
            ["3: cannot be read as JSON"],
        ),
        ('[\n{"category": "own", "name": "x"}]', ["2: a task is an object"]),
        (
            '{"category": "own", "name": "x", "pairs": {\n"a": "b",\n"a": "c",\n"d": ""}}',
            ["3: input 'a' is there already", "4: pair 2: '' must be a string"],
        ),
        (
            '{"category": "own", "name": "x", "pairs": [\n{"input": "a", "output": "b"},\n'
            '{"input": "a", "output": "c"},\n{"input": "d", "out": "e"},\n7]}',
            [
                "3: pair 2: input 'a' is there already (line 2)",
                "4: pair 3: unknown keys ['out']",
                "pair 4 is 7",
            ],
        ),
        (
            '{"category": "", "name": "x",\n "pairs": []}',
            ["1: category must be a string", "2: pairs must be"],
        ),
        ("[]", ["holds no task"]),
        (
            '{"category": "own", "name": "x", "pairs": {"a": "b"}, "leading_space": 1,\n'
            '"match": "begins"}',
            ["2: match is 'begins'; allowed: 'exact', 'prefix'", "1: leading_space is 1; allowed"],
        ),
    ],
)
def test_every_problem_of_a_json_file_is_named_with_its_line(tmp_path, text, problems):
    path = tmp_path / "bad.json"
    path.write_text(text)
    _, found = check_own_tasks(path)
    assert len(found) == len(problems), found
    for got, expected in zip(found, problems, strict=True):
        assert got.startswith(str(path))
        assert expected in got
    with pytest.raises(TaskVecError) as error:
        read_own_tasks(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\nTASKS = [\n", "2: not Python"),
        ("x = 1\n\nTASKS = 1 / 0\n", "3: raised ZeroDivisionError: division by zero"),
        ("tasks = []\n", "must define TASKS"),
        (
            "from taskvec_jax.tasks import Pair, Task\nTASKS = [Task('own', 'x', (\n"
            "    Pair('a', 'b'),\n    Pair('c', ' '),\n))]\n",
            "4: task own_x, pair 2: ' ' must be a string of one line",
        ),
    ],
)
def test_every_problem_of_a_python_file_is_named_with_its_line(tmp_path, text, problem):
    path = tmp_path / "bad.py"
    path.write_text(text)
    _, found = check_own_tasks(path)
    assert len(found) == 1
    assert f"{path}:{problem}" in found[0] or problem in found[0]


def test_what_begins_like_a_comment_is_an_input_where_it_is_none(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('"# heading",h1\n#1,one\n# comment,no\nC#,language\n')
    (task,) = read_own_tasks(path)
    assert [pair.input for pair in task.pairs] == ["# heading", "#1", "C#"]


def test_a_directory_is_told_from_a_file_and_the_other_flag_named(tmp_path):
    with pytest.raises(TaskVecError, match=r"is a directory; --task_file takes .*--task_data"):
        read_own_tasks(tmp_path)


def test_other_endings_and_missing_files_are_refused(tmp_path):
    with pytest.raises(TaskVecError, match=r"allowed: \.json, \.jsonl, \.csv, \.tsv, \.py"):
        read_own_tasks(tmp_path / "mine.toml")
    for name in ("gone.json", "gone.py"):
        with pytest.raises(TaskVecError, match="cannot be read"):
            read_own_tasks(tmp_path / name)


def test_messages_of_the_originals_layout_have_lines_too(tmp_path):
    from taskvec_jax.tasks import read_task_file

    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"a": "b", "c": ""}, indent=1))
    with pytest.raises(TaskVecError, match=r"bad\.json:3: pair 2"):
        read_task_file(path)


CAPITALS = (
    Pair("France", "Paris"),
    Pair("Bolivia", "Sucre", ("La Paz",)),
    Pair("Haiti", "Port au Prince"),
)
TABLES = {
    "capitals.csv": """
France,Paris
Bolivia, Sucre,La Paz

Haiti,Port au Prince,
""",
    "named.csv": """accepted,Output,Input
,Paris,France
La Paz,Sucre,Bolivia
,Port au Prince,Haiti
""",
    "quoted.csv": '\ufeff"France","Paris"\r\nBolivia,Sucre,La Paz\r\nHaiti,"Port au Prince"\r\n',
    "commented.csv": """# France,Lyon
#\r
input,output,accepted
France,Paris
# a, b
Bolivia,Sucre,La Paz
Haiti,Port au Prince
""",
    "commented.tsv": "# no\tpair\nFrance\tParis\nBolivia\tSucre\tLa Paz\nHaiti\tPort au Prince\n#",
    "capitals.tsv": "France\tParis\nBolivia\tSucre\tLa Paz\nHaiti\tPort au Prince\n",
    "dict.json": """{"France": "Paris", "Bolivia": ["Sucre", "La Paz"],
 "Haiti": "Port au Prince"}""",
    "lists.json": """[["France", "Paris"],
 ["Bolivia", "Sucre", "La Paz"], ["Haiti", "Port au Prince"]]""",
    "objects.json": """[{"input": "France", "output": "Paris"},
 {"input": "Bolivia", "output": "Sucre", "accepted": ["La Paz"]},
 {"input": "Haiti", "output": "Port au Prince"}]""",
    "mine.jsonl": """{"input": "France", "output": "Paris"}
["Bolivia", "Sucre", "La Paz"]

["Haiti", "Port au Prince"]
""",
}


@pytest.mark.parametrize("name", TABLES)
def test_pairs_are_read_from_every_kind_of_file_and_from_standard_input(
    tmp_path, monkeypatch, name
):
    path = tmp_path / name
    path.write_text(TABLES[name], newline="")
    (task,) = read_own_tasks(path)
    assert task.pairs == CAPITALS  # answers of several words stay
    assert task.name == f"own_{path.stem}"
    task_file._standard_input.cache_clear()
    monkeypatch.setattr("sys.stdin", io.StringIO(TABLES[name]))
    for _ in range(2):
        assert read_own_tasks(Path("-")) == [dataclasses.replace(task, short_name="stdin")]
    task_file._standard_input.cache_clear()


def test_tasks_may_stand_one_a_line(tmp_path):
    path = tmp_path / "several.jsonl"
    lines = [{"category": "own", "name": name, "pairs": {"a": name}} for name in ("b", "c")]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [task.name for task in read_own_tasks(path)] == ["own_b", "own_c"]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.csv", "a,b\nc\n", "2: pair 2 is ['c']; it must be"),
        ("a.csv", "a,b\na,c\n", "2: pair 2: input 'a' is there already (line 1)"),
        ("a.csv", "input,output,note\na,b,c\n", "1: unknown columns ['note']"),
        ("a.csv", "input,output\na,b,c\n", "2: 3 cells; the first row names 2 columns"),
        ("a.csv", "input,output\na\n", "2: pair 1: '' must be a string"),
        ("a.csv", 'a,"b\nc"\n', "2: pair 1: 'b\\nc' must be a string of one line"),
        ("a.csv", "# one\n#\na,b\n# two\nc\n", "5: pair 2 is ['c']; it must be"),
        ("a.csv", "# a,b\n", "holds no task; python -m experiments.tasks --new=FILE writes"),
        ("a.csv", 'a,"b\n', "cannot be read as a table"),
        ("a.csv", "", "holds no task"),
        ("a.tsv", "a,b\n", "1: pair 1 is ['a,b']"),
        ("a.jsonl", '["a", "b"]\n{"input": 3}\n', "2: pair 2: 3 must be a string"),
        ("a.jsonl", '["a", "b"]\n["a"\n', "2: cannot be read as JSON"),
        ("a.json", '{"a": [],\n "b": 3}', "pair 1: [] must be a string"),
    ],
)
def test_every_problem_of_a_table_is_named_with_its_line(tmp_path, name, text, problem):
    path = tmp_path / name
    path.write_text(text)
    found, problems = check_own_tasks(path)
    assert f"{path}:{problem}" in problems[0] or problem in problems[0], problems
    assert not found


def test_a_task_is_made_of_plain_pairs():
    plain = [("France", "Paris"), ["Bolivia", "Sucre", "La Paz"], Pair("Haiti", "Port au Prince")]
    task = Task.from_pairs("capitals", plain, match="prefix")
    assert (task.name, task.pairs, task.match) == ("own_capitals", CAPITALS, "prefix")
    assert Task.from_pairs("x", {"a": "b"}).pairs == (Pair("a", "b"),)
    for pairs, message in (
        ([("a",)], "pair 1 is"),
        ([("a", "b"), ("a", "c")], "pair 2: input 'a' is there already"),
        ([("a", 3)], "3 must be a string"),
        ([], "not empty"),
        ("ab", "must be"),
    ):
        with pytest.raises(TaskVecError, match=message):
            Task.from_pairs("x", pairs)
