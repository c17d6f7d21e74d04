"""A hash of the code that makes a number, so that numbers of two versions never mix in a journal.

Comments, docstrings and formatting do not count, nor do the functions of an experiment that only
show results.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import taskvec_jax

SHOWING = ("section", "draw", "_draw", "main")


def fingerprint(compute: Callable[..., Any]) -> str:
    """Hash of the library and of the module that a function is from."""
    module = sys.modules[compute.__module__]
    return _hash((*_library(), Path(str(module.__file__))))


@functools.cache
def _library() -> tuple[Path, ...]:
    return tuple(sorted(Path(str(taskvec_jax.__file__)).parent.rglob("*.py")))


@functools.cache
def _hash(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(_code(file).encode())
    return digest.hexdigest()


@functools.cache
def _code(file: Path) -> str:
    """A file's syntax tree without what changes no number."""
    return code_of(file.read_text(encoding="utf-8"))


def code_of(source: str) -> str:
    """The syntax tree of source as text, docstrings and showing functions left out."""
    tree = ast.parse(source)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.FunctionDef) and node.name.startswith(SHOWING))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and _documented(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    return bool(node.body) and ast.get_docstring(node, clean=False) is not None
