# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""Results as flat records, so that `pandas.DataFrame(result.records())` is a table.

>>> result = Result(experiment="x", tasks={"a": {"icl": {"accuracy": 1.0}, "by_layer": [0.5, 0.0]}})
>>> result.records()  # one for each task: its numbers, in one level
[{'experiment': 'x', 'task': 'a', 'icl.accuracy': 1.0}]
>>> result.lists()
['by_layer']
>>> result.records("by_layer")[1]
{'experiment': 'x', 'task': 'a', 'layer': 1, 'value': 0.0}

Nested names are joined with a dot: `task_vector.accuracy`, `controls.random.low`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.narrowing import is_list, is_mapping, is_series

FRAME = ("experiment", "model", "revision", "dtype", "quantization")  # of a result file
RUN = (
    "seed",
    "num_prompts",
    "num_demonstrations",
    "num_dummy_queries",
    "rule",
    "filter",
    "template",
)
ABOUT = {*FRAME, "weights_sha256", "run", "settings", "provenance", "categories", "vectors", "data"}
# What a result is a collection of -> what one of them is called.
COLLECTIONS = {"tasks": "task", "pairs": "pair", "steps": "step", "models": "model"}


class Result(dict[str, Any]):
    """The content of a result file, as a dict that can be asked for records."""

    def records(self, of: str | None = None) -> list[dict[str, Any]]:
        """Flat dicts: the run, what the record is of, and its numbers.

        Args:
          of: None: one record for each task (or pair of tasks, step, model) with all that is not a
            list. Else the name of a list (see `lists`): one for each of its items, numbered by
            `layer` or `index`.

        Raises:
          TaskVecError: there is no such list; it says which there are.
        """
        frame = {name: self[name] for name in FRAME if name in self}
        run = self.get("run", {})
        frame |= {name: run[name] for name in RUN if name in run}
        categories = self.get("categories", {})
        found: list[dict[str, Any]] = []
        for key, entry in self._entries():
            whose = dict(key)
            if whose.get("task") in categories:
                whose["category"] = categories[whose["task"]]
            rows = [flat(entry)] if of is None else items(entry, of)
            found += [frame | whose | row for row in rows]
        if of is not None and not found:
            found = [frame | row for row in items(self, of)]
        if of is not None and not found:
            raise TaskVecError(
                f"there is no list {of!r} in this result; allowed: {', '.join(self.lists())}"
            )
        return found

    def lists(self) -> list[str]:
        """The names of the lists that `records` can be asked for."""
        names: dict[str, None] = {}
        for _, entry in self._entries():
            names |= dict.fromkeys(list_names(entry))
        own = {k: v for k, v in self.items() if k not in ABOUT and k not in COLLECTIONS}
        return list(names | dict.fromkeys(list_names(own)))

    def _entries(self) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
        """What the result is a collection of; the result itself if of nothing."""
        for name, one in COLLECTIONS.items():
            several = self.get(name)
            if is_mapping(several) and several:
                yield from (({one: key}, entry) for key, entry in several.items())
                return
            if is_list(several) and several and is_mapping(several[0]):
                entries: list[Mapping[str, Any]] = several
                yield from (({one: entry.get(one)}, entry) for entry in entries)
                return
        yield {}, {k: v for k, v in self.items() if k not in ABOUT}


def load_result(path: str | Path) -> Result:
    """A result file of an experiment.

    Raises:
      TaskVecError: it cannot be read, or is no result.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskVecError(f"{path}: cannot be read as a result ({first_line(error)})") from None
    if not is_mapping(content) or "experiment" not in content:
        raise TaskVecError(f"{path}: no result of an experiment; it names none")
    return Result(content)


def flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All that is not in a list, in one level."""
    found: dict[str, Any] = {}
    for key, value in entry.items():
        if is_mapping(value):
            found |= flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list | tuple):
            found[f"{prefix}{key}"] = value
    return found


def list_names(entry: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the lists of an entry that are not empty."""
    found: list[str] = []
    for key, value in entry.items():
        if is_mapping(value):
            found += list_names(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value:
            found.append(f"{prefix}{key}")
    return found


def items(entry: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The items of a list of an entry, numbered; none if there is no such list."""
    values: Any = entry
    for part in name.split("."):
        values = values.get(part) if is_mapping(values) else None
    if not is_series(values):
        return []
    layers = entry.get("layers")
    known = is_list(layers) and len(layers) == len(values) and name != "layers"
    axis = "layer" if known or "by_layer" in name else "index"
    numbers: Any = layers if known else range(len(values))
    numbered = zip(numbers, values, strict=True)
    return [row for at, value in numbered for row in _rows(value, {axis: at})]


def _rows(value: Any, where: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of one item: of a list in it, one for each of its own items."""
    if is_mapping(value):
        return [where | flat(value)]
    if is_series(value):
        name = f"index{len(where) + 1}"
        return [row for at, item in enumerate(value) for row in _rows(item, {**where, name: at})]
    return [{**where, "value": value}]
