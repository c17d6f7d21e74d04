"""What a directory's tokenizer files say is what is used; a model without one is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hf
import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from convert.tokenizers import from_directory
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.loading import load_model

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
CLASSES = ["GPT2Tokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"]


def byte_level(
    pre: Any, extra: Sequence[str] = (), merges: Sequence[tuple[str, str]] = ()
) -> tokenizers.Tokenizer:
    built = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate([*ALPHABET, *extra])}, merges=list(merges))
    )
    built.pre_tokenizer, built.decoder = pre, tokenizers.decoders.ByteLevel()
    return built


def spelled(normalizer: Any, byte_fallback: bool = True) -> tokenizers.Tokenizer:
    """BPE as sentencepiece's models are written in a tokenizer.json, with BOS."""
    names = [
        *("<unk>", "<s>", "</s>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *("▁", *"abcdefghijklmnopqrstuvwxyz:->\n", "->"),
    ]
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(dict.fromkeys(names))},
            merges=[("-", ">")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    built.normalizer = normalizer
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return built


def unigram() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -3.0), ("▁example", -1.5), ("->", -2.5)]
    letters = [(c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz:->\n"]
    built = tokenizers.Tokenizer(models.Unigram([*pieces, *letters], 0, False))
    built.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    return built


IN_THREES = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s*[\r\n]+|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
ONE_BY_ONE = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
SPACES = normalizers.Replace(" ", "▁")
PREFIX = normalizers.Sequence([normalizers.Prepend("▁"), SPACES])
FILES = {
    "digits in threes": lambda: byte_level(
        IN_THREES, ["20", "23", "202"], [("2", "0"), ("2", "3"), ("20", "2")]
    ),
    "digits one by one": lambda: byte_level(ONE_BY_ONE, ["ĊĠ", "ĠĠ"], [("Ċ", "Ġ"), ("Ġ", "Ġ")]),
    "byte level": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "no dummy prefix": lambda: spelled(SPACES),
    "NFKC": lambda: spelled(normalizers.Sequence([normalizers.NFKC(), PREFIX])),
    "no byte fallback": lambda: spelled(PREFIX, byte_fallback=False),
    "unigram": unigram,
}
TEXTS = ["2023", "a\n 2", "a  12", "a b\nc", "a->", "ａ->", "é->", "example:a->"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_tokenizer_json_is_used_as_it_stands_whatever_class_is_named(name, cls, tmp_path):
    FILES[name]().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ours = from_directory(tmp_path)
    right = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text).ids == right.encode(text).ids, text


@pytest.mark.parametrize(
    ("post", "settings", "before", "after"),
    [
        (None, {}, [], []),
        (None, {"add_bos_token": True, "bos_token": "b"}, ["b"], []),
        (None, {"add_bos_token": True, "bos_token": None}, [], []),  # as transformers
        (None, {"add_bos_token": False, "bos_token": "b"}, [], []),
        (None, {"add_eos_token": True, "eos_token": {"content": "e"}}, [], ["e"]),
        ("byte level", {"add_bos_token": True, "bos_token": "b"}, ["b"], []),
        ("template", {"add_bos_token": False, "bos_token": "b"}, ["t"], []),  # the file says it
        ("template", {"add_eos_token": True, "eos_token": "e"}, ["t"], []),
    ],
)
def test_tokenizer_config_adds_bos_only_where_the_file_leaves_it_open(
    post, settings, before, after, tmp_path
):
    built = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    if post == "byte level":
        built.post_processor = processors.ByteLevel(trim_offsets=True)
    elif post == "template":
        token = built.token_to_id("t")
        built.post_processor = processors.TemplateProcessing(
            single="t $A", special_tokens=[("t", token)]
        )
    built.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert from_directory(tmp_path).encode("x y").tokens == [*before, "x", "Ġ", "y", *after]


def test_a_bos_that_is_no_token_is_refused(tmp_path):
    byte_level(pre_tokenizers.ByteLevel()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"add_bos_token": true, "bos_token": "<begin>"}'
    )
    with pytest.raises(TaskVecError, match="'<begin>' is to be put around every text, but is none"):
        from_directory(tmp_path)


@pytest.mark.parametrize("config", [hf.llama, hf.mistral, hf.neox, hf.gptj])
def test_a_model_without_a_tokenizer_is_refused_in_every_family(config, tmp_path):
    directory = hf.save(hf.random_model(config()), tmp_path / "hf")
    (directory / "tokenizer.json").unlink()  # tokenizer_config.json alone is no tokenizer
    for load in (
        lambda: load_model(directory),
        lambda: convert_model(str(directory), tmp_path / "out"),
    ):
        with pytest.raises(TaskVecError, match=r"no tokenizer here; put .*tokenizer\.json beside"):
            load()
    assert not (tmp_path / "out").exists()


def test_vocab_and_merges_make_a_tokenizer(tmp_path):
    vocab = {c: i for i, c in enumerate([*ALPHABET, "ab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert from_directory(tmp_path).encode("ab b").tokens == ["ab", "Ġ", "b"]
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TaskVecError, match="no tokenizer here"):
        from_directory(tmp_path)


def test_a_padding_token_without_a_row_is_no_fault_until_a_text_holds_it(tmp_path):
    directory = hf.save(hf.random_model(hf.llama()), tmp_path / "hf")
    path = directory / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.add_special_tokens(["<pad>"])
    assert backend.token_to_id("<pad>") == 101  # the embedding has rows 0 to 100
    backend.save(str(path))
    convert_model(str(directory), tmp_path / "converted")
    for model in (load_model(directory), load_model(tmp_path / "converted")):
        assert model.tokenizer.encode("w5 w100") == [5, 100]
        for texts in (["w5 <pad>"], ["w5"] * 20 + ["<pad>"]):
            with pytest.raises(TaskVecError, match=r"holds the token '<pad>' \(id 101\)"):
                model.tokenizer.encode_all(texts)


def test_a_gguf_of_padding_beyond_its_pieces_still_belongs(tmp_path: Path) -> None:
    """Pieces of kind UNUSED fill a GGUF's vocabulary up; no text becomes one."""
    from test_convert_gguf import spm_meta

    from convert.formats.gguf_tokenizer import from_gguf
    from convert.tokenizers import check_vocabulary

    meta = spm_meta()
    number = len(meta["tokenizer.ggml.tokens"])
    meta["tokenizer.ggml.tokens"].append("[PAD]")
    meta["tokenizer.ggml.scores"].append(-1000.0)
    meta["tokenizer.ggml.token_type"].append(5)
    check_vocabulary(from_gguf(meta, "here"), number, "here")
    with pytest.raises(TaskVecError, match="belongs to another model"):
        check_vocabulary(from_gguf(meta, "here"), number - 1, "here")
