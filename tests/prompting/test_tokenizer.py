"""The tokenizer built from GGUF metadata, and the one place that pads and finds the arrow."""

from __future__ import annotations

import base64
import itertools
import json

import numpy as np
import pytest
import regex
import tokenizers

from convert.formats.sources import GGUFSource
from taskvec_jax.errors import TaskVecError
from taskvec_jax.prompting.tokenizer import Tokenizer

TEXTS = [
    "example:Apple->Red\nexample:Lime->Green\nexample:Corn->",
    "In 1984 and 2026, 007 paid $1,234.56 for 3.14159 (or ½) of 10000000 items.",
    "Ĝi estas ĉirkaŭ 42; naïve café, Ærøskøbing, Łódź, İstanbul, Straße",
    "Привет, мир! 今日は良い天気です。 안녕하세요 12345 مرحبا שלום नमस्ते ไทย",
    "tabs\t\tand   spaces \n\n\n  newlines\r\n and emoji 👩‍🚀🏳️‍🌈🇫🇷 !!! ->-> ...->",
    "<|im_start|>user\nhello<|im_end|>\n<|endoftext|>",
    "don't they'll we've I'm HE'LL can't 'tis",
    " leading and trailing ",
    "",
]


def reference_bpe(meta: dict, text: str) -> list[int]:
    """Byte-level BPE written from its description: specials, digits, GPT-2's pattern, merges."""
    tokens = meta["tokenizer.ggml.tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(meta["tokenizer.ggml.merges"])}
    kinds = meta["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_char = {b: chr(b) for b in printable}
    byte_char |= {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in printable)
    }
    words = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    out = []
    for piece in regex.split("(" + "|".join(map(regex.escape, special)) + ")", text):
        if piece in ids and piece in special:
            out.append(ids[piece])
            continue
        for part in regex.findall(r"\p{N}|\P{N}+", piece):
            for word in words.findall(part):
                symbols = [byte_char[b] for b in word.encode()]
                while len(symbols) > 1:
                    rank, i = min(
                        (ranks.get((a, b), len(ranks)), i)
                        for i, (a, b) in enumerate(itertools.pairwise(symbols))
                    )
                    if rank == len(ranks):
                        break
                    symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
                out += [ids[s] for s in symbols]
    return out


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_an_independent_byte_level_bpe(text, default_gguf, tokenizer):
    assert tokenizer.encode(text) == reference_bpe(GGUFSource(default_gguf).meta, text)


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(text, tokenizer):
    plain = regex.sub(r"<\|\w+\|>", "", text)
    assert tokenizer.decode(tokenizer.encode(text)) == plain


def test_batches_encode_like_single_texts(tokenizer):
    assert tokenizer.encode_all(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_padding_is_on_the_right_and_last_points_at_the_last_token(tokenizer):
    rows = [tokenizer.encode(text) for text in TEXTS[:3]]
    tokens, last = tokenizer.pad(rows)
    for row, ids, end in zip(tokens, rows, last, strict=True):
        assert row[: end + 1].tolist() == ids
        assert end == len(ids) - 1


def test_empty_prompts_are_refused(tokenizer):
    with pytest.raises(TaskVecError, match="no text to tokenize"):
        tokenizer.pad([])
    with pytest.raises(TaskVecError, match="no text to tokenize"):
        tokenizer.pad([[1], []])


def test_the_arrow_is_found_by_characters_and_straddling_is_seen(tokenizer):
    assert tokenizer.ends_in("example:Plum->", "->")
    assert not tokenizer.ends_in("example:Plum-> ", "->")
    assert not tokenizer.ends_in("example:Plum", "->")
    # A tokenizer that merges the arrow with what stands before it.
    vocab = {c: i for i, c in enumerate("Plum->")} | {"m-": 6, "m->": 7}
    merging = Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("m", "-"), ("m-", ">")]))
    )
    assert not merging.ends_in("Plum->", "->")
    split = Tokenizer(
        tokenizers.Tokenizer(
            tokenizers.models.BPE(vocab={c: i for i, c in enumerate("Plum->")}, merges=[])
        )
    )
    assert split.ends_in("Plum->", "->")


def test_a_continuation_that_changes_the_prompts_own_tokens_is_empty():
    vocab = {c: i for i, c in enumerate("ab->")} | {">b": 4}
    bpe = tokenizers.models.BPE(vocab={**vocab, ">b": 4}, merges=[(">", "b")])
    merging = Tokenizer(tokenizers.Tokenizer(bpe))
    assert merging.continuation("a->", "b") == []
    assert merging.continuation("a->", "a") == [0]


def test_an_answer_is_cut_at_a_newline_and_stripped(tokenizer):
    (newline,) = tokenizer.encode("\n")
    assert tokenizer.decode_answer(newline) == ""
    (paris,) = tokenizer.encode(" Paris")
    assert tokenizer.decode_answer(paris) == "Paris"


def test_bos_is_put_where_the_model_puts_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["post_processor"] = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    ).__getstate__()
    raw["post_processor"] = json.loads(raw["post_processor"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with_bos = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert with_bos.encode("Plum") == [0, *tokenizer.encode("Plum")]
    assert with_bos.continuation("Plum->", " x") == tokenizer.continuation("Plum->", " x")
    assert np.array_equal(
        with_bos.pad([with_bos.encode("Plum->")])[1], [len(with_bos.encode("Plum->")) - 1]
    )


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TaskVecError, match=r"not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("example:a->", "texts is 'example:a->'; it must be a list of strings"),
        ([["a"]], r"\['a'\] is no text; each must be a string"),
        ([None], "None is no text; each must be a string"),
        ([b"a"], "b'a' is no text; each must be a string"),
    ],
)
def test_what_is_no_list_of_strings_is_refused(texts, message, tokenizer):
    with pytest.raises(TaskVecError, match=message):
        tokenizer.encode_all(texts)


def test_half_a_character_is_refused(tokenizer):
    with pytest.raises(TaskVecError, match="cannot read the text"):
        tokenizer.encode("\ud800")
    with pytest.raises(TaskVecError, match="cannot read the text"):
        tokenizer.encode_all(["a"] * 20 + ["\ud800"])


def test_texts_come_back_or_are_told(tokenizer):
    for text in TEXTS[:5]:
        assert tokenizer.spells(text)
    lower = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    lower.normalizer = tokenizers.normalizers.Lowercase()
    assert Tokenizer(lower).spells("apple")
    assert not Tokenizer(lower).spells("Apple")


def test_damage_that_is_found_late_is_one_clear_line(tmp_path):
    """tokenizers panics, which is no Exception, where a compiled normaliser is empty."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    raw = json.loads(backend.to_str())
    for charsmap in ("AAAA", base64.b64encode(b"\0" * 64).decode()):
        raw["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        with pytest.raises(TaskVecError, match=r"not a tokenizer\.json|cannot read the text"):
            Tokenizer.from_file(tmp_path / "tokenizer.json").encode("ab c")
