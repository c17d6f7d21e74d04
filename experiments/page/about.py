"""What every figure and the top of the page say of a run: model, weights, n, seed, rule, date.

Also the names that are shown: of models without directories of this machine, of tasks without
their category.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from taskvec_jax.models.names import HUB_NAME
from taskvec_jax.models.registry import NAMED_MODELS, JoinedFile, WheelFile

RULES = {"full": "whole answers", "paper": "first tokens"}
# Of a GGUF file's name: `model.Q4_1.gguf`, `model-IQ2_XS.gguf`, `model-f16.gguf`.
GGUF_KIND = re.compile(r"[.-]((?:I?Q\d\w*)|(?:BF16|F16|F32))\.gguf$", re.IGNORECASE)
ABSOLUTE = re.compile(r"(?<![\w./~-])(?:~|[A-Za-z]:)?(?:[/\\][^\s,;'\"()=/\\]+)+[/\\]?")


def model_name(name: str) -> str:
    """A model's name; of a path its last part, so that no page shows a machine's directories."""
    if HUB_NAME.fullmatch(name) or not re.search(r"[/\\]", name):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def without_directories(text: str) -> str:
    """A text in which every absolute path is its last part alone."""

    def last(found: re.Match[str]) -> str:
        return re.split(r"[/\\]", found[0].rstrip("/\\"))[-1]

    return ABSOLUTE.sub(last, text)


def begun(sentence: str) -> str:
    """A sentence with a capital, where it begins with a word and not with `smollm2-135m`."""
    first = sentence.partition(" ")[0]
    return sentence[:1].upper() + sentence[1:] if first.isalpha() else sentence


def tell_apart(paths: Sequence[PurePath]) -> list[PurePath]:
    """Of each path as many last parts as tell it from the others."""
    for count in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        found = [PurePath(*path.parts[-count:]) for path in paths]
        if len(set(found)) == len(set(paths)):
            return found
    return list(paths)


def weights(result: Mapping[str, Any]) -> str:
    """How the weights are held, and in which form they were read: `float32, from Q4_1 GGUF`."""
    about = result.get("provenance") or {}
    dtype = result.get("dtype") or about.get("dtype") or "dtype not recorded"
    quantization = result.get("quantization") or about.get("quantization") or "none"
    if quantization == "none":
        quantization = "not quantized"
    kind = _file_kind(result)
    if kind and quantization == "not quantized":
        return f"{kind} weights computed in {dtype}"
    return ", ".join(filter(None, (dtype, quantization, kind and f"read from {kind}")))


def _file_kind(result: Mapping[str, Any]) -> str:
    """The quantization of the GGUF file that the weights were read from; "" if it was none."""
    name = str(result.get("model", ""))
    source = NAMED_MODELS[name].source if name in NAMED_MODELS else None
    if isinstance(source, WheelFile):
        name = source.member
    elif isinstance(source, JoinedFile):
        name = source.name
    found = GGUF_KIND.search(name)
    return found[1].upper() if found else ""


def _setting(result: Mapping[str, Any], key: str) -> Any:
    """A setting of the experiment, or else of its run; None where neither is recorded."""
    return (result.get("settings") or {}).get(key, (result.get("run") or {}).get(key))


def facts(result: Mapping[str, Any]) -> dict[str, str]:
    """What tells a reader which run a result is of, by name; what is not recorded is missing."""
    about = result.get("provenance") or {}
    found = {"model": model_name(str(result["model"])), "weights": weights(result)}
    if (count := _setting(result, "num_prompts")) is not None:
        found["n"] = f"{count} test prompts a task"
    if (count := _setting(result, "num_demonstrations")) is not None:
        found["demonstrations"] = str(count)
    seed = about.get("seed", _setting(result, "seed"))
    if seed is not None:
        found["seed"] = str(seed)
    if rule := result.get("scored_by") or _setting(result, "rule"):
        found["rule"] = RULES.get(rule, str(rule))
    if date := about.get("date"):
        found["date"] = date
    if commit := about.get("commit"):
        found["commit"] = commit
    return found


def stamp(result: Mapping[str, Any]) -> str:
    """One line for the corner of a figure."""
    if "models" in result and "model" not in result:  # of several runs
        return _stamp_of_several(result["models"])
    found = facts(result)
    n = _setting(result, "num_prompts")
    parts = [
        found["model"],
        found["weights"],
        f"n = {n} prompts a task" if n is not None else "",
        f"seed {found['seed']}" if "seed" in found else "",
        f"rule: {found['rule']}" if "rule" in found else "",
        found.get("date", ""),
    ]
    return " · ".join(filter(None, parts))


def _stamp_of_several(models: Mapping[str, Any]) -> str:
    ours = [model for model in models.values() if model["ours"]]

    def each(values: Iterable[str]) -> str:
        return " and ".join(dict.fromkeys(filter(None, values)))

    parts = [
        each(model_name(str(model["run"]["model"])) for model in ours),
        each(weights(model["run"]) for model in ours),
    ]
    for key, title in (("num_prompts", "n ="), ("seed", "seed"), ("rule", "rule:")):
        values = [model["run"][key] for model in ours if key in model["run"]]
        if shown := each(RULES.get(value, str(value)) for value in values):
            parts.append(f"{title} {shown}")
    return " · ".join(filter(None, (*parts, each(model.get("date") or "" for model in ours))))


def task_titles(categories: Mapping[str, str]) -> dict[str, str]:
    """The name that each task is shown by: without its category, in words, unlike any other's.

    Args:
      categories: task -> category.
    """
    found = {
        name: name.removeprefix(f"{category}_").replace("_", " ")
        for name, category in categories.items()
    }
    shown = list(found.values())
    return {
        name: title if shown.count(title) == 1 else f"{title} ({categories[name]})"
        for name, title in found.items()
    }


def titles_of(result: Mapping[str, Any]) -> dict[str, str]:
    """`task_titles` of a result; tasks that it does not name with a category, as they are."""
    return _Titles(task_titles(result.get("categories") or {}))


class _Titles(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name.replace("_", " ")
