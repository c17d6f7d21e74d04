"""What a converted model was made from: recorded in its manifest, and compared later.

A converted model stands for certain files, not for a name. Its manifest says which:

    source      a path, ORG/NAME of the hub, or a requirement of a package index
    revision    of the hub, as it was asked for; "default" where nothing was
    commit      of the hub, that the revision stood for
    files       name -> {"bytes": size, "sha256": of its content}
    stat        name -> [size, mtime, ctime, inode], which spares hashing a file again
    rounded_from    dtypes of the source's tensors that the one on disk cannot hold, if any
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError

Manifest = dict[str, Any]
Record = dict[str, dict[str, Any]]  # name of a file -> its size and hash

SETTLED_SECONDS = 2.0  # a file younger than this may change again within one tick of its clock
HALF = ("float16", "bfloat16")
LONGEST_STEM = 80  # characters of a directory's name
KEY_DIGITS = 8  # hexadecimal, of a path's hash
# Beside the weights, what a conversion reads of a directory. README.md and the like are not it.
_READ = re.compile(
    r"config\.json|params\.json|adapter_.*|tokenizer.*|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\..*|merges\.txt|.*\.model|.*\.index\.json"
)


def path_key(path: str | Path) -> str:
    """A directory name that stands for a path: its last part, and a hash of all of it.

    `runA/final` and `runB/final` have two; a link has that of what it leads to.
    """
    whole = Path(path).resolve()
    stem = whole.name.removesuffix(".gguf").lstrip(".")[:LONGEST_STEM] or "model"
    return f"{stem}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:KEY_DIGITS]}"


def files_of(source: Path, weights: Iterable[Path]) -> dict[str, Path]:
    """The files that decide a model, by their path relative to its directory.

    Args:
      source: a directory, or a file that holds all of a model or its first part.
      weights: the files of tensors that a conversion reads.
    """
    base = source if source.is_dir() else source.parent
    found = set(weights)
    if source.is_dir():
        places = [source]
        if not (source / "config.json").exists():  # Meta puts the tokenizer a directory above
            places.append(source.absolute().parent)
        for i, place in enumerate(places):
            pattern = re.compile(r"tokenizer\.(json|model)") if i else _READ
            found |= {p for p in place.iterdir() if pattern.fullmatch(p.name) and p.is_file()}
    return {os.path.relpath(path, base): path for path in sorted(found)}


def stat_of(path: Path) -> list[int]:
    """What changes whenever a file's content does, as far as the file system tells.

    The time of the last change of the inode is among it, which no program can set back.
    """
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def record(files: dict[str, Path], known: Manifest | None = None) -> tuple[Record, dict[str, Any]]:
    """Size and hash of each file, and the state of those that a later call need not read again.

    Args:
      files: as from `files_of`.
      known: an earlier manifest; a file whose state is still the one recorded there has the hash
        recorded there, and is not read.

    Raises:
      TaskVecError: a file cannot be read.
    """
    known = known or {}
    made: Record = {}
    states: dict[str, Any] = {}
    for name, path in files.items():
        try:
            state = stat_of(path)
            earlier = known.get("files", {}).get(name)
            if isinstance(earlier, dict) and known.get("stat", {}).get(name) == state:
                made[name], states[name] = earlier, state
                continue
            begun = time.time()
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TaskVecError(f"{path}: cannot be read ({error.strerror})") from None
        made[name] = {"bytes": state[0], "sha256": digest}
        if max(state[1:3]) < 1e9 * (begun - SETTLED_SECONDS):
            states[name] = state
    return made, states


def is_same(files: dict[str, Path], manifest: Manifest) -> bool:
    """Whether files are, byte for byte, those that a converted model was made from.

    A manifest without hashes, of an earlier version, says of no files that they are.
    """
    recorded = manifest.get("files")
    if not isinstance(recorded, dict) or recorded.keys() != files.keys():
        return False
    if not all(isinstance(entry, dict) for entry in recorded.values()):
        return False
    if any(path.stat().st_size != recorded[name].get("bytes") for name, path in files.items()):
        return False  # nothing need be read to know
    return record(files, manifest)[0] == recorded


def check_unchanged(files: dict[str, Path], before: dict[str, list[int]]) -> None:
    """Refuses files that were written to while they were read.

    Args:
      before: `stat_of` each, taken before the first of them was read.

    Raises:
      TaskVecError: it names the file.
    """
    for name, path in files.items():
        if not path.exists() or stat_of(path) != before[name]:
            raise TaskVecError(f"{path}: changed while it was read; convert again when it is whole")


def rounded_from(source: Iterable[str], stored: str) -> list[str]:
    """The dtypes of a source's tensors whose numbers lose something in the dtype `stored`.

    Half precision holds its own numbers only; float32 is taken as enough for all.
    """
    if stored not in HALF:
        return []
    return sorted({kind for kind in source if "float" in kind} - {stored})


def told(manifest: Manifest) -> dict[str, Any]:
    """Where a model comes from, in the words of its manifest, for results."""
    keys = ("source", "revision", "commit", "file_sha256")
    return {key: manifest[key] for key in keys if key in manifest}


def say(manifest: Manifest) -> str:
    """The same for people."""
    source = manifest.get("source", "an unknown source")
    revision = manifest.get("revision", "default")
    return f"{source}" + ("" if revision == "default" else f" at revision {revision}")
