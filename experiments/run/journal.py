"""The journal: finished units of work, kept as they finish, so that no run computes one twice.

A unit is named by everything that decides its value: model, task, seed, settings, machine kind.
Its value is one line of journal.jsonl, appended and synced before the next unit starts; arrays go
to arrays/<name>.npy, written whole or not at all. kill -9 can therefore lose the unit under way
and nothing else: at most the last line is torn, and a torn line is cut off when the journal opens.
A line that was altered later, by a failing disk for example, costs its own unit, which is computed
again and appended; the lines after it are read as ever.

A line is {"crc": of the others, "unit": sha256 of what, "value": ..., "what": {...}}. An array
file has four bytes more than NumPy writes and reads: the CRC-32 of what is before them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.run.writing import told, write_whole
from taskvec_jax.distributed.processes import all_or_none, from_first_process, is_first_process
from taskvec_jax.errors import TaskVecError

What = Mapping[str, Any]
CRC_BYTES = 4
GOES_ON = "the same command goes on from here"
_START = re.compile(rb'(?=\{"crc": \d)')  # of an entry; inside one, quotes stand behind a backslash


class Journal:
    """Finished units under one directory; one process at a time may hold it.

    Attributes:
      computed: units computed by this process, rather than found.
      unreadable: lines found altered; their units are computed again.
      pause: called before a unit is computed and after it is kept, never inside one; it may end
        the process.
    """

    def __init__(self, directory: Path, pause: Callable[[], None] = lambda: None) -> None:
        self.path = directory / "journal.jsonl"
        self.computed = 0
        self.unreadable = 0
        self.pause = pause
        self._depth = 0
        self._arrays = directory / "arrays"
        with all_or_none():  # of several processes only the first one's directory is shared
            self._file = _locked(self.path)
        atexit.register(self.close)  # bad input may end the run before anything is kept
        self._values = self._load()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        """Closes it; of a run that is interrupted, says that nothing finished is lost.

        Raises:
          KeyboardInterrupt: with a message, instead of the one that came.
        """
        self.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            raise KeyboardInterrupt(GOES_ON) from None

    def close(self) -> None:
        """Lets another process have it; one that holds nothing is taken away."""
        if not self._file.closed:
            if not os.fstat(self._file.fileno()).st_size:
                self.path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # there is none, or it holds arrays
                    self._arrays.rmdir()
            self._file.close()

    def unit(self, what: What, compute: Callable[[], Any]) -> Any:
        """The value of a unit: found, or computed now and kept.

        Args:
          what: everything that decides the value, as plain JSON values.
          compute: gives plain JSON values.

        Returns:
          The value after a round trip through JSON, so that found and computed ones are alike.
        """
        name = unit_name(what)
        if name not in self._values:
            with self._in_hand():
                value = compute()
                self._append(name, what, value)
                self._values[name] = json.loads(_dump(value))
                self.computed += 1
        return self._values[name]

    def found(self, what: What) -> Any:
        """The value of a unit that is kept; None of another."""
        return self._values.get(unit_name(what))

    @contextlib.contextmanager
    def _in_hand(self) -> Iterator[None]:
        """A unit is computed; units that it needs are part of it."""
        if not self._depth:
            self.pause()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth:
            self.pause()

    def array(self, what: What, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a unit: found, or computed now and kept."""
        path = self._array_path(what)
        kept = path.read_bytes() if path.exists() else b""
        try:
            return np.load(io.BytesIO(_checked(from_first_process(kept))))
        except (OSError, ValueError, EOFError):
            with self._in_hand():
                array = compute()
                self.keep_array(what, array)
                self.computed += 1
            return array

    def kept_array(self, what: What) -> tuple[Path, np.ndarray] | None:
        """An array that is kept, and its file; None if it is not there as it was written, or kept
        by another process."""
        path = self._array_path(what)
        try:
            return path, np.load(io.BytesIO(_checked(path.read_bytes())))
        except (OSError, ValueError, EOFError):
            return None

    def keep_array(self, what: What, array: np.ndarray) -> None:
        """Keeps an array that came along with other work, for `array` to find.

        Raises:
          WriteError: the disk is full, for example.
        """
        buffer = io.BytesIO()
        np.save(buffer, array)
        data = buffer.getvalue()
        with all_or_none():  # a disk that is full in one process stops all
            with told(self._arrays):
                self._arrays.mkdir(exist_ok=True)
            write_whole(self._array_path(what), data + zlib.crc32(data).to_bytes(CRC_BYTES, "big"))

    def _array_path(self, what: What) -> Path:
        return self._arrays / f"{unit_name(what)[:32]}.npy"

    def _append(self, name: str, what: What, value: Any) -> None:
        body = {"unit": name, "what": dict(what), "value": value}
        line = _dump({**body, "crc": zlib.crc32(_dump(body).encode())}) + "\n"
        end = os.fstat(self._file.fileno()).st_size
        with all_or_none(), told(self.path):
            try:
                _write_all(self._file, line.encode())
                os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)  # what follows must not join half a line
                raise

    def _load(self) -> dict[str, Any]:
        """Reads the whole lines that are as they were written; a torn end is cut off."""
        values: dict[str, Any] = {}
        self._file.seek(0)
        # All processes must find the same units, or they would wait for one another for ever.
        content = from_first_process(self._file.read())
        end = content.rfind(b"\n") + 1
        for line in content[:end].split(b"\n"):
            # An altered newline makes one line of two entries, of which each is read alone.
            for part in _START.split(line):
                entry = _parse(part)
                if entry is not None:
                    values[entry["unit"]] = entry["value"]
                elif part.strip():
                    self.unreadable += 1
        if is_first_process():
            self._file.truncate(end)
        return values


def _locked(path: Path) -> IO[bytes]:
    """The journal's file, open and this process's own."""
    try:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (held for the life of the process)
    except OSError as error:
        raise TaskVecError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise TaskVecError(
            f"{path}: another run is writing it; wait for it, or choose another --out"
        ) from None
    return file


def unit_name(what: What) -> str:
    """sha256 of a unit's description."""
    return hashlib.sha256(_dump(dict(what)).encode()).hexdigest()


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line without its newline, or None if the line is altered."""
    try:
        entry = json.loads(line)
        crc = entry.pop("crc")
        whole = set(entry) == {"unit", "what", "value"} and zlib.crc32(_dump(entry).encode()) == crc
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return entry if whole else None


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Writes all of data to an unbuffered file, which may take a part of it only."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _checked(data: bytes) -> bytes:
    """The content of an array file without its CRC.

    Raises:
      ValueError: it is not as it was written.
    """
    content, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if zlib.crc32(content).to_bytes(CRC_BYTES, "big") != crc:
        raise ValueError("the file was altered")
    return content
