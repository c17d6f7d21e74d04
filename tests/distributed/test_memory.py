"""Batches fit by themselves: counted beforehand, halved where the count was wrong."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest
from conftest import LLAMA, model_of

from taskvec_jax.distributed import plan
from taskvec_jax.distributed.footprint import parameter_bytes
from taskvec_jax.distributed.targets import SHARE
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.measuring import longest_rows
from taskvec_jax.evaluation.reading import MOST_ASSUMED, draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import SMALL_MODEL
from taskvec_jax.prompting.prompts import fit
from taskvec_jax.tasks import TASKS
from taskvec_jax.transformer.decoder import Decoder
from taskvec_jax.vectors import batching, sweep
from taskvec_jax.vectors.compiled_memory import compiled_bytes, largest_compiled_batch
from taskvec_jax.vectors.programs import inject_rows, read_rows
from taskvec_jax.vectors.rows import Rows, tree_length

MESSAGE = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"


@pytest.fixture
def model(tokenizer, monkeypatch) -> Model:
    monkeypatch.setattr(batching, "_fitting", {})
    monkeypatch.setattr(sweep, "TREE_STEP", 16)
    monkeypatch.setattr(sweep, "SHORT_TREE", 0)
    return model_of(LLAMA, tokenizer)


def refusing(program, most: int, calls: list[int]):
    """A program whose device has no memory for more than `most` rows."""

    def run(config, params, rows, *rest, **more):
        count = len(rows.tokens if isinstance(rows, Rows) else rows)
        calls.append(count)
        if count > most:
            raise jax.errors.JaxRuntimeError(MESSAGE)
        return program(config, params, rows, *rest, **more)

    return run


def work(model: Model, batch_size: int) -> tuple[np.ndarray, ...]:
    rng = np.random.RandomState(1)
    texts = [[rng.randint(0, 131, n).tolist()] for n in (7, 9, 3, 5, 11, 8, 2)]
    residuals, read = sweep.read_texts(model, texts, batch_size)
    queries = [row[0][:4] for row in texts]
    swept = sweep.sweep_layers(model, queries, residuals[:, 0], batch_size)
    return residuals, *read[:2], *swept[:2]


def test_out_of_memory_halves_the_rows_and_changes_no_result(model, monkeypatch, caplog):
    want = work(model, 6)
    read, injected = [], []
    monkeypatch.setattr(sweep, "read_rows", refusing(read_rows, 2, read))
    monkeypatch.setattr(sweep, "inject_rows", refusing(inject_rows, 4, injected))
    with caplog.at_level(logging.WARNING):
        got = work(model, 6)
    assert read == [6, 3, *[1] * 7]
    assert injected == [6, 3, 3, 3]
    assert [record.message for record in caplog.records] == [
        "out of memory: reading goes on with 3 prompts a call",
        "out of memory: reading goes on with 1 prompts a call",
        "out of memory: injecting goes on with 3 prompts a call",
    ]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    read.clear()
    work(model, 6)
    assert read == [1] * 7, "what fitted is remembered"


def test_one_row_that_does_not_fit_is_refused_and_other_errors_pass(model, monkeypatch):
    monkeypatch.setattr(sweep, "read_rows", refusing(read_rows, 0, []))
    with pytest.raises(TaskVecError, match="one prompt at a time does not fit"):
        sweep.read_texts(model, [[[1, 2]]], 4)

    def broken(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(sweep, "read_rows", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        sweep.read_texts(model, [[[1, 2]]], 4)


def test_memory_to_use_is_that_of_the_device_or_what_is_free(monkeypatch):
    monkeypatch.setattr(plan, "_free_bytes", lambda: 10e9)
    devices = len(jax.local_devices())
    want = 5e9 + plan.RUNTIME_BYTES + plan.FREE_SHARE * 10e9 / devices
    assert plan.memory_to_use(int(5e9)) == want

    class Accelerator:
        platform = "gpu"

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": int(60e9)}

    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator()])
    assert plan.memory_to_use(int(5e9)) == SHARE * 60e9


def test_the_longest_rows_are_those_of_the_prompts_that_are_drawn():
    model, task = load_model(SMALL_MODEL), TASKS["algorithmic_list_first"]
    settings = Settings(num_prompts=15, num_demonstrations=4, num_dummy_queries=3)
    fitted = fit(task, model.tokenizer)
    encode = model.tokenizer.encode_all
    prompts = [p for split in ("dev", "test") for p in draw_prompts(fitted, settings, split)]
    rows = [encode([*p.dummies(), p.icl()]) for p in prompts]
    longest, query, reads = longest_rows(model, [task], settings)
    assert longest == max(map(tree_length, rows)) + MOST_ASSUMED  # of an answer
    assert query == max(len(encode([p.zero_shot()])[0]) for p in prompts)
    assert reads == 3 + 1 + MOST_ASSUMED


def test_the_batch_follows_the_length_of_prompts_and_the_places_read():
    def batch(prompt: int, query: int = 9, reads: int = 3) -> int:
        sizes = plan.RowSizes(prompt, query, reads)
        return plan.largest_batch(LLAMA, 0.62e9, 1000, None, sizes)

    batches = [batch(prompt) for prompt in (64, 128, 256, 512)]
    assert batches == sorted(batches, reverse=True)
    # Attention scores grow with the square of the length, and outweigh all else at the end.
    assert batches[2] / batches[3] > 3
    assert batch(64, query=300) < batch(64)
    assert batch(8, reads=900) < batch(8)
    with pytest.raises(TaskVecError, match=r"one prompt of 4000 tokens need .* fewer demonstra"):
        batch(4000)


def test_the_count_is_an_upper_bound_of_what_the_compiler_takes_for_long_rows():
    """Temporary memory and results of the compiled program, by the compiler itself."""
    rows, length, reads = 4, 384, 3
    params = jax.eval_shape(
        lambda: Decoder(LLAMA).init(jax.random.key(0), np.zeros((1, 1), np.int32))
    )
    token = np.zeros((rows, length), np.int32)
    ends = np.zeros((rows, reads), np.int32)
    lowered = read_rows.lower(LLAMA, params, Rows(token, token, token, ends))
    needs = lowered.compile().memory_analysis()
    assert needs is not None
    taken = needs.temp_size_in_bytes + needs.output_size_in_bytes
    counted = plan.sweep_bytes(LLAMA, rows, None, plan.RowSizes(length, 8, reads))
    assert 0.4 * counted < taken <= counted


def test_prompts_beyond_the_context_are_refused_before_anything_runs():
    settings = Settings(num_prompts=3, num_demonstrations=120)
    with pytest.raises(TaskVecError, match="this model reads at most 256, its context length"):
        longest_rows(load_model(SMALL_MODEL), [TASKS["algorithmic_list_first"]], settings)


def test_on_an_accelerator_the_compiler_says_how_many_prompts_fit(model):
    tried = []

    def needs(_, rows: int, sizes: plan.RowSizes) -> float:
        tried.append(rows)
        return held + 1000.0 * rows + 300.0  # a little that does not grow

    held = parameter_bytes(model.config, 1)
    most = largest_compiled_batch(model, held + 20_000, 50, plan.RowSizes(), needs)
    assert most * 1000 + 300 <= 20_000 < (most + 2) * 1000 + 300
    assert len(tried) <= 3
    tried.clear()
    assert largest_compiled_batch(model, held + 1e6, 50, plan.RowSizes(), needs) == 50
    assert tried == [50]
    assert largest_compiled_batch(model, 0.0, 50, plan.RowSizes(), needs) == 1

    def refused(_, rows: int, sizes: plan.RowSizes) -> float:
        return float("inf") if rows > 10 else 0.0

    assert 1 <= largest_compiled_batch(model, held + 1e6, 50, plan.RowSizes(), refused) <= 10


def test_the_compilers_figure_is_of_both_programs_with_all_they_hold(model):
    sizes = plan.RowSizes(24, 4, 3)
    few, many = (compiled_bytes(model, rows, sizes) for rows in (2, 8))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert held < few < many < held + 5 * (few - held)
