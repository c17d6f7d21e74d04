"""Thousands of damaged files: each is refused, or is exactly what other readers read."""

from __future__ import annotations

import io
import random
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import hf
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from test_convert_gguf import write_llama

from convert import convert, open_model
from taskvec_jax.decoder import Params, flatten
from taskvec_jax.errors import TaskVecError

FILES = 1500  # of each format
SECONDS = 60.0  # for them together
MEMORY = 400e6  # bytes more than before
NUMBERS = [0, 1, 2, 3, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]

Mutation = Callable[[random.Random, bytearray, int], None]  # (rng, file, length of the header)


def flip(rng: random.Random, data: bytearray, head: int) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(min(head, len(data)))] = rng.randrange(256)


def flip_bits(rng: random.Random, data: bytearray, head: int) -> None:
    data[rng.randrange(min(head, len(data)))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, data: bytearray, head: int) -> None:
    del data[rng.choice([rng.randrange(head), rng.randrange(len(data))]) :]


def append(rng: random.Random, data: bytearray, head: int) -> None:
    del head
    data += rng.randbytes(rng.choice([1, 8, 1000]))


def cut_out(rng: random.Random, data: bytearray, head: int) -> None:
    start = rng.randrange(head)
    del data[start : start + rng.choice([1, 4, 8, 100])]


def repeat(rng: random.Random, data: bytearray, head: int) -> None:
    start = rng.randrange(head)
    data[start:start] = data[start : start + rng.choice([1, 8, 64, 500])]


def write_number(rng: random.Random, data: bytearray, head: int) -> None:
    start, size = rng.randrange(head), rng.choice([4, 8])
    number = rng.choice(NUMBERS) & (1 << 8 * size) - 1
    data[start : start + size] = number.to_bytes(size, "little")


def change_digit(rng: random.Random, data: bytearray, head: int) -> None:
    digits = [i for i in range(8, head) if 48 <= data[i] < 58]
    if digits:
        data[rng.choice(digits)] = rng.choice(b'0123456789-.e"[{,')


def exchange(rng: random.Random, data: bytearray, head: int) -> None:
    a, b, n = rng.randrange(head), rng.randrange(head), rng.choice([1, 8, 40])
    one, two = data[a : a + n], data[b : b + n]
    if len(one) == len(two) == n and abs(a - b) >= n:
        data[a : a + n], data[b : b + n] = two, one


def poison(rng: random.Random, data: bytearray, head: int) -> None:
    """Not a number, somewhere in the weights."""
    start = head + (rng.randrange(len(data) - head - 8) & ~3)
    data[start : start + 8] = b"\xff" * 8


MUTATIONS: list[Mutation] = [
    flip, flip_bits, truncate, append, cut_out, repeat, write_number, change_digit, exchange,
    poison,
]  # fmt: skip


def refused(load: Callable[[], object]) -> bool:
    """Whether a load ends in one clear line; anything else it raises is a bug."""
    try:
        load()
    except TaskVecError as error:
        message = str(error)
        assert message.strip()
        assert len(message) < 20_000
        return True
    return False


def fuzz(
    path: Path,
    head: int,
    load: Callable[[], object],
    check: Callable[[], None],
    part: bytes = b"",
    whole: Callable[[bytes], bytes] = bytes,
) -> None:
    """Damages a file, mostly its head; or a part of it, of which `whole` makes the file again."""
    original = path.read_bytes()
    load()
    rng = random.Random(2026)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for i in range(FILES):
        data = bytearray(part or original)
        MUTATIONS[i % len(MUTATIONS)](rng, data, head)
        path.write_bytes(whole(bytes(data)))
        if not refused(load):
            loaded += 1
            check()
    assert time.monotonic() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert loaded < FILES // 3
    path.write_bytes(original)
    load()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = hf.llama(vocab_size=31, hidden_size=12, head_dim=4, intermediate_size=17)
    return hf.save(hf.random_model(config), tmp_path / "hf")


def test_a_thousand_damaged_safetensors_files(model: Path) -> None:
    path = model / "model.safetensors"
    head = 8 + int.from_bytes(path.read_bytes()[:8], "little")

    def check() -> None:
        expected = safetensors.numpy.load_file(path)  # its own reader accepts it too
        source = open_model(model, None).source
        assert source.shapes().keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(source.read(name), value)

    fuzz(path, head, lambda: convert(model, "float32"), check)


def test_a_thousand_damaged_gguf_files(tmp_path: Path) -> None:
    config = hf.llama(vocab_size=31, hidden_size=12, head_dim=4, intermediate_size=17)
    path = write_llama(hf.random_model(config), tmp_path / "m.gguf")
    head = min(int(t.data_offset) for t in gguf.GGUFReader(path).tensors)

    def check() -> None:
        source = open_model(path, None).source
        expected = {t.name: t for t in gguf.GGUFReader(path).tensors}
        assert source.shapes().keys() == expected.keys()
        for name, tensor in expected.items():
            value = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(source.read(name), value.reshape(source.shapes()[name]))

    fuzz(path, head, lambda: convert(path, "float32"), check)


@pytest.mark.parametrize("where", ["pickle", "zip"])
def test_a_thousand_damaged_torch_files(model: Path, where: str) -> None:
    """In the pickle, with the zip's checksums right again; and in the zip's list of records."""
    path = model / "pytorch_model.bin"
    saved = safetensors.torch.load_file(model / "model.safetensors")
    torch.save(saved, path)
    (model / "model.safetensors").unlink()
    original = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
        listed = archive.start_dir

    def check() -> None:
        # Where the list of records is damaged, torch refuses some that say the same, and reads
        # other numbers from some: it reckons where they lie. What was saved is what is there.
        expected = torch.load(path, "cpu", weights_only=True) if where == "pickle" else saved
        source = open_model(model, None).source
        assert source.shapes().keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(source.read(name), value.numpy())

    def rebuilt(pickled: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, pickled if name.endswith("data.pkl") else content)
        return buffer.getvalue()

    parts = {
        "pickle": (next(v for name, v in records.items() if name.endswith("data.pkl")), rebuilt),
        "zip": (original[listed:], lambda part: original[:listed] + part),
    }
    part, whole = parts[where]
    fuzz(path, len(part) - 10, lambda: convert(model, "float32"), check, part, whole)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_hundreds_of_damaged_json_files(model: Path, name: str) -> None:
    path = model / name
    if not path.exists():  # an index over the one file there is
        names = open_model(model, None).source.shapes()
        index = ", ".join(f'"{tensor}": "model.safetensors"' for tensor in names)
        path.write_text(f'{{"weight_map": {{{index}}}}}')
    original = path.read_bytes()
    whole = flatten(convert(model, "float32").params)
    rng = random.Random(7)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(120):
        data = bytearray(original)
        MUTATIONS[i % (len(MUTATIONS) - 1)](rng, data, len(data))
        path.write_bytes(data)
        loaded: list[Params] = []
        if not refused(lambda loaded=loaded: loaded.append(convert(model, "float32").params)):
            # A number of a config may have become another one; the weights are what they were.
            for name, leaf in flatten(loaded[0]).items():
                np.testing.assert_array_equal(leaf, whole[name])
    assert time.monotonic() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
