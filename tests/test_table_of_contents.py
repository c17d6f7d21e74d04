"""`import taskvec_jax`: its names are there, and modules import in any order what they need."""

from __future__ import annotations

import ast
from pathlib import Path

import taskvec_jax
from taskvec_jax.vectors import learning

ROOT = Path(__file__).resolve().parent.parent


def graph() -> dict[str, set[str]]:
    """Module -> what it imports while it is being imported; imports inside functions left out."""
    found = {}
    for path in sorted((ROOT / "taskvec_jax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        found[name] = names
    return {name: {n for n in names if n != name} for name, names in found.items()}


def reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    """Everything that importing a module imports."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = imports.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def test_no_module_imports_itself_by_way_of_others():
    imports = graph()
    del imports["taskvec_jax"]  # it imports everything, and everything runs it first
    assert {"taskvec_jax.vectors.programs", "jax"} <= reached(
        "taskvec_jax.vectors.sweep", imports
    )  # the graph is not empty
    assert not [name for name in imports if name in reached(name, imports)]


def test_every_name_of_the_table_of_contents_is_there():
    for name in taskvec_jax.__all__:
        assert getattr(taskvec_jax, name) is not None
    assert taskvec_jax.learn_vector is learning.learn_vector
    assert not hasattr(taskvec_jax, "no_such_name")


def test_the_optimiser_is_imported_only_when_vectors_are_learned():
    imports = graph()
    assert "optax" in reached("taskvec_jax.vectors.learning", imports)
    assert "optax" not in reached("taskvec_jax", imports)
