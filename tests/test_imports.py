"""The order of the rooms: imports only go down, and each foreign library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from slow import slow

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("taskvec_jax", "convert", "experiments")
# The rooms from the bottom. A module may import those of its own room and of rooms before it. It
# stands in the room with the longest name that is its own or begins its own.
ROOMS = [
    "taskvec_jax.errors",
    "taskvec_jax.narrowing",
    "taskvec_jax.printing",
    "taskvec_jax.tasks",
    "taskvec_jax.transformer",
    "taskvec_jax.prompting",
    "taskvec_jax.distributed",
    "convert",  # what reads foreign weights
    "taskvec_jax.vectors.rows",  # the engine of the sweep, which `Model.sweep` calls
    "taskvec_jax.vectors.graded",
    "taskvec_jax.vectors.copies",
    "taskvec_jax.vectors.programs",
    "taskvec_jax.vectors.flops",
    "taskvec_jax.vectors.account",
    "taskvec_jax.vectors.batching",
    "taskvec_jax.vectors.sweep",
    "taskvec_jax.models",
    "taskvec_jax.programs",  # what there is to run
    "convert.cli",
    "convert.export",
    "convert.verify",
    "convert.__main__",
    "taskvec_jax.vectors",
    "taskvec_jax.evaluation",
    "taskvec_jax",  # the table of contents, and `python -m taskvec_jax`
    "experiments.published",
    "experiments.small_pythia.training",
    "experiments.small_pythia.mixture",  # tasks, which a run of that model is on
    "experiments.run",
    "experiments.page",
    "experiments.commands",
    "experiments",  # the results of the papers
    "experiments.small_pythia",
    "experiments.bench",
]
# Imports that may go up: the library finds `convert` by its place on disk, when it is called, and
# names it only for the checker of types.
DOOR = ("taskvec_jax.models.foreign", "convert")
WORDS = ("taskvec_jax.tasks", "taskvec_jax.prompting")


def modules() -> dict[str, Path]:
    """The path of every module of the project."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    """All that a file imports, inside functions too: modules, and the names taken from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the project that it imports, the door aside.

    A package is counted where a name of its own is taken from it, not where it merely holds the
    module that is imported.
    """
    known = modules()
    found = {}
    for module, path in known.items():
        names = imported(path)
        held = {name.rpartition(".")[0] for name in names & known.keys()}
        taken = {name.rpartition(".")[0] for name in names - known.keys()}
        found[module] = {n for n in names & known.keys() if n not in held or n in taken} - {module}
        found[module] -= {DOOR[1]} if module == DOOR[0] else set()
    return found


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room(module: str) -> str:
    fitting = [name for name in ROOMS if inside(module, name)]
    return max(fitting, key=len)


def doors(library: str) -> set[str]:
    """The modules that import a library."""
    return {m for m, path in modules().items() if any(inside(n, library) for n in imported(path))}


def test_imports_only_go_down_from_room_to_room():
    up = [
        f"{module} imports {name}"
        for module, names in graph().items()
        for name in sorted(names)
        if ROOMS.index(room(name)) > ROOMS.index(room(module))
    ]
    assert up == []


def test_no_import_goes_round_in_a_circle():
    left = graph()
    while leaves := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in leaves}
    assert left == {}, "these import one another"


def test_a_file_is_of_300_lines_at_most_or_says_why_it_is_longer():
    rooms = ("taskvec_jax", "convert", "experiments", "tests")
    paths = [path for name in rooms for path in (ROOT / name).rglob("*.py")]
    texts = {path: path.read_text() for path in paths}
    assert len(texts) > 300
    long = {path for path, text in texts.items() if text.count("\n") > 300}
    assert {path for path in long if "\n# Long because: " not in texts[path]} == set()


def test_what_the_library_exports_is_under_pyrights_strict_rules():
    """Their files say so; `pyright` holds them to it."""
    exporting = imported(ROOT / "taskvec_jax" / "__init__.py") & modules().keys()
    public = exporting | {"taskvec_jax", "taskvec_jax.models.verbs", "taskvec_jax.narrowing"}
    lax = public - {m for m in public if modules()[m].read_text().startswith("# pyright: strict")}
    assert lax - {"taskvec_jax.distributed.backend"} == set()
    assert len(public) > 15


@slow  # a minute
def test_pyright_finds_no_fault():
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_module_stands_in_a_room_and_every_room_has_modules():
    assert {room(module) for module in modules()} == set(ROOMS)
    packages = {path.parent for path in (ROOT / "taskvec_jax").glob("*/__init__.py")}
    assert {f"taskvec_jax.{path.name}" for path in packages} <= set(ROOMS)


def test_words_know_no_arrays_and_the_transformer_knows_no_words():
    for module, path in modules().items():
        names = imported(path)
        if any(inside(module, room) for room in WORDS):
            assert not {n for n in names if n.split(".")[0] in ("jax", "jaxlib", "flax")}, module
        if inside(module, "taskvec_jax.transformer"):
            words = (*WORDS, "tokenizers", "sentencepiece")
            assert not {n for n in names if any(inside(n, word) for word in words)}, module


def test_foreign_libraries_have_one_door():
    assert {room(module) for module in doors("orbax")} == {"taskvec_jax.models"}
    assert doors("sentencepiece") == {"taskvec_jax.prompting.sentencepieces"}
    assert doors("transformers") == {
        "convert.tokenizers",
        "convert.verify.reference",
        "experiments.bench.torch_loop",  # the other side of the benchmark
    }
    assert {module for module in doors("absl") if inside(module, "taskvec_jax")} == set()
    assert {module for module in doors("torch") if not inside(module, "convert")} == {
        "experiments.bench.generation",
        "experiments.bench.torch_loop",
        "experiments.bench.nnsight_loop",
        "experiments.bench.synthetic_model",  # writes torch's files
    }
    assert {module for module in doors("convert") if inside(module, "taskvec_jax")} == {DOOR[0]}
    assert not any(inside(module, "taskvec_jax") for module in doors("experiments"))


def test_running_the_default_model_imports_neither_torch_nor_transformers():
    code = (
        "import sys, experiments.layer_sweep\n"
        "from taskvec_jax import load_model\n"
        "load_model('smollm2-135m-instruct')\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
