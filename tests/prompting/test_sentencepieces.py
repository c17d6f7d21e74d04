"""sentencepiece models, held against the sentencepiece package over many that are made up."""

# Long because: models of sentencepiece are generated and compared here.

from __future__ import annotations

import io
import json
import logging
import random
from pathlib import Path
from typing import Any

import hf
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from convert.formats.gguf_tokenizer import from_gguf
from convert.tokenizers import from_directory
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.loading import load_model
from taskvec_jax.prompting.sentencepieces import read_sentencepieces
from taskvec_jax.prompting.tokenizer import Tokenizer

ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]  # made when it is imported
MODELS = 200
PARTS = [
    "a", "b", "c", "ab", "->", "\n", "\t", " ", "  ", "é", "ｆ", "ﬁ", "e\u0301", "가", ":", "▁",
    "<s>", "😀", "example:",
]  # fmt: skip


@pytest.fixture(scope="module")
def charsmaps() -> list[bytes]:
    """Compiled normalisers that sentencepiece's trainer ships with."""
    found = []
    for rule in ("identity", "nmt_nfkc", "nfkc_cf"):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(["hello world abc"] * 20),
            model_writer=written,
            vocab_size=15,
            hard_vocab_limit=False,
            normalization_rule_name=rule,
            minloglevel=2,
        )
        proto = ModelProto.FromString(written.getvalue())
        found.append(proto.normalizer_spec.precompiled_charsmap)
    return found


def made_up(rng: random.Random, charsmaps: list[bytes]) -> Any:
    """A ModelProto of a few dozen pieces, each of its settings drawn."""
    proto = ModelProto()
    used: set[str] = set()

    def add(text: str, score: float, kind: int) -> None:
        if text not in used:
            used.add(text)
            proto.pieces.add(piece=text, score=score, type=kind)

    for text, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        add(text, 0.0, kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    unigram = rng.random() < 0.4
    trainer.model_type = 1 if unigram else 2
    trainer.byte_fallback = rng.random() < 0.5
    if trainer.byte_fallback:
        for byte in range(256):
            add(f"<0x{byte:02X}>", 0.0, 6)
    for text in ("->", "\n", "▁▁", "ab", "\t"):
        if rng.random() < 0.4:
            add(text, 0.0, 4)
    letters = list("abc>-:▁")
    pieces = {*letters, "▁a", "▁example", "example"}
    while len(pieces) < 40:
        pieces.add("".join(rng.choice(letters) for _ in range(rng.randrange(2, 5))))
    ordered = sorted(pieces)
    rng.shuffle(ordered)
    tied = rng.random() < 0.2
    for i, text in enumerate(ordered):
        score = -0.1 - 9 * rng.random() if unigram else -float(i // 3 if tied else i)
        add(text, score, 5 if rng.random() < 0.03 else 1)
    trainer.treat_whitespace_as_suffix = rng.random() < 0.2
    normalizer.add_dummy_prefix = rng.random() < 0.6
    normalizer.remove_extra_whitespaces = rng.random() < 0.4
    normalizer.escape_whitespaces = rng.random() < 0.9
    normalizer.precompiled_charsmap = rng.choice([*[b""] * 8, *charsmaps])
    return proto


def gguf_of(proto: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a sentencepiece model."""
    normalizer = proto.normalizer_spec
    texts = [
        piece.piece.replace("▁", " ") if piece.type == 4 else piece.piece for piece in proto.pieces
    ]
    return {
        "tokenizer.ggml.model": "t5" if proto.trainer_spec.model_type == 1 else "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces],
        "tokenizer.ggml.add_space_prefix": normalizer.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "tokenizer.ggml.precompiled_charsmap": list(normalizer.precompiled_charsmap),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


def test_hundreds_of_models_give_sentencepieces_ids(charsmaps, tmp_path):
    """From tokenizer.model, from a GGUF made of it, and from what is saved of either."""
    rng, from_ggufs, seen = random.Random(13), 0, set()
    for number in range(MODELS):
        proto = made_up(rng, charsmaps)
        path = tmp_path / "tokenizer.model"
        path.write_bytes(proto.SerializeToString())
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        ours = Tokenizer(read_sentencepieces(path, add_bos=False))
        ours.save(tmp_path)
        readers = [ours, Tokenizer.from_directory(tmp_path)]
        (tmp_path / "tokenizer_config.json").unlink()
        if not proto.trainer_spec.treat_whitespace_as_suffix and (
            proto.normalizer_spec.escape_whitespaces
        ):
            readers.append(Tokenizer(from_gguf(gguf_of(proto), "here")))
            from_ggufs += 1
        texts = ["".join(rng.choices(PARTS, k=rng.randrange(14))) for _ in range(6)]
        for text in texts:
            right = processor.encode(text)
            seen.update(right)
            for reader in readers:
                assert reader.encode(text) == right, (number, text, proto)
            plain = [i for i in right if i != processor.unk_id()]
            assert ours.decode([1, *right, 2]) == processor.decode(plain)
        assert ours.encode_all(texts) == [processor.encode(text) for text in texts]
    assert from_ggufs > MODELS // 3
    assert len(seen) > 90  # or the texts were of few pieces


LETTERS = [("▁", -1.0), *((c, -2.0 - i) for i, c in enumerate("abex:mpl>-"))]


def small(**settings: Any) -> bytes:
    """BPE of single letters, `->` and a newline of the user's; settings of the normaliser."""
    proto = ModelProto()
    specials = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("->", 4), ("\n", 4)]
    for text, kind in specials:
        proto.pieces.add(piece=text, score=0.0, type=kind)
    for text, score in LETTERS:
        proto.pieces.add(piece=text, score=score, type=1)
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.treat_whitespace_as_suffix = settings.pop("suffix", False)
    proto.normalizer_spec.remove_extra_whitespaces = False
    for name, value in settings.items():
        setattr(proto.normalizer_spec, name, value)
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("settings", "text", "tokens"),
    [
        ({}, "->a\na->", ["▁", "->", "a", "\n", "a", "->"]),  # a prefix at the very start alone
        ({"add_dummy_prefix": False}, "a->b", ["a", "->", "b"]),
        ({"suffix": True}, "a->b", ["a", "->", "b", "▁"]),
        ({"remove_extra_whitespaces": True}, " a  \n b ", ["▁", "a", "▁", "\n", "▁", "b"]),
        ({"escape_whitespaces": False, "add_dummy_prefix": False}, "a", ["a"]),
    ],
)
def test_each_setting_of_the_file_is_heard(settings, text, tokens, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small(**settings))
    assert read_sentencepieces(path, add_bos=False).encode(text).tokens == tokens


def test_offsets_are_characters_of_the_text(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small())
    ours = Tokenizer(read_sentencepieces(path))
    text = "example:é a->"
    pieces = ours.pieces(text)
    assert pieces[0] == (1, "<s>", (0, 0))
    assert "".join(text[start:end] for _, _, (start, end) in pieces) == text
    assert ours.ends_in(text, "->")
    assert not ours.ends_in(text + " ", "->")
    assert not ours.spells("é")
    assert ours.spells("a b->\n")


def test_a_whitespace_suffix_is_no_end_of_an_arrow(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small(suffix=True))
    assert not Tokenizer(read_sentencepieces(path)).ends_in("a->", "->")


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"bos_token": {"content": "</s>"}}, [2], []),
        ({"add_bos_token": None, "eos_token": "<s>", "add_eos_token": True}, [1], [1]),
    ],
)
def test_tokenizer_config_says_what_is_put_around_a_text(settings, before, after, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(small())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = from_directory(tmp_path)
    plain = ours.encode("ab", add_special_tokens=False).ids
    assert ours.encode("ab").ids == [*before, *plain, *after]
    Tokenizer(ours).save(tmp_path)
    assert from_directory(tmp_path).encode("ab").ids == ours.encode("ab").ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"bos_token": "<bos>"}', "bos_token is '<bos>', not one of the 16 pieces"),
        ('{"add_bos_token": "yes"}', "add_bos_token is 'yes'; allowed: true, false"),
        ("[1]", "it holds a list, not an object"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_tokenizer_config_is_named(settings, message, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(small())
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(TaskVecError, match=message):
        from_directory(tmp_path)


def test_conversion_says_once_where_transformers_ids_differ(tmp_path, caplog):
    (tmp_path / "tokenizer.model").write_bytes(small(suffix=True))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with caplog.at_level(logging.WARNING, "convert.tokenizers"):
        from_directory(tmp_path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "gives other token ids than sentencepiece, whose ids are used" in said
    assert str(tmp_path) in said
    # Where sentencepiece's own pieces are all that matters, they agree, and nothing is said.
    caplog.clear()
    (tmp_path / "tokenizer.model").write_bytes(small(add_dummy_prefix=False))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": true}'
    )
    from_directory(tmp_path)
    assert not caplog.records


def test_a_converted_model_keeps_its_sentencepiece_model(tmp_path):
    directory = hf.save(hf.random_model(hf.llama(vocab_size=16)), tmp_path / "hf")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    (directory / "tokenizer.model").write_bytes(small())
    convert_model(str(directory), tmp_path / "converted")
    direct, restored = load_model(directory), load_model(tmp_path / "converted")
    for text in ("example:a->b\nexample:b->", "->"):
        assert restored.tokenizer.encode(text) == direct.tokenizer.encode(text)
    assert restored.tokenizer.sha256 == direct.tokenizer.sha256


def test_saving_one_form_of_tokenizer_leaves_nothing_of_the_other(tokenizer, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tokenizer.model").write_bytes(small())
    pieces = Tokenizer(read_sentencepieces(tmp_path / "elsewhere" / "tokenizer.model"))
    for one in (tokenizer, pieces, tokenizer):
        one.save(tmp_path)
        assert Tokenizer.from_directory(tmp_path).sha256 == one.sha256


def test_hundreds_of_damaged_models_are_refused_or_read_as_sentencepiece_does(charsmaps, tmp_path):
    rng, path, read = random.Random(14), tmp_path / "tokenizer.model", 0
    for number in range(300):
        data = bytearray(made_up(rng, charsmaps[:1]).SerializeToString())
        place = rng.randrange(len(data))
        if number % 3 == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif number % 3 == 1:
            del data[place : place + rng.choice([1, 4, 100])]
        else:
            del data[place:]
        path.write_bytes(data)
        try:
            ours = Tokenizer(read_sentencepieces(path, add_bos=False))
        except TaskVecError:
            continue
        read += 1
        processor = sentencepiece.SentencePieceProcessor(model_proto=bytes(data))
        for text in ("example:a->b\n", " a  é"):
            assert ours.encode(text) == processor.encode(text)
    assert 0 < read < 200


def test_ids_names_and_ends_are_found_as_in_any_other_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small())
    backend = read_sentencepieces(path)
    ours = Tokenizer(backend)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [oracle.id_to_piece(i) for i in range(len(oracle))]
    assert [backend.id_to_token(i) for i in range(len(pieces))] == pieces
    assert [backend.token_to_id(piece) for piece in pieces] == list(range(len(pieces)))
    assert backend.token_to_id("no such piece") is None
    assert backend.id_to_token(len(pieces)) is backend.id_to_token(-1) is None
    special = {i for i in range(len(pieces)) if oracle.is_control(i) or oracle.is_unused(i)}
    assert backend.get_added_tokens_decoder().keys() == special
    assert ours.ends == [oracle.eos_id()]  # where generation stops
    letter = backend.token_to_id("a")
    assert letter is not None
    assert ours.piece(letter) == "a"
