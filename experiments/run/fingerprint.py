"""A hash of the code that makes a number, so that numbers of two versions never mix in a journal.

What counts is

* every module of the library that Python loads for the function's module, through the files of
  packages on the way and through imports inside functions too: what is not loaded computes nothing;
* where the function is an experiment's, the modules behind the thetas and layers that a study gives
  it; and of its own module the definitions that the function reaches by name: how a result is
  printed, drawn or put into words is not among them.

Of both, comments, formatting, docstrings and the wording of messages (in `raise`, `assert`, the
making of an exception, and what is printed or logged) change nothing. Conversion is not here: the
weights and the tokenizer that it makes have hashes of their own.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import symtable
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import taskvec_jax

LIBRARY = Path(str(taskvec_jax.__file__)).resolve().parent
PROTOCOL = LIBRARY / "evaluation" / "protocol.py"  # behind the thetas and layers of a study
SPEAKERS = {"console", "log", "logger", "logging", "warnings"}  # whose calls only tell something


def fingerprint(compute: Callable[..., Any]) -> str:
    """Hash of the code behind a function.

    Args:
      compute: of `functools.partial`, the function inside counts; of a function that is defined
        inside another one, the outer one with all that it reaches.
    """
    while isinstance(compute, functools.partial):
        compute = compute.func
    file = Path(str(sys.modules[compute.__module__].__file__)).resolve()
    return _fingerprint(file, compute.__qualname__.split(".")[0])


@functools.cache
def _fingerprint(file: Path, root: str) -> str:
    digest = hashlib.sha256()
    files = set(library_files(file))
    if not file.is_relative_to(LIBRARY):
        files |= set(library_files(PROTOCOL))
    for path in sorted(files):
        digest.update(_library_code(path).encode())
    if not file.is_relative_to(LIBRARY):
        digest.update(code_of(file.read_text(encoding="utf-8"), root).encode())
    return digest.hexdigest()


@functools.cache
def _library_code(path: Path) -> str:
    return f"{path.relative_to(LIBRARY)}\n{code_of(path.read_text(encoding='utf-8'))}"


@functools.cache
def library_files(file: Path) -> tuple[Path, ...]:
    """The files of the library that Python loads for a file, itself included if it is one."""
    found: set[Path] = set()
    waiting = [file.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += _loaded_by(path)
    return tuple(sorted(path for path in found if path.is_relative_to(LIBRARY)))


@functools.cache
def _loaded_by(path: Path) -> tuple[Path, ...]:
    """The files of the library that the imports of one file name.

    The library's own `__init__`, which any import of it loads, stands for what decides numbers
    before any of this runs: how the compiler is set up, and how kernels become int8. The rest of it
    is the list of what is public, and computes nothing (a test holds that no file here takes a name
    from it).
    """
    if path == LIBRARY / "__init__.py":
        return (
            LIBRARY / "distributed" / "backend.py",
            LIBRARY / "transformer" / "quantization.py",
        )
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(file for name in _imported(tree) for file in _files_of(name)))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names that may be modules: `from a import b` imports a, and a.b if that is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str) -> list[Path]:
    """The files of the library that importing a dotted name loads, those of packages first."""
    first, *parts = name.split(".")
    if first != LIBRARY.name:
        return []
    files, place = [], LIBRARY
    for part in ["", *parts]:
        place = place / part if part else place
        files += [f for f in (place / "__init__.py", place.with_suffix(".py")) if f.is_file()]
    return files


def code_of(source: str, root: str | None = None) -> str:
    """The syntax tree of source as text, without what changes no number.

    Args:
      root: name of a top-level definition; only what it reaches counts. None, or a name that is
        not defined there: everything does.
    """
    tree = ast.parse(source)
    if root is not None:
        tree.body = _reached(source, root)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and _documented(node):
            node.body = node.body[1:]
    return ast.dump(_Wordless().visit(tree))


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    return bool(node.body) and ast.get_docstring(node, clean=False) is not None


def _reached(source: str, root: str) -> list[ast.stmt]:
    """The top-level statements that define what `root` uses, directly or not, and its imports."""
    body = ast.parse(source).body
    tables = symtable.symtable(source, "", "exec").get_children()
    defined: dict[str, list[ast.stmt]] = {}
    for statement in body:
        for name in _defines(statement):
            defined.setdefault(name, []).append(statement)
    if root not in defined:
        return body
    kept: set[ast.stmt] = set()
    waiting, seen = [root], {root}
    while waiting:
        for statement in defined.get(waiting.pop(), []):
            if statement not in kept:
                kept.add(statement)
                used = _used(statement, tables) - seen
                seen |= used
                waiting += used
    for statement in kept:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            statement.names = [alias for alias in statement.names if _bound(alias) in seen]
    return [statement for statement in body if statement in kept]


def _used(statement: ast.stmt, tables: Sequence[symtable.SymbolTable]) -> set[str]:
    """The names of the module that a top-level statement uses; not those of its own variables."""
    if not isinstance(statement, ast.FunctionDef):
        return _names(statement)
    used = _names(statement.args).union(*map(_names, statement.decorator_list))
    waiting = [table for table in tables if table.get_name() == statement.name]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return used


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _defines(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement gives a value."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield _bound(node)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def _bound(alias: ast.alias) -> str:
    """The name that an import binds."""
    return (alias.asname or alias.name).split(".")[0]


class _Wordless(ast.NodeTransformer):
    """Empties the texts of messages."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return _emptied(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return _emptied(node) if _speaks(node.func) else self.generic_visit(node)


def _speaks(function: ast.expr) -> bool:
    """Whether a call only makes an exception, or tells something."""
    if isinstance(function, ast.Name):
        return function.id.endswith("Error") or function.id == "print"
    return isinstance(function, ast.Attribute) and (
        function.attr.endswith("Error")
        or (isinstance(function.value, ast.Name) and function.value.id in SPEAKERS)
    )


class _Empty(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")


def _emptied(node: ast.AST) -> ast.AST:
    return _Empty().visit(node)
