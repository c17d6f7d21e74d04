"""Thousands of damaged files: each is refused, or is exactly what other readers read.

TASKVEC_FUZZ_SEEDS="3 4 5" adds seeds, TASKVEC_FUZZ_FILES=2600 draws more files of each kind, and so
does TASKVEC_SLOW_TESTS=1.
"""

# Long because: every kind of file has its own way to be damaged.

from __future__ import annotations

import io
import json
import os
import random
import resource
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import hf
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import sentencepiece
import tokenizers
import torch
from slow import SLOW
from test_convert_gguf import write_llama
from test_convert_sources import split_gguf

from convert import convert, open_model
from convert.families.rules import Source
from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.decoder import flatten

SEEDS = [2026, 7, *map(int, os.environ.get("TASKVEC_FUZZ_SEEDS", "").split())]
FILES = int(os.environ.get("TASKVEC_FUZZ_FILES", "1000" if SLOW else "200"))  # of a kind and seed
SMALL_FILES = max(40, FILES // 5)  # of each kind that takes longer to read
SECONDS_A_FILE = 0.1  # on average
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
    seed: int,
    part: bytes = b"",
    whole: Callable[[bytes], bytes] = bytes,
    count: int = FILES,
    harmless: float = 1 / 3,
) -> None:
    """Damages a file, mostly its head; or a part of it, of which `whole` makes the file again.

    Args:
      path: the file, restored in the end.
      head: bytes that are damaged.
      load: reads the model.
      check: holds what was read against other readers.
      seed: of the damage.
      part: of the file; b"": the file.
      whole: part -> file.
      count: of damaged files.
      harmless: share of them that may be read.
    """
    original = path.read_bytes()
    load()
    rng = random.Random(seed)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    mutations = MUTATIONS if head < len(part or original) - 8 else MUTATIONS[:-1]
    for i in range(count):
        data = bytearray(part or original)
        mutation = mutations[i % len(mutations)]
        mutation(rng, data, head)
        path.write_bytes(whole(bytes(data)))
        try:
            if not refused(load):
                loaded += 1
                check()
        except BaseException as error:
            error.add_note(f"file {i} of seed {seed}, damaged by {mutation.__name__}")
            raise
    assert time.monotonic() - started < SECONDS_A_FILE * count + 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert loaded <= count * harmless
    path.write_bytes(original)
    load()


seeded = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = hf.llama(vocab_size=31, hidden_size=12, head_dim=4, intermediate_size=17)
    return hf.save(hf.random_model(config), tmp_path / "hf")


@seeded
def test_damaged_safetensors_files(model: Path, seed: int) -> None:
    path = model / "model.safetensors"
    head = 8 + int.from_bytes(path.read_bytes()[:8], "little")

    def check() -> None:
        expected = safetensors.numpy.load_file(path)  # its own reader accepts it too
        assert_holds(open_model(model, None).source, expected)

    fuzz(path, head, lambda: convert(model, "float32"), check, seed)


def assert_holds(source: Source, expected: Mapping[str, np.ndarray]) -> None:
    assert source.shapes().keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(source.read(name), value)


def gguf_tensors(*paths: Path) -> dict[str, np.ndarray]:
    """As the gguf package reads them."""
    found = {}
    for path in paths:
        for tensor in gguf.GGUFReader(path).tensors:
            shape = tuple(int(n) for n in reversed(tensor.shape))
            found[tensor.name] = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return found


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    config = hf.llama(vocab_size=31, hidden_size=12, head_dim=4, intermediate_size=17)
    return write_llama(hf.random_model(config), tmp_path / "m.gguf")


@seeded
def test_damaged_gguf_files(gguf_file: Path, seed: int) -> None:
    head = min(int(t.data_offset) for t in gguf.GGUFReader(gguf_file).tensors)

    def check() -> None:
        assert_holds(open_model(gguf_file, None).source, gguf_tensors(gguf_file))

    fuzz(gguf_file, head, lambda: convert(gguf_file, "float32"), check, seed)


@seeded
@pytest.mark.parametrize("number", [0, 1, 2])
def test_damaged_parts_of_a_split_gguf(
    gguf_file: Path, tmp_path: Path, number: int, seed: int
) -> None:
    """Where all parts are read, they hold every tensor of the model, as it was saved."""
    parts = split_gguf(gguf_file, tmp_path / "parts", first=1)
    tensors = gguf.GGUFReader(parts[number]).tensors
    head = min(int(t.data_offset) for t in tensors)
    saved = gguf_tensors(gguf_file)

    def check() -> None:
        source = open_model(parts[0], None).source
        assert source.shapes().keys() == saved.keys()
        assert_holds(source, gguf_tensors(*parts))

    def load() -> object:
        return convert(parts[0], "float32")

    fuzz(parts[number], head, load, check, seed, count=FILES // 3, harmless=0.4)


@seeded
@pytest.mark.parametrize("where", ["pickle", "zip"])
def test_damaged_torch_files(model: Path, where: str, seed: int) -> None:
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
        arrays = {name: value.detach().numpy() for name, value in expected.items()}
        assert_holds(open_model(model, None).source, arrays)

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
    fuzz(path, len(part) - 10, lambda: convert(model, "float32"), check, seed, part, whole)


@seeded
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_json_files(model: Path, name: str, seed: int) -> None:
    path = model / name
    if not path.exists():  # an index over the one file there is, under another name
        names = open_model(model, None).source.shapes()
        path.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")}))
        (model / "model.safetensors").rename(model / "model-1.safetensors")
    whole = flatten(convert(model, "float32").params)

    def check() -> None:
        # A number of a config may have become another one; the weights are what they were.
        for leaf_path, leaf in flatten(convert(model, "float32").params).items():
            np.testing.assert_array_equal(leaf, whole[leaf_path])

    head = path.stat().st_size
    load = lambda: convert(model, "float32")  # noqa: E731
    fuzz(path, head, load, check, seed, count=SMALL_FILES, harmless=0.9)


TEXTS = ["the cat sat", "  a->b\nthat's  ", "ü é", "w1 w2 w30", ""]
CORPUS = ["the cat sat on the mat", "that hat is the cat's", "a -> b", "one two three"] * 5


def save_byte_level(directory: Path) -> int:
    """A tokenizer.json of byte-level BPE that begins with BOS; its number of tokens."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<s>"], initial_alphabet=sorted(alphabet)
    )
    built.train_from_iterator(CORPUS, trainer)
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    built.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return built.get_vocab_size()


def save_open_byte_level(directory: Path) -> int:
    """The same without a post-processor: tokenizer_config.json says that BOS begins a text."""
    size = save_byte_level(directory)
    raw = json.loads((directory / "tokenizer.json").read_text()) | {"post_processor": None}
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))
    return size


def save_sentencepiece(directory: Path) -> int:
    """A bare tokenizer.model; its number of pieces."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS), model_writer=buffer, vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.json").unlink(missing_ok=True)
    (directory / "tokenizer.model").write_bytes(buffer.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue()).vocab_size()


@seeded
@pytest.mark.parametrize(
    ("save", "name"),
    [
        (save_byte_level, "tokenizer.json"),
        (save_open_byte_level, "tokenizer_config.json"),
        (save_sentencepiece, "tokenizer.model"),
        (save_sentencepiece, "tokenizer_config.json"),
    ],
)
def test_damaged_tokenizer_files(
    tmp_path: Path, save: Callable[[Path], int], name: str, seed: int
) -> None:
    """Ids are what the file's own library gives; begun with BOS or not, as the config says now."""
    tmp_path.joinpath("empty").mkdir()
    size = save(tmp_path / "empty")
    config = hf.llama(vocab_size=size, hidden_size=12, head_dim=4, intermediate_size=17)
    directory = hf.save(hf.random_model(config), tmp_path / "hf")
    save(directory)
    original = flatten(convert(directory, "float32").params)

    def ids_of(text: str) -> list[int]:
        if (directory / "tokenizer.json").exists():
            return (
                tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
            )
        return sentencepiece.SentencePieceProcessor(
            model_file=str(directory / "tokenizer.model")
        ).Encode(text)

    def check() -> None:
        converted = convert(directory, "float32")
        tokenizer = Tokenizer(converted.tokenizer)
        for text in TEXTS:
            got, expected = tokenizer.encode(text), ids_of(text)
            assert expected in (got, got[1:]) or got == expected[1:], (text, got, expected)
        for path, leaf in flatten(converted.params).items():
            np.testing.assert_array_equal(leaf, original[path])

    path = directory / name
    head = path.stat().st_size
    load = lambda: convert(directory, "float32")  # noqa: E731
    fuzz(path, head, load, check, seed, count=SMALL_FILES, harmless=0.9)
