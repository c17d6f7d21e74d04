"""The head map is the naive loop: one head of one layer patched at a time, in a pass of its own."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import numpy as np
import pytest
from conftest import LLAMA, PYTHIA, TINY, model_of
from slow import first_is_quick, slow

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.control_prompts import wrong_labels
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.model import Model
from taskvec_jax.tasks import TASKS
from taskvec_jax.transformer.edits import replace
from taskvec_jax.vectors import flops, head_map
from taskvec_jax.vectors.function_vectors import mean_outputs
from taskvec_jax.vectors.head_map import map_heads

MODELS = {  # of few layers: every group of the schedule is compiled
    "llama-window": dataclasses.replace(LLAMA, sliding_window=5, num_layers=2),
    "pythia": dataclasses.replace(TINY["pythia-sequential"], num_layers=2),
    "gptj": dataclasses.replace(
        PYTHIA, family="gptj", num_layers=2, attention_bias=False, unembed_bias=True
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(decoder, params, tokens, last, edits):
    _, logits = decoder.apply(params, tokens, last, edits, method="read")
    return jax.nn.log_softmax(logits)


def looped(model: Model, texts, answers, outputs) -> tuple[np.ndarray, np.ndarray]:
    """Untouched [N] and patched [N, L, H], by L x H forward passes with one edit each."""
    tokens, last = model.tokenizer.pad(texts)
    rows = np.arange(len(texts))

    def probs(layer: int | None, head: int) -> np.ndarray:
        # Untouched: a head becomes itself plus nothing, so that one program is compiled.
        edit = replace(
            outputs[layer or 0, head],
            layer=np.int32(layer or 0),
            position=last,
            site="head",
            head=np.int32(head),
        )
        edits = () if layer is None else edit
        found = _log_probs(model.decoder, model.params, tokens, last, edits)
        return np.exp(np.asarray(found, np.float64))[rows, answers]

    layers, heads = outputs.shape[:2]
    patched = [[probs(layer, head) for head in range(heads)] for layer in range(layers)]
    return probs(None, 0), np.moveaxis(np.array(patched), -1, 0)


def drawn(model: Model) -> tuple[list[list[int]], list[int], np.ndarray]:
    """Texts of many lengths, answers, and outputs of heads."""
    c, rng = model.config, np.random.RandomState(5)
    texts = [rng.randint(0, c.vocab_size, n).tolist() for n in (9, 1, 14, 6)]
    answers = rng.randint(0, c.vocab_size, 4).tolist()
    outputs = rng.standard_normal((c.num_layers, c.num_heads, c.head_dim))
    return texts, answers, outputs.astype(np.float32)


@pytest.mark.parametrize("name", first_is_quick(MODELS))
def test_the_map_is_the_loop_of_single_patches_on_every_family(name, tokenizer):
    model = model_of(MODELS[name], tokenizer)
    texts, answers, outputs = drawn(model)
    found = map_heads(model, texts, answers, outputs, batch_size=4)
    untouched, patched = looped(model, texts, answers, outputs)
    np.testing.assert_allclose(found.untouched, untouched, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.patched, patched, rtol=1e-5, atol=1e-7)
    change = np.abs(patched - untouched[:, None, None]).max(axis=0)
    assert (change > 1e-6).all(), "a head that changes nothing tests nothing"
    effects = (patched - untouched[:, None, None]).mean(axis=0)
    np.testing.assert_allclose(found.effects(), effects, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return model_of(MODELS["gptj"], tokenizer)


def test_patching_a_prompts_own_outputs_changes_nothing(model):
    texts, answers, _ = drawn(model)
    texts = texts[2:3] * 4  # all the same, in a shape that is compiled already
    own = model.read(texts, site="head")[0]
    found = map_heads(model, texts, answers, own, batch_size=4)
    same = np.broadcast_to(found.untouched[:, None, None], found.patched.shape)
    np.testing.assert_allclose(found.patched, same, rtol=1e-5)


def test_batch_size_order_and_padding_change_nothing(model, monkeypatch):
    texts, answers, outputs = drawn(model)
    found = map_heads(model, texts, answers, outputs, batch_size=4)
    monkeypatch.setattr(head_map, "row_length", lambda tokens: 24)
    again = map_heads(model, texts[::-1], answers[::-1], outputs, batch_size=3)
    np.testing.assert_allclose(again.patched[::-1], found.patched, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(again.untouched[::-1], found.untouched, rtol=1e-5, atol=1e-8)


def test_what_does_not_fit_or_is_not_finite_is_refused(model):
    texts, answers, outputs = drawn(model)
    with pytest.raises(TaskVecError, match="layers x heads x the size of a head"):
        map_heads(model, texts, answers, outputs[:, :-1], 4)
    with pytest.raises(TaskVecError, match="a token id for each prompt"):
        map_heads(model, texts, answers[:-1], outputs, 4)
    with pytest.raises(TaskVecError, match="answer's token id 137 is out of range"):
        map_heads(model, texts, [*answers[:-1], 137], outputs, 4)
    with pytest.raises(TaskVecError, match="there is no text"):
        map_heads(model, [], [], outputs, 4)
    bad = outputs.copy()
    bad[1, 2, 0] = np.nan
    with pytest.raises(TaskVecError, match="of a head of layer 1 that is given is not finite"):
        map_heads(model, texts, answers, bad, 4)
    bad[1, 2] = np.finfo(np.float32).max  # overflows in the output projection
    with pytest.raises(TaskVecError, match=r"after layer \d is not finite"):
        map_heads(model, texts, answers, bad, 4)


def test_the_count_of_operations_is_the_one_by_hand():
    c = LLAMA  # 5 layers, 6 heads of 14, width 42, 131 tokens
    layer, answer = flops.layer_flops(c), flops.answer_flops(c)
    attention = 4 * 6 * 14
    text = 5 * (7 * layer + attention * 28)  # 7 tokens; a token sees itself and those before it
    assert flops.head_loop_flops(c, 7) == (1 + 30) * (text + answer)
    # Copies of layer l run through layer l and those after it: 6 x (5 + 4 + 3 + 2 + 1).
    copies = 6 * 15 * (layer + attention * 7)
    assert flops.head_map_flops(c, 7) == text + copies + 31 * answer


@slow  # minutes of torch
def test_on_the_default_model_the_map_is_torchs_loop_with_hooks_in_a_thirtieth_of_its_time(
    default_model,
):
    """Two layers of the loop, 25 prompts; all heads of ours. CPU time, interleaved, the best of
    each: other work on the machine does not count."""
    import torch

    from experiments.bench.torch_loop import TorchLoop, exported

    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    settings = Settings(num_prompts=25)
    scorer = scorer_of(default_model, TASKS["linguistic_antonyms"], settings)
    prompts = draw_prompts(scorer.fitted, settings, "test")
    outputs = mean_outputs(default_model, [prompt.icl() for prompt in prompts])
    shuffled = [wrong_labels(scorer, prompt, i).icl() for i, prompt in enumerate(prompts)]
    texts = default_model.tokenizer.encode_all(shuffled)
    answers = [default_model.tokenizer.encode(p.query.output)[0] for p in prompts]
    loop = TorchLoop(exported(default_model), logits_to_keep=0)
    tokens, mask = loop.left_padded(texts)
    size, heads = default_model.config.head_dim, default_model.config.num_heads

    def patched(layer: int, head: int) -> np.ndarray:
        def patch(module, inputs):
            (value,) = inputs
            value = value.clone()
            at = slice(head * size, (head + 1) * size)
            value[:, -1, at] = torch.from_numpy(outputs[layer, head])
            return (value,)

        hook = loop.blocks[layer].self_attn.o_proj.register_forward_pre_hook(patch)
        with torch.no_grad():
            logits = loop.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            ).logits[:, -1]
        hook.remove()
        return torch.softmax(logits.double(), -1).numpy()[np.arange(25), answers]

    map_heads(default_model, texts, answers, outputs, batch_size=25)  # compiles
    ours, theirs = [], []
    for layer in (14, 21):
        start = time.process_time()
        found = map_heads(default_model, texts, answers, outputs, batch_size=25)
        ours.append(time.process_time() - start)
        start = time.process_time()
        expected = [patched(layer, head) for head in range(heads)]
        theirs.append(time.process_time() - start)
        np.testing.assert_allclose(found.patched[:, layer].T, expected, atol=1e-5)
    share = min(ours) / (min(theirs) * default_model.config.num_layers)
    print(f"ours {ours}, a layer of the loop {theirs}: 1/{1 / share:.0f} of the loop")
    assert share <= 1 / 30
