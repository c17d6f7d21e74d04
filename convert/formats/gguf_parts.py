"""A GGUF model in several files: NAME-00001-of-0000N.gguf to NAME-0000N-of-0000N.gguf.

llama.cpp's gguf-split and the `gguf` package write them. Every part says in its metadata which part
it is (`split.no`, from 0), how many there are (`split.count`) and how many tensors they hold
together (`split.tensors.count`); the first alone describes the model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError

from .gguf_file import Entry, read_header

Located = dict[str, tuple[Path, Entry]]  # tensor -> the file it is in, and where
NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
MAX_PARTS = 65_535  # split.count has 16 bits
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def read_headers(path: Path) -> tuple[list[Path], dict[str, Any], Located]:
    """Files, metadata and tensors of a model.

    Args:
      path: its file; of a split one any part. The other parts are looked for beside it.

    Raises:
      TaskVecError: a part is damaged or missing, or they are not of one model.
    """
    meta, entries = read_header(path)
    count = _number(path, meta, COUNT, 1)
    match = _PART.fullmatch(path.name)
    if count <= 1:
        if match and int(match[3]) > 1 and COUNT not in meta:
            raise TaskVecError(
                f"{path}: is a part of a split GGUF by its name ({match[3]} files), its metadata"
                f" has no {COUNT}; if the model is whole, give the file another name"
            )
        if _number(path, meta, NO, 0) or _number(path, meta, TENSORS, len(entries)) != len(entries):
            raise TaskVecError(
                f"{path}: its {NO} and {TENSORS} are those of a part of a split GGUF, its {COUNT}"
                f" is {count}; fetch the parts again"
            )
        return [path], meta, {name: (path, entry) for name, entry in entries.items()}
    if match is None or int(match[3]) != count or not 1 <= int(match[2]) <= count:
        raise TaskVecError(
            f"{path}: is a part of a split GGUF of {count} files, which are named"
            f" NAME-00001-of-{count:05d}.gguf to NAME-{count:05d}-of-{count:05d}.gguf; give it and"
            " the others these names again"
        )
    files = [path.with_name(f"{match[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        shown = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise TaskVecError(
            f"{path}: is a part of a split GGUF of {count} files, of which {shown} are not there"
            f" ({len(missing)} of {count}); put all of them beside it"
        )
    return _joined(files)


def _joined(files: list[Path]) -> tuple[list[Path], dict[str, Any], Located]:
    first: dict[str, Any] = {}
    found: Located = {}
    for number, file in enumerate(files):
        meta, entries = read_header(file)
        first = first or meta
        got = tuple(_number(file, meta, key, None) for key in (NO, COUNT, TENSORS))
        expected = (number, len(files), first[TENSORS])
        if got != expected:
            raise _mixed(file, f"{NO}, {COUNT} and {TENSORS} are {got}, expected {expected}")
        same = meta.keys() & first.keys() - {NO}
        if differs := sorted(key for key in same if meta[key] != first[key]):
            raise _mixed(file, f"{differs[0]} is not what {files[0].name} says")
        if twice := sorted(entries.keys() & found.keys()):
            raise _mixed(file, f"tensor {twice[0]} is in {found[twice[0]][0].name} too")
        found |= {name: (file, entry) for name, entry in entries.items()}
    if len(found) != first[TENSORS]:
        raise _mixed(files[0], f"the parts hold {len(found)} tensors, {TENSORS} {first[TENSORS]}")
    return files, first, found


def _mixed(file: Path, what: str) -> TaskVecError:
    return TaskVecError(
        f"{file}: is a part of a split GGUF that does not fit the others: {what}; fetch all parts"
        " again"
    )


def _number(path: Path, meta: dict[str, Any], key: str, default: int | None) -> int:
    """A whole number of the metadata; without a default it must be there."""
    value = meta.get(key, default)
    if type(value) is not int or value < 0 or (key != TENSORS and value > MAX_PARTS):
        raise TaskVecError(
            f"{path}: is a part of a split GGUF whose {key} is {str(value)[:80]!r}; allowed: a"
            " whole number. Fetch it again"
        )
    return value
