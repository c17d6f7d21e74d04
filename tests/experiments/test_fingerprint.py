"""The hash of code changes with everything that can change a number, and with nothing else."""

from __future__ import annotations

import ast
import functools
import random
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from slow import SLOW

from experiments.run import fingerprint as fingerprints
from experiments.run.fingerprint import LIBRARY, code_of, fingerprint, library_files
from taskvec_jax.evaluation.protocol import evaluate_task

ROOT = LIBRARY.parent
FILES = sorted(LIBRARY.rglob("*.py"))
# What makes the values of units, experiment by experiment; `evaluate_task` is layer_sweep's.
COMPUTING = {
    "bijections": ["measure_way"],
    "conflicting_tasks": ["measure_pair"],
    "dose": ["score_prompts", "score_dummies", "score_writes"],
    "emergence": ["_scores"],
    "learned_task_vector": ["learn_task"],
    "patch_map": ["map_positions", "map_layers"],
    "portability": ["carry"],
    "task_geometry": ["describe", "read_wrong_theta"],
    "vocabulary_projection": ["project"],
}
UNITS = [(module, name) for module, names in COMPUTING.items() for name in names]


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def text_of(source: str, function: ast.FunctionDef) -> str:
    """A function's own lines, decorators among them, as a module of its own."""
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    assert function.end_lineno is not None
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 : function.end_lineno]))


def dump_of(source: str) -> str:
    """The only statement's part of what `code_of` gives for a module."""
    return code_of(source).removeprefix("Module(body=[").removesuffix("], type_ignores=[])")


def computing_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a function that decide what it gives; those of messages and annotations do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise | ast.Assert | ast.arguments):
            continue
        if isinstance(child, ast.Call) and fingerprints._speaks(child.func):
            continue
        if isinstance(child, ast.FunctionDef) and child is not node:
            continue  # another function
        number = isinstance(child, ast.Constant) and isinstance(child.value, int | float)
        if number or isinstance(child, ast.Name | ast.Attribute | ast.BinOp | ast.Return):
            yield child
        yield from computing_nodes(child)


def mutate(node: Any) -> None:
    """Changes a node, so that it would compute something else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1
    elif isinstance(node, ast.Name):
        node.id += "_other"
    elif isinstance(node, ast.Attribute):
        node.attr += "_other"
    elif isinstance(node, ast.BinOp):
        node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
    elif isinstance(node, ast.Return):
        node.value = ast.Constant(7)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_change_of_a_library_functions_body_changes_the_modules_code(path):
    """One place of each function, drawn anew for each; all places with TASKVEC_SLOW_TESTS=1."""
    source = path.read_text()
    whole, rng = code_of(source), random.Random(path.name)
    for function in functions(ast.parse(source)):
        text = text_of(source, function)
        before = dump_of(text)
        assert before in whole, function.name
        count = len([*computing_nodes(ast.parse(text).body[0])])
        for i in range(count) if SLOW else {rng.randrange(count)} if count else ():
            tree = ast.parse(text)
            mutate([*computing_nodes(tree.body[0])][i])
            assert dump_of(ast.unparse(tree)) != before, (function.name, i)


def test_the_code_of_every_library_module_that_a_unit_loads_is_part_of_its_hash(monkeypatch):
    plain = fingerprint(evaluate_task)
    file = LIBRARY / "evaluation/protocol.py"
    codes = {path: fingerprints._library_code(path) for path in library_files(file)}
    for path in codes:
        changed = {**codes, path: codes[path] + "changed"}
        monkeypatch.setattr(fingerprints, "_library_code", changed.__getitem__)
        assert fingerprints._fingerprint.__wrapped__(file, "evaluate_task") != plain, path


def test_every_unit_loads_what_decides_its_numbers_and_not_what_cannot():
    files = [LIBRARY / "evaluation/protocol.py"]
    files += [ROOT / "experiments" / f"{module}.py" for module in COMPUTING]
    for file in files:
        counted = {*library_files(file), *library_files(fingerprints.PROTOCOL)}
        loaded = {str(path.relative_to(LIBRARY)) for path in counted}
        computing = (
            "distributed/backend evaluation/protocol prompting/prompts tasks/sampling"
            " transformer/decoder transformer/layers transformer/quantization vectors/batching"
            " vectors/programs vectors/rows vectors/sweep"
        )
        assert {f"{name}.py" for name in computing.split()} <= loaded
        assert "tasks/__init__.py" in loaded


def test_no_file_takes_a_name_from_the_list_of_what_is_public():
    for package in ("taskvec_jax", "convert", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            if path == LIBRARY / "__init__.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module == "taskvec_jax":
                    for alias in node.names:
                        module = LIBRARY / alias.name
                        assert module.is_dir() or module.with_suffix(".py").is_file(), path


def test_the_code_behind_a_studys_thetas_is_part_of_every_experiments_hash(monkeypatch):
    file = ROOT / "experiments" / "task_geometry.py"
    assert fingerprints.PROTOCOL not in library_files(file)
    plain = fingerprints._fingerprint.__wrapped__(file, "describe")
    codes = {path: fingerprints._library_code(path) for path in LIBRARY.rglob("*.py")}
    for path in library_files(fingerprints.PROTOCOL):
        changed = {**codes, path: codes[path] + "changed"}
        monkeypatch.setattr(fingerprints, "_library_code", changed.__getitem__)
        assert fingerprints._fingerprint.__wrapped__(file, "describe") != plain, path


def test_a_module_that_an_experiment_does_not_load_is_not_in_its_hash():
    dose, learned = (library_files(ROOT / "experiments" / f"{n}.py") for n in ("dose", "emergence"))
    assert LIBRARY / "vectors/learning.py" not in {*dose, *learned}
    assert LIBRARY / "vectors/learning.py" in library_files(
        ROOT / "experiments/learned_task_vector.py"
    )


@pytest.mark.parametrize(("module", "name"), UNITS)
def test_what_a_unit_reaches_in_its_experiment_counts_and_what_shows_it_does_not(module, name):
    source = (ROOT / "experiments" / f"{module}.py").read_text()
    plain, tree = code_of(source, name), ast.parse(source)
    kept = fingerprints._reached(source, name)
    reached = {node.name for node in kept if isinstance(node, ast.FunctionDef)}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        lines = source.splitlines()
        last = function.body[-1]
        lines.insert(last.lineno - 1, " " * last.col_offset + "return 7")
        changed = code_of("\n".join(lines), name) != plain
        assert changed == (function.name in reached), function.name
    shown = {"section", "draw", "draw_figures", "draw_figure", "run", "main", "define_flags"}
    assert not reached & shown
    assert name in reached


def test_what_an_experiment_computes_with_is_its_own_or_the_librarys():
    """Other experiments' code is in no hash, so no unit may be computed with it."""
    for module, name in UNITS:
        source = (ROOT / "experiments" / f"{module}.py").read_text()
        reached = fingerprints._reached(source, name)
        imported = {
            alias.asname or alias.name
            for statement in reached
            if isinstance(statement, ast.ImportFrom)
            and (statement.module or "").split(".")[0] == "experiments"
            for alias in statement.names
        }
        assert imported <= {"Study"}, (module, name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_wording_of_an_error_and_no_comment_or_docstring_changes_the_code(path):
    source = path.read_text()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        said = isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error")
        )
        for part in ast.walk(node) if said else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                part.value = "in other words"
    documented = "# a comment\n" + ast.unparse(tree)  # unparsed, it is formatted otherwise too
    for node in functions(ast.parse(source)):
        if docstring := ast.get_docstring(node, clean=False):
            documented = documented.replace(docstring, "Says something else.")
    assert code_of(documented) == code_of(source)


def test_a_partial_has_the_hash_of_its_function_and_two_functions_have_two():
    from experiments import dose, portability
    from taskvec_jax.evaluation.results import Settings

    partial = functools.partial(dose.score_writes, settings=Settings())
    assert fingerprint(partial) == fingerprint(dose.score_writes)
    hashes = [dose.score_writes, dose.score_dummies, portability.carry]
    assert len({fingerprint(compute) for compute in hashes}) == 3


def test_code_that_only_explains_or_tells_does_not_count_but_other_code_does():
    plain = "def f(x):\n    if x: raise ValueError(f'no {x}')\n    return x + 1\n"
    told = '"""Doc."""\n# why\ndef f(x):\n    """Adds."""\n    if x: raise ValueError("not so")\n'
    told += "    return (x + 1)\n"
    assert code_of(plain) == code_of(told)
    assert code_of(plain) != code_of(plain.replace("ValueError", "KeyError"))
    assert code_of(plain) != code_of(plain.replace("if x", "if not x"))
    assert code_of("f('a')") != code_of("f('b')"), "other texts count"
    assert code_of("a = 1\ndef f(): return a\ndef g(): return 2", "f") == code_of(
        "a = 1\ndef f(): return a\ndef g(): return 3", "f"
    )
    assert code_of("a = 1\ndef f(): return a", "f") != code_of("a = 2\ndef f(): return a", "f")
    shadowed = "a = {}\ndef f(x):\n    a = x\n    return a"
    assert code_of(shadowed.format(1), "f") == code_of(shadowed.format(2), "f"), "its own variable"
    imported = "from m import {}\ndef f(): return g()"
    assert code_of(imported.format("g"), "f") == code_of(imported.format("g, h"), "f")
    assert code_of(imported.format("g"), "f") != code_of(imported.format("h as g"), "f")
    assert code_of("x = 1", "<lambda>") == code_of("x = 1"), "what is not found hides nothing"
