"""Generation: token for token what transformers generates, whatever the batch and the padding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import hooks
import jax
import numpy as np
import pytest
import torch
from conftest import LLAMA, random_params
from slow import SLOW, first_is_quick, slow, slow_but

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.generating import generate
from taskvec_jax.transformer import edits
from taskvec_jax.transformer.decoder import Decoder
from taskvec_jax.transformer.generation import split_layers

PROMPTS, NEW = (20, 32) if SLOW else (6, 12)  # transformers generates one prompt at a time
NEAR = 1e-4  # a margin between the best two tokens below this may fall either way


def prompts_for(vocab_size: int, count: int = PROMPTS) -> list[list[int]]:
    rng = np.random.RandomState(4)
    return [rng.randint(3, vocab_size, n).tolist() for n in rng.randint(1, 14, count)]


def assert_same_tokens(
    reference: Any, prompts: list[list[int]], got: list[list[int]], want: list[list[int]]
) -> None:
    """Equal, but for one prompt at most in which the first difference is a near tie."""
    different = [i for i in range(len(prompts)) if got[i] != want[i]]
    assert len(different) <= 1
    for i in different:
        same = next(n for n, (a, b) in enumerate(zip(got[i], want[i], strict=False)) if a != b)
        with torch.no_grad():
            logits = reference(torch.tensor([prompts[i] + want[i][:same]])).logits[0, -1]
        best = logits.topk(2).values
        assert best[0] - best[1] < NEAR


@pytest.mark.parametrize("family", slow_but(hooks.FAMILIES, ("llama", "neox", "gemma3")))
def test_greedy_generation_is_transformers_token_for_token(family):
    reference, model = hooks.pair(family)
    prompts = prompts_for(model.config.vocab_size)
    got = generate(model.config, model.params, prompts, max_new_tokens=NEW)
    want = [hooks.generated(reference, prompt, NEW) for prompt in prompts]
    assert_same_tokens(reference, prompts, got, want)
    assert len({token for ids in got for token in ids}) > 6  # not one token for ever


@pytest.mark.parametrize("edit", first_is_quick(["prompt", "always"]))
@pytest.mark.parametrize("family", hooks.BLOCKS)
def test_generation_with_edits_is_transformers_with_hooks(family, edit):
    reference, model = hooks.pair(family)
    c = model.config
    prompts = prompts_for(c.vocab_size, 6 if SLOW else 3)
    vector = 3 * np.random.RandomState(1).standard_normal(c.width).astype(np.float32)
    given = [
        edits.add(vector, layer=0, position=-1),
        edits.scale(0.5, layer=1, position=-1, site="attn_out"),
    ]

    def write(site: str, layer: int, value: torch.Tensor) -> torch.Tensor:
        if (site, layer) not in (("resid", 0), ("attn_out", 1)):
            return value
        if edit == "prompt" and not write.reads_prompt:  # type: ignore[attr-defined]
            return value
        value = value.clone()
        value[:, -1] = value[:, -1] + torch.tensor(vector) if site == "resid" else value[:, -1] / 2
        return value

    want = []
    for prompt in prompts:

        def watch(module: Any, args: Any, kwargs: Any, prompt: list[int] = prompt) -> None:
            del module, args
            size = kwargs["input_ids"].shape[1]
            write.reads_prompt = size == len(prompt) and not watch.seen  # type: ignore
            watch.seen = True  # type: ignore[attr-defined]

        watch.seen = False  # type: ignore[attr-defined]
        hook = reference.register_forward_pre_hook(watch, with_kwargs=True)
        with hooks.visiting(reference, c.num_heads, write):
            want.append(hooks.generated(reference, prompt, 12))
        hook.remove()
    got = generate(c, model.params, prompts, max_new_tokens=12, edits=given, edit=edit)
    assert got == want
    assert got != generate(c, model.params, prompts, max_new_tokens=12)


@functools.cache
def params() -> Any:
    return random_params(LLAMA)


def made(prompts: Sequence[Sequence[int]], new: int = 12, **how: Any) -> list[list[int]]:
    return generate(LLAMA, params(), prompts, max_new_tokens=new, **how)


SMALL = [[5, 9, 2], [7], [11, 3, 8, 20, 4, 6, 1], [2, 2]]


def test_batched_generation_equals_single_and_its_order_changes_nothing():
    together = made(SMALL)
    assert together == [made([prompt])[0] for prompt in SMALL]
    assert together[::-1] == made(SMALL[::-1])


@slow  # compiles generation three times
def test_layers_one_by_one_and_stacked_generate_the_same():
    vector = np.ones(LLAMA.width, np.float32)
    edit = edits.add(vector, layer=[1, 3], position="all", site="mlp_out")
    how = {"edits": edit, "edit": "always"}
    split = split_layers(params(), LLAMA.num_layers)
    assert made(SMALL, **how) == made(SMALL, **how, layers=split) != made(SMALL)


def test_what_is_generated_is_the_best_token_of_the_plain_decoder_each_time():
    for window in (None, 4):
        config = dataclasses.replace(LLAMA, sliding_window=window)
        decoder = Decoder(config)
        run = jax.jit(lambda p, t, decoder=decoder: decoder.apply(p, t))
        for prompt, ids in zip(
            SMALL, generate(config, params(), SMALL, max_new_tokens=9), strict=True
        ):
            tokens = np.zeros((1, 16), np.int32)
            tokens[0, : len(prompt) + 9] = prompt + ids
            best = np.asarray(run(params(), tokens))[0].argmax(-1)
            assert best[len(prompt) - 1 : len(prompt) + 8].tolist() == ids


def test_edits_and_vectors_of_a_row_stay_with_it_whatever_the_order():
    vectors = 5 * np.random.RandomState(2).standard_normal((4, LLAMA.width))
    last = np.array([len(prompt) - 1 for prompt in SMALL])
    how: dict[str, Any] = {"layer": np.array([0, 1, 2, 3]), "position": last}
    together = made(SMALL, edits=edits.replace(vectors, **how))
    for i, prompt in enumerate(SMALL):
        alone = edits.replace(vectors[i], layer=i, position=-1)
        assert together[i] == made([prompt], edits=alone)[0]


def test_a_text_ends_at_its_end_token_which_is_left_out():
    plain = made(SMALL)
    end = plain[0][3]
    ended = made(SMALL, eos=[end, plain[1][5]])
    for before, after in zip(plain, ended, strict=True):
        ends = [n for n, token in enumerate(before) if token in (end, plain[1][5])]
        assert after == before[: ends[0] if ends else None]


def test_fewer_tokens_are_a_beginning_of_more():
    more = made(SMALL, 40)
    assert [ids[:5] for ids in more] == made(SMALL, 5)
    assert {len(ids) for ids in more} == {40}


def test_drawn_tokens_depend_on_the_seed_and_the_text_alone():
    drawn = made(SMALL, temperature=1.0, rng=3)
    assert drawn == made(SMALL, temperature=1.0, rng=jax.random.key(3))
    assert drawn != made(SMALL, temperature=1.0, rng=4)
    assert drawn[0] == made(SMALL[:1], temperature=1.0, rng=3)[0]
    assert made(SMALL, temperature=1e-4, rng=3) == made(SMALL)


def test_drawn_tokens_follow_the_softmax_of_the_logits():
    draws, temperature = 512, 2.0
    first = [ids[0] for ids in made([[5, 9, 2]] * draws, 1, temperature=temperature, rng=0)]
    logits = np.asarray(Decoder(LLAMA).apply(params(), np.array([[5, 9, 2]])))[0, -1]
    chances = np.exp((logits - logits.max()) / temperature)
    chances /= chances.sum()
    best = chances.argsort()[::-1][:3]
    for token in best:
        spread = np.sqrt(chances[token] * (1 - chances[token]) / draws)
        assert abs(first.count(token) / draws - chances[token]) < 4 * spread


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: 1 or more"),
        ({"max_new_tokens": 91}, "7 tokens and max_new_tokens 91 .* context length .* 97"),
        ({"edit": "never"}, "edit is 'never'; allowed: prompt, always"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": 1.0}, "no rng"),
        ({"edits": (9, 0, np.zeros(42))}, "override layer 9"),
        ({"edits": (0, 1, np.zeros(42))}, "override position 1 .* row 1, which has 1 tokens"),
    ],
)
def test_what_cannot_be_generated_is_refused(how, message):
    with pytest.raises(TaskVecError, match=message):
        generate(LLAMA, params(), SMALL, **{"max_new_tokens": 5, **how})


def test_logits_that_are_not_finite_are_an_error_and_no_token():
    broken = edits.replace(np.full(LLAMA.width, np.inf), layer=0, position=-1)
    with pytest.raises(TaskVecError, match="not finite"):
        made(SMALL, edits=broken)


@slow  # minutes
def test_the_default_model_generates_what_transformers_does(default_model, default_gguf):
    import warnings

    import transformers

    from taskvec_jax.prompting.prompts import fit, sample
    from taskvec_jax.tasks import TASKS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            default_gguf.parent, gguf_file=default_gguf.name, dtype=torch.float32
        ).eval()
    texts = []
    for task in list(TASKS.values())[:10]:
        drawn = sample(
            fit(task, default_model.tokenizer),
            seed=5,
            split="generation",
            count=20,
            num_demonstrations=3,
            num_dummy_queries=0,
        )
        texts += [prompt.icl() for prompt in drawn]
    prompts = default_model.tokenizer.encode_all(texts)
    got = default_model.generate(prompts, max_new_tokens=64, return_ids=True)
    ends = default_model.tokenizer.ends
    want = []
    for start in range(0, len(prompts), 20):
        for ids in hooks.generated_together(reference, prompts[start : start + 20], 64):
            cut = [n for n, token in enumerate(ids) if token in ends]
            want.append(ids[: cut[0] if cut else None])
    assert_same_tokens(reference, prompts, got, want)
