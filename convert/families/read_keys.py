"""The keys of a config.json that transformers reads, found in its source.

    python -m convert.families.read_keys            rewrites config_keys.py
    python -m convert.families.read_keys qwen2      prints what `Family.model_types` says of qwen2

config_keys.py holds the keys that transformers reads for every model. What it reads for one
`model_type` alone stands in that family's record. A test compares both with the installed release.

The installed transformers is read as source text and never imported. What counts as reading a key
of config.json:

- a field of the family's configuration class or of its base class, or a name in its attribute_map;
- `config.KEY`, `config["KEY"]`, `config.get("KEY")`, `getattr(config, "KEY")`, `"KEY" in config`,
  where config is what the code calls a configuration (`self` inside a configuration class), also
  where the name comes from a literal list that a loop runs over;
- `kwargs` in the methods of a configuration class that are handed what no field has taken.

The keys of every model are those read in the modules that all models share: the base configuration,
loading, layers, masks, rotary embeddings, caches, the automatic classes and quantization. Those of
one `model_type` are read in its configuration and model files. Code that only writes configurations
is left out, and so is generation, which this project does not use. Finding too many keys does no
harm: a key in the table that this project neither uses nor knows to be neutral is refused.

Time: seconds.
"""

# Long because: every way in which transformers reads a key is recognised here.

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from taskvec_jax.printing import until_nobody_reads

from . import HF_FAMILIES

SHARED = (
    "configuration_utils.py",
    "modeling_rope_utils.py",
    "modeling_utils.py",
    "modeling_layers.py",
    "masking_utils.py",
    "cache_utils.py",
    "fusion_mapping.py",
    "integrations/heterogeneity/configuration_utils.py",
    "integrations/sdpa_attention.py",
    "models/auto/auto_factory.py",
    "models/auto/configuration_auto.py",
    "quantizers/auto.py",
    "utils/generic.py",
    "utils/output_capturing.py",
)
OUT = Path(__file__).parent / "config_keys.py"

_CONFIGS = {"config", "config_dict", "model_config", "layer_config", "effective_config"}
_ROPES = {"rope_parameters", "rope_parameters_dict"}
_WRITERS = {"to_dict", "to_diff_dict", "save_pretrained", "dict_dtype_to_str"}
_GETTERS = {"get", "pop", "setdefault"} | {  # the latter of configurations that vary by layer
    f"_{word}attr_without_heterogeneous_validation" for word in ("get", "has")
}
_TAKES_KEYS = {"__init__", "__post_init__", "convert_rope_params_to_dict"}
_UNRELATED = ("MTP", "Mtp", "SequenceClassification", "QuestionAnswering", "TokenClassification")


def transformers_directory() -> Path:
    """Where the source of the installed transformers lies; nothing of it is imported."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


class _Reader(ast.NodeVisitor):
    """Collects the keys that one file reads from a configuration.

    Attributes:
      keys: of the configuration.
      rope_keys: inside rope_parameters, by the function that reads them.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.rope_keys: dict[str, set[str]] = {}
        self._in_config_class = False
        self._functions: list[str] = []
        self._lists: dict[str, set[str]] = {}  # variable -> the literal strings it runs over

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if any(word in node.name for word in _UNRELATED):
            return
        before = self._in_config_class
        self._in_config_class = node.name.endswith(("Config", "ConfigMixin"))
        if self._in_config_class:
            self.keys |= set(_fields(node))
        self.generic_visit(node)
        self._in_config_class = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in _WRITERS:
            return
        before, self._lists = self._lists, {**self._lists, **_literal_lists(node)}
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()
        self._lists = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load) and self._is_config(node.value):
            self.keys.add(node.attr)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Load):
            self._add(node.value, node.slice)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if isinstance(node.ops[0], (ast.In, ast.NotIn)):
            self._add(node.comparators[0], node.left)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function, arguments = node.func, node.args
        if isinstance(function, ast.Attribute) and self._is_config(function.value):
            if function.attr in _GETTERS and arguments:
                self._add(function.value, arguments[0])
            self.visit(function.value)  # a method is no key
            for argument in (*arguments, *(keyword.value for keyword in node.keywords)):
                self.visit(argument)
            return
        if isinstance(function, ast.Attribute) and arguments and function.attr in _GETTERS:
            self._add(function.value, arguments[0])
        if isinstance(function, ast.Name) and function.id in ("getattr", "hasattr"):
            self._add(arguments[0], arguments[1])
        self.generic_visit(node)

    def _add(self, holder: ast.expr, key: ast.expr) -> None:
        names = self._names(key)
        if self._is_config(holder) or self._is_kwargs(holder):
            self.keys |= names
        elif _last(holder) in _ROPES or (
            isinstance(holder, ast.Subscript) and _last(holder.value) in _ROPES
        ):
            where = self._functions[-1] if self._functions else ""
            self.rope_keys.setdefault(where, set()).update(names)

    def _names(self, key: ast.expr) -> set[str]:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return {key.value}
        return self._lists.get(key.id, set()) if isinstance(key, ast.Name) else set()

    def _is_config(self, node: ast.expr) -> bool:
        """Whether an expression stands for the configuration of the model."""
        if isinstance(node, ast.Call):  # config.get_text_config()
            return isinstance(node.func, ast.Attribute) and self._is_config(node.func.value)
        if isinstance(node, ast.Subscript):  # config.per_layer_config[layer]
            return _last(node.value) == "per_layer_config"
        if isinstance(node, ast.Name) and node.id == "self":
            return self._in_config_class
        return _last(node) in _CONFIGS

    def _is_kwargs(self, node: ast.expr) -> bool:
        given = isinstance(node, ast.Name) and node.id == "kwargs"
        return given and self._in_config_class and bool({*self._functions} & _TAKES_KEYS)


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr.removeprefix("_")
    return node.id if isinstance(node, ast.Name) else ""


def _strings(node: ast.expr) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Annotated fields, and the other names that attribute_map gives them."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            if "ClassVar" not in ast.unparse(line.annotation):
                yield line.target.id
        elif isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "attribute_map":
            yield from _strings(line.value)


def _literal_lists(function: ast.FunctionDef) -> dict[str, set[str]]:
    """Loop variables that run over strings written in the function, and those strings."""
    lists: dict[str, set[str]] = {}

    def strings(node: ast.expr) -> set[str]:
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        return set(_strings(node)).union(*(lists.get(name, set()) for name in names))

    parts = list(ast.walk(function))
    for part in parts:
        if isinstance(part, ast.Assign) and isinstance(
            part.value, (ast.List, ast.Tuple, ast.BinOp)
        ):
            for target in part.targets:
                if isinstance(target, ast.Name):
                    lists[target.id] = lists.get(target.id, set()) | strings(part.value)
    loops: dict[str, set[str]] = {}
    for part in parts:
        if isinstance(part, ast.For) and isinstance(part.target, ast.Name):
            loops[part.target.id] = loops.get(part.target.id, set()) | strings(part.iter)
    return loops


@functools.cache
def _read(path: Path) -> _Reader:
    reader = _Reader()
    reader.visit(ast.parse(path.read_text(encoding="utf-8")))
    reader.keys = {key for key in reader.keys if not key.startswith("__")}
    return reader


def common_keys() -> set[str]:
    """The keys of config.json that transformers reads for every model."""
    root = transformers_directory()
    return set().union(*(_read(root / name).keys for name in SHARED))


def own_keys(model_type: str) -> str:
    """The keys that transformers reads for one `model_type` and not for every one, in order.

    Raises:
      FileNotFoundError: the installed transformers has no such model.
    """
    found = set().union(*(_read(path).keys for path in _own_files(model_type)))
    return " ".join(sorted(found - common_keys()))


def _own_files(model_type: str) -> list[Path]:
    name = model_type.removesuffix("_text")  # gemma3_text lies in gemma3/
    directory = transformers_directory() / "models" / name
    return [directory / f"{kind}_{name}.py" for kind in ("configuration", "modeling")]


def rope_keys() -> dict[str, set[str]]:
    """rope_type -> the keys inside rope_parameters that its frequencies are made of.

    "" stands for those of every type, which the configuration itself reads. The frequencies of the
    default type are made in the models' own files.
    """
    shared = _read(transformers_directory() / "modeling_rope_utils.py").rope_keys
    own = [_read(path).rope_keys for kind in HF_FAMILIES for path in _own_files(kind)]
    return {
        "": shared["standardize_rope_params"] | shared["convert_rope_params_to_dict"],
        "default": set().union(*(keys.get("compute_default_rope_parameters", ()) for keys in own)),
        "linear": shared["_compute_linear_scaling_rope_parameters"],
        "llama3": shared["_compute_llama3_parameters"],
        "yarn": shared["_compute_yarn_parameters"],
        "dynamic": shared["_compute_dynamic_ntk_parameters"],
        "longrope": shared["_compute_longrope_parameters"],
    }


def text() -> str:
    """The module config_keys.py, for the transformers that is installed."""
    lines = [
        '"""Keys of a config.json that transformers reads for all models; made by read_keys.py."""',
        "",
        f'TRANSFORMERS = "{importlib.metadata.version("transformers")}"  # the release that does',
        "",
        "COMMON = frozenset(",
        '    """',
        textwrap.indent(_filled(common_keys()), "    "),
        '    """.split()',
        ")",
        'ROPE_READ: dict[str, frozenset[str]] = {  # rope_type -> keys; "": all types',
    ]
    for kind, keys in rope_keys().items():
        words = "".join(f'            "{key}",\n' for key in sorted(keys))
        lines.append(f'    "{kind}": frozenset(\n        (\n{words}        )\n    ),')
    return "\n".join([*lines, "}", ""])


def _filled(words: set[str]) -> str:
    return textwrap.fill(" ".join(sorted(words)), 94, break_on_hyphens=False)


def main() -> None:
    """Writes the table, or prints the own keys of the `model_type`s given.

    Raises:
      SystemExit: 2, with one line, if the installed transformers has no such `model_type`.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    for model_type in sys.argv[1:]:
        try:
            print(f"{model_type}: {own_keys(model_type)}")
        except FileNotFoundError:
            print(
                f"error: {model_type!r} is no model_type of the installed transformers; give one,"
                " such as qwen2, or none to rewrite config_keys.py",
                file=sys.stderr,
            )
            sys.exit(2)
    if not sys.argv[1:]:
        OUT.write_text(text(), encoding="utf-8")
        print(f"wrote {OUT}")


if __name__ == "__main__":
    with until_nobody_reads():
        main()
