"""Llama 3's own tokenizer file, against tiktoken's algorithm written down here."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path

import pytest
import regex
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from convert.tokenizers import from_meta_directory
from taskvec_jax.errors import TaskVecError

ROOT = Path(__file__).resolve().parent.parent.parent
PATTERN = (  # of llama3/tokenizer.py
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "example:Apple->Red \n example:Lime->Green \n example:Corn->",
    "It's 12345 o'clock;  don't!\n\n  residual streams\tat the last token ",
    "naïve café, 東京 and 🙂🙂; Ünïcödé\u00a0end",
    "",
]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """A vocabulary of 700 tokens that was trained on README.md."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator((ROOT / "README.md").read_text().splitlines(), trainer)
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in letters]
    byte_of = {chr(n): n for n in letters} | {chr(256 + i): n for i, n in enumerate(rest)}
    return {
        bytes(byte_of[letter] for letter in token): i for token, i in backend.get_vocab().items()
    }


def write(directory: Path, ranks: dict[bytes, int]) -> Path:
    lines = [
        f"{base64.b64encode(token).decode()} {rank}"
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ]
    path = directory / "tokenizer.model"
    path.write_text("\n".join(lines) + "\n")
    return path


def tiktoken(ranks: dict[bytes, int], text: str) -> list[int]:
    """Joins the neighbours whose union has the lowest rank, the leftmost of equals first."""
    out = []
    for word in regex.findall(PATTERN, text):
        data = word.encode()
        parts = [data] if data in ranks else [bytes([byte]) for byte in data]
        while True:
            unions = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
            if not unions or min(unions) == len(ranks):
                break
            i = unions.index(min(unions))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out += [ranks[part] for part in parts]
    return out


def test_llama_3s_own_tokenizer_reads_as_tiktoken_does(ranks, tmp_path):
    write(tmp_path, ranks)
    (tmp_path / "8B").mkdir()
    built = from_meta_directory(tmp_path / "8B")
    assert built.get_vocab_size() == 700 + 256
    for text in TEXTS:
        got = built.encode(text).ids
        assert got == [700, *tiktoken(ranks, text)], text
        assert built.decode(got) == text
    assert max(len(token) for token in ranks) > 4  # or nothing was merged
    assert built.encode("<|eot_id|><|end_of_text|>", add_special_tokens=False).ids == [709, 701]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:100], r"\d+ of the 256 single bytes are missing"),
        (lambda lines: [*lines[:5], *lines[6:]], "line 6 has rank b'6', expected 5"),
        (lambda lines: [*lines[:-1], b"!? 699"], "not a whole tiktoken file"),
        (lambda lines: [*lines[:-1], lines[0].split()[0] + b" 699"], "a token is listed twice"),
    ],
)
def test_a_damaged_file_is_named(ranks, tmp_path, change, message):
    path = write(tmp_path, ranks)
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    with pytest.raises(TaskVecError, match=message) as caught:
        from_meta_directory(tmp_path)
    assert str(path) in str(caught.value)
