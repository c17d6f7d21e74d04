"""The house's order: imports only go down, and each foreign library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A module may import modules that stand in an earlier line only.
RANKS = [
    ["taskvec_jax.errors", "experiments.published", "taskvec_jax.wording"],
    [
        "taskvec_jax.distributed.backend",
        "taskvec_jax.transformer.config",
        "taskvec_jax.tasks.sampling",
        "taskvec_jax.evaluation.scoring",
        "taskvec_jax.prompting.sentencepieces",
        "taskvec_jax.evaluation.statistics",
        "taskvec_jax.evaluation.geometry",
    ],
    ["taskvec_jax.tasks", "taskvec_jax.prompting.backend", "taskvec_jax.prompting.checks"],
    ["taskvec_jax.prompting.tokenizer"],
    [
        "taskvec_jax.transformer.checks",
        "taskvec_jax.transformer.layers",
        "taskvec_jax.prompting.prompts",
        "taskvec_jax.distributed.sharding",
    ],
    [
        "taskvec_jax.transformer.blocks.llama",
        "taskvec_jax.transformer.blocks.pythia",
        "taskvec_jax.transformer.blocks.gptj",
        "taskvec_jax.transformer.edits",
    ],
    ["taskvec_jax.transformer.writes"],
    ["taskvec_jax.transformer.decoder"],
    [
        "taskvec_jax.vectors.task_vectors",
        "taskvec_jax.models.soundness",
        "taskvec_jax.transformer.quantization",
    ],
    ["taskvec_jax.transformer.reading", "taskvec_jax.models.batches"],
    ["taskvec_jax.transformer.generation"],
    ["taskvec_jax.models.verbs"],
    ["taskvec_jax.models.checkpoint", "taskvec_jax.models.origin"],
    ["experiments.small_pythia.training"],
    ["convert"],
    ["taskvec_jax.models.foreign"],
    ["taskvec_jax.models.loading"],
    ["taskvec_jax.distributed.plan"],
    ["convert.cli"],
    ["convert.verify", "convert.export"],
    ["convert.__main__"],
    [
        "taskvec_jax.vectors.sweep",
        "taskvec_jax.vectors.patching",
        "taskvec_jax.evaluation.vocabulary",
    ],
    ["experiments.bench.work", "taskvec_jax.vectors.learning"],
    ["taskvec_jax.evaluation.protocol"],
    ["taskvec_jax.evaluation.controls"],
    ["taskvec_jax"],
    ["taskvec_jax.__main__"],
    ["experiments"],
]
WORDS = {"tasks", "prompts", "sampling", "sentencepieces", "tokenizer"}
ARRAYS = {
    *("checks", "layers", "llama", "pythia", "gptj", "edits", "writes", "decoder"),
    *("reading", "generation", "task_vectors"),
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("taskvec_jax", "convert", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def rank(module: str) -> int:
    best = [
        (len(prefix), i)
        for i, line in enumerate(RANKS)
        for prefix in line
        if module == prefix or (prefix != "taskvec_jax" and module.startswith(prefix + "."))
    ]
    assert best, f"{module} has no rank; give it one here"
    return max(best)[1]


def test_imports_only_go_down():
    known = modules()
    for module, path in known.items():
        for name in imported(path) & known.keys():
            same_package = name.split(".")[:2] == module.split(".")[:2] or (
                name.split(".")[0] == module.split(".")[0] != "taskvec_jax"
            )
            if name == "taskvec_jax" and module.startswith("taskvec_jax."):
                continue  # `from taskvec_jax import sibling`; the sibling itself is checked
            if name in ("convert", "experiments") and same_package:
                continue
            assert same_package or rank(name) < rank(module), f"{module} imports {name}"


def test_words_know_nothing_of_arrays_and_arrays_nothing_of_words():
    for module, path in modules().items():
        parts = module.split(".")
        if parts[0] != "taskvec_jax" or len(parts) < 2:
            continue
        names = imported(path)
        if parts[1] in WORDS:
            assert not {n for n in names if n.split(".")[0] in ("jax", "flax")}, module
        if parts[1] in ARRAYS:
            assert not {n for n in names if n.split(".")[-1] in WORDS or "tokenizers" in n}, module


def test_foreign_libraries_have_one_door():
    doors: dict[str, set[str]] = {}
    for module, path in modules().items():
        for name in imported(path):
            doors.setdefault(name.split(".")[0], set()).add(module)
    assert doors["orbax"] == {"taskvec_jax.models.checkpoint"}
    assert doors["sentencepiece"] == {"taskvec_jax.prompting.sentencepieces"}
    assert doors["transformers"] == {
        "convert.tokenizers",
        "convert.verify.reference",
        "experiments.bench.torch_loop",  # the other side of the benchmark
    }
    assert all(module.split(".")[0] in ("convert", "experiments") for module in doors["absl"])
    assert {module for module in doors["torch"] if not module.startswith("convert.")} == {
        "experiments.bench.torch_loop",
        "experiments.bench.synthetic_model",  # writes torch's files
    }
    # Types alone: at run time the door goes by the place of `convert` on disk.
    library = {m for m in modules() if m.startswith("taskvec_jax")}
    assert {m for m in doors["convert"] if m in library} == {"taskvec_jax.models.foreign"}
    assert not any(
        name.startswith("experiments") for m in library for name in imported(modules()[m])
    )


def test_running_the_default_model_imports_neither_torch_nor_transformers():
    code = (
        "import sys, experiments.layer_sweep\n"
        "from taskvec_jax import load_model\n"
        "load_model('smollm2-135m-instruct')\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
