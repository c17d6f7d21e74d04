"""Hostile headers: lengths, ranges and counts that a file cannot hold are refused at once."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convert.formats import gguf_file, safetensors_file
from taskvec_jax.errors import TaskVecError


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 5.0


def safetensors_bytes(header: Any, data: bytes = b"\0" * 32, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: Any, stop: Any, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_an_honest_safetensors_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(safetensors_bytes({"a": tensor(0, 16), "b": tensor(16, 32, (2, 2))}))
    assert {name: e.shape for name, e in safetensors_file.read_header(path).items()} == {
        "a": (4,),
        "b": (2, 2),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a header of"),
        (b"\1\0", "a header of"),
        (safetensors_bytes({}, length=2**63), "a header of 9223372036854775808 bytes"),
        (safetensors_bytes({}, length=10**8 + 1), "a header of 100000001 bytes"),
        (safetensors_bytes({"a": tensor(0, 16), "b": tensor(8, 24)}, b"\0" * 24), "starts at"),
        (safetensors_bytes({"a": tensor(0, 16), "b": tensor(16, 32)}, b"\0" * 40), "describes"),
        (safetensors_bytes({"a": tensor(0, 16)}), "describes"),
        (safetensors_bytes({"a": tensor(16, 32)}), "starts at byte 16"),
        (safetensors_bytes({"a": tensor(0, 32, (2**40, 2**40))}), "has 32 bytes"),
        (safetensors_bytes({"a": tensor(0, 32, (-1, -8))}), "has shape"),
        (safetensors_bytes({"a": tensor(-16, 16)}), "has shape"),
        (safetensors_bytes({"a": tensor(0, 1e9)}), "has shape"),
        (safetensors_bytes({"a": tensor(0, 32, (True, 8))}), "has shape"),
        (safetensors_bytes({"a": tensor(0, 32, (8,), "F8_E4M3")}), "dtype 'F8_E4M3'"),
        (safetensors_bytes({"a": tensor(0, 32, (8,), ["F32"])}), "dtype"),
        (safetensors_bytes({"a": {"dtype": "F32"}}), "not described by"),
        (safetensors_bytes([1, 2]), "not an object"),
        (safetensors_bytes(b"[" * 100_000), "not a whole safetensors file"),
        (safetensors_bytes(b'{"a": 1' + b"9" * 5000 + b"}"), "not a whole safetensors file"),
        (safetensors_bytes(b'{"a": {}, "a": {}}'), "'a' is listed twice"),
        (safetensors_bytes(b"\xff\xfe{}"), "not a whole safetensors file"),
    ],
)  # fmt: skip
def test_hostile_safetensors_headers_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(TaskVecError, match=message):
        safetensors_file.read_header(path)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf_bytes(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: list[bytes] | None = None,
    num_tensors: int | None = None,
    values: list[bytes] | None = None,
    num_values: int | None = None,
    data: bytes = b"\0" * 64,
) -> bytes:
    tensors, values = tensors or [], values or []
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(values) if num_values is None else num_values,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(values) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def info(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    packed = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return text(name) + packed


def value(key: bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def test_an_honest_gguf_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(
        gguf_bytes(
            tensors=[info(b"a", (4, 2)), info(b"b", (8,), offset=32)],
            values=[value(b"k", 8, text(b"v")), value(b"l", 9, struct.pack("<IQ2i", 5, 2, -1, 7))],
        )
    )
    meta, entries = gguf_file.read_header(path)
    assert meta == {"k": "v", "l": [-1, 7]}
    assert {name: entry.shape for name, entry in entries.items()} == {"a": (2, 4), "b": (8,)}


HUGE = 2**63


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with GGUF; give a .gguf file"),
        (gguf_bytes(magic=b"GGML"), "does not begin with GGUF"),
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(version=3 << 24), "little endian"),
        (gguf_bytes(num_tensors=HUGE), "9223372036854775808 tensors"),
        (gguf_bytes(num_values=HUGE), "9223372036854775808 values"),
        (gguf_bytes(values=[struct.pack("<Q", HUGE)]), "a length of 9223372036854775808 bytes"),
        (gguf_bytes(values=[value(b"k", 8, struct.pack("<Q", HUGE))]), "a length of"),
        (gguf_bytes(values=[value(b"k", 9, struct.pack("<IQ", 8, HUGE))]), "strings where"),
        (gguf_bytes(values=[value(b"k", 9, struct.pack("<IQ", 4, HUGE))]), "a length of"),
        (gguf_bytes(values=[value(b"k", 9, struct.pack("<IQ", 9, 1))]), "unknown type 9"),
        (gguf_bytes(values=[value(b"k", 77, b"")]), "unknown type 77"),
        (gguf_bytes(values=[value(b"k", 4, b"\1\0\0\0")] * 2), "'k' is listed twice"),
        (gguf_bytes(values=[value(b"\xff", 4, b"\1\0\0\0")]), "not a whole GGUF file"),
        (gguf_bytes(values=[value(b"general.alignment", 4, b"\0\0\0\0")]), "alignment 0"),
        (gguf_bytes(tensors=[info(b"a", (4,) * 5)]), "has 5 axes"),
        (gguf_bytes(tensors=[info(b"a", (0,))]), "cannot be F32"),
        (gguf_bytes(tensors=[info(b"a", (2**62, 4))]), "lies at 0"),
        (gguf_bytes(tensors=[info(b"a", (2**32, 2**32))]), "lies at 0"),
        (gguf_bytes(tensors=[info(b"a", (33,), kind=8)]), "cannot be Q8_0"),
        (gguf_bytes(tensors=[info(b"a", (4,), kind=999)]), "999 is not a valid"),
        (gguf_bytes(tensors=[info(b"a", (4,), offset=HUGE)]), "lies at"),
        (gguf_bytes(tensors=[info(b"a", (4,), offset=8)]), "lies at 8"),
        (gguf_bytes(tensors=[info(b"a", (16,)), info(b"b", (4,), offset=32)]), "lies at 32"),
        (gguf_bytes(tensors=[info(b"a", (4,)), info(b"a", (4,), offset=32)]), "listed twice"),
        (gguf_bytes(tensors=[info(b"a", (4,))], data=b"\0" * 15), "lies at 0"),
    ],
)
def test_hostile_gguf_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(TaskVecError, match=message):
        gguf_file.read_header(path)
