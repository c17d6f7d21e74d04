"""The account of work: what is needed is counted once, and what programs do with its padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import LLAMA, model_of

from experiments.bench import hlo
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.vectors import batching, flops, sweep
from taskvec_jax.vectors.account import ACCOUNT, Account
from taskvec_jax.vectors.programs import read_rows
from taskvec_jax.vectors.rows import Rows

SWEEP = range(LLAMA.num_layers)
TEXTS = [[[1, 2, 3, 4], [1, 2, 5]], [[6, 7, 8], [6, 9, 10, 11, 12]]]


@pytest.fixture
def model(tokenizer: Tokenizer) -> Model:
    ACCOUNT._seen.clear()  # another test's rows
    return model_of(LLAMA, tokenizer)


def spent(run) -> Account:
    before = ACCOUNT.now()
    run()
    return ACCOUNT.since(before)


def test_rows_are_needed_once_and_done_as_often_as_they_are_computed(model):
    first = spent(lambda: sweep.read_texts(model, TEXTS, 2))
    assert first.needed == sum(flops.reading_flops(LLAMA, row, 2) for row in TEXTS)
    assert first.again == 0
    assert first.done > first.needed
    again = spent(lambda: sweep.read_texts(model, TEXTS[::-1], 2))
    assert (again.needed, again.again, again.done) == (0, first.needed, first.done)


def test_a_text_that_begins_another_and_an_answer_nobody_asks_for_are_not_needed(model):
    begun = [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    alone = spent(lambda: sweep.read_texts(model, [begun[-1:]], 1)).needed
    answer = flops.answer_flops(LLAMA)
    assert spent(lambda: sweep.read_texts(model, [begun], 1)).needed == alone + 2 * answer
    again = [[*begun, begun[-1]]]
    assert spent(lambda: sweep.read_texts(model, again, 1)).needed == alone + 2 * answer
    fewer = spent(lambda: sweep.read_texts(model, [begun], 1, unanswered=2))
    assert (fewer.needed, fewer.again) == (0, alone), "the same texts were read before"


def test_what_reading_does_is_what_its_compiled_program_says(model):
    """On a CPU, where the last block runs for the tokens that are read alone."""
    rows, length, reads = 3, 24, 2
    token, ends = np.zeros((rows, length), np.int32), np.zeros((rows, reads), np.int32)
    lowered = read_rows.lower(LLAMA, model.params, Rows(token, token, token, ends))
    found = sum(hlo.count(lowered.compile().as_text() or "").flops.values())
    done = rows * flops.read_row_flops(LLAMA, length, reads, reads)
    assert done == pytest.approx(found, rel=1e-9)
    lowered = read_rows.lower(LLAMA, model.params, Rows(token, token, token, ends), unanswered=1)
    fewer = sum(hlo.count(lowered.compile().as_text() or "").flops.values())
    assert rows * flops.read_row_flops(LLAMA, length, reads, 1) == pytest.approx(fewer, rel=1e-9)
    whole = flops.row_flops(LLAMA, length, LLAMA.num_layers, reads)
    assert done < rows * whole


def test_a_batch_that_is_filled_up_is_done_and_not_needed(model):
    few = spent(lambda: sweep.read_texts(model, TEXTS[:1], 1))
    ACCOUNT._seen.clear()
    filled = spent(lambda: sweep.read_texts(model, TEXTS[:1], 4))
    assert filled.needed == few.needed
    assert filled.done == 4 * few.done


def test_a_sweep_needs_what_its_copies_run_and_another_vector_is_other_work(model):
    theta = np.ones((1, LLAMA.num_layers, LLAMA.width), np.float32)
    swept = spent(lambda: sweep.sweep_layers(model, [[1, 2, 3]], theta, 1))
    assert swept.needed == flops.injection_flops(LLAMA, 3, SWEEP)
    other = spent(lambda: sweep.sweep_layers(model, [[1, 2, 3]], 2 * theta, 1))
    assert (other.needed, other.again) == (swept.needed, 0)
    same = spent(lambda: sweep.sweep_layers(model, [[1, 2, 3]], theta, 1))
    assert (same.needed, same.again) == (0, swept.needed)


def test_what_a_wavefront_does_is_that_of_its_rows_group_by_group():
    each, width = flops.layer_flops(LLAMA), LLAMA.num_heads * LLAMA.head_dim
    # 3 layers of 4 + 1 tokens, then 2 of 4 + 5; every token has scores with every other.
    layers = 3 * (5 * each + 4 * 25 * width) + 2 * (9 * each + 4 * 81 * width)
    want = layers + (1 + 5) * flops.answer_flops(LLAMA)
    assert flops.copies_flops(LLAMA, 4, ((3, 1), (5, 5))) == want


@pytest.mark.parametrize(
    ("chunk", "rows", "least", "want"),
    [
        *[(50, 50, 1, 50), (26, 50, 1, 50), (25, 50, 1, 25), (10, 50, 1, 13), (1, 50, 1, 13)],
        *[(10, 48, 8, 16), (9, 48, 8, 16), (1, 1, 1, 1), (1, 8, 8, 8)],
    ],
)
def test_a_chunk_is_filled_up_to_few_sizes_that_hold_it(chunk, rows, least, want):
    dear = 10**12
    assert batching._rows_of(chunk, rows, dear, least) == want
    assert batching._rows_of(chunk, rows, 10**6, least) == rows, "not worth another shape"


def test_copies_apart_have_scores_with_the_text_and_with_themselves():
    each, width = flops.layer_flops(LLAMA), LLAMA.num_heads * LLAMA.head_dim
    # 5 layers of 4 + 3 x 2 tokens: each has scores with the text, and two with its own copy.
    want = 5 * (10 * each + 4 * (10 * 4 + 3 * 2 * 2) * width) + 4 * flops.answer_flops(LLAMA)
    assert flops.copies_flops(LLAMA, 4, ((5, 3),), 2, separate=True) == want


@pytest.mark.parametrize(
    ("count", "most", "want"),
    [(50, 25, [25, 25]), (26, 25, [13, 13]), (50, 13, [13, 13, 13, 11]), (3, 8, [3]), (0, 4, [])],
)
def test_rows_are_cut_into_chunks_of_about_one_size(count, most, want):
    chunks = batching.in_chunks(list(range(count)), most)
    assert list(map(len, chunks)) == want
    assert [row for chunk in chunks for row in chunk] == list(range(count))


def test_a_call_on_a_cpu_works_on_few_rows(monkeypatch):
    allowed = (1, 10, 25, 26, 50, 64)
    assert [batching.rows_a_call(n, 30) for n in allowed] == [1, 10, 25, 13, 25, 22]
    assert [batching.rows_a_call(n, 6) for n in allowed] == list(allowed), "of few tokens many"
    monkeypatch.setattr(batching.jax, "default_backend", lambda: "gpu")
    assert batching.rows_a_call(64, 30) == 64


def test_packed_kernels_do_the_work_of_whole_ones() -> None:
    whole = dataclasses.replace(LLAMA, width=80, mlp_width=96)
    for quantization in ("int8", "int4"):
        packed = dataclasses.replace(whole, quantization=quantization)
        assert flops.layer_flops(packed) == flops.layer_flops(whole)
