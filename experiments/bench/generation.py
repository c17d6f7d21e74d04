"""Tokens a second of greedy generation, beside transformers' `generate` on the same weights.

    python -m experiments.bench.generation
    python -m experiments.bench.generation --batch_sizes=1,16 --new_tokens=64 --turns=7

Both continue the same prompts (5 demonstrations of upper-casing, and a query) by the same number of
tokens, with no token that ends a text, in float32. Turns alternate in one process, after one each
that compiles and warms up, so that other work on the machine slows both; the ratio is the median
of the turns' own ratios, with the lowest and the highest. Needs torch.

Beside them stands the roofline of a decode step: the bytes of the weights over the rate at which
this machine reads memory (a sum over an array beyond any cache, measured in the same turns).

Time: 3 minutes (2 cores).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from convert import cli as command
from convert.cli import FLAGS, console
from experiments.bench.turns import ratios
from experiments.run.results import prepare_out, write_json
from taskvec_jax.distributed.plan import weight_bytes
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.generating import generate
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.prompts import fit, sample
from taskvec_jax.tasks import TASKS
from taskvec_jax.transformer.generation import split_layers

TASK = "algorithmic_to_upper"
FLOATS = 1 << 26  # of the array that the memory's rate is measured with: beyond any cache


def main() -> None:
    """Measures every batch size and writes generation.json."""
    try:
        import torch
    except ImportError:
        raise TaskVecError(
            "this compares with torch, which is not here: pip install torch==2.13.0"
        ) from None
    from experiments.bench.torch_loop import TorchLoop, exported

    sizes = [_count("batch_sizes", word) for word in FLAGS.batch_sizes]
    new, turns = FLAGS.new_tokens, FLAGS.turns
    out = prepare_out(FLAGS.out)
    model = load_model(FLAGS.model, "float32")
    loop = TorchLoop(exported(model), logits_to_keep=1)
    prompts, layers = _prompts(model, max(sizes)), split_layers(model.params, len(loop.blocks))
    found = {}
    for size in sizes:
        rows = prompts[:size]

        def ours(rows: list[list[int]] = rows) -> list[list[int]]:
            config, params = model.config, model.params
            return generate(config, params, rows, max_new_tokens=new, eos=(), layers=layers)

        def theirs(rows: list[list[int]] = rows) -> list[list[int]]:
            tokens, mask = loop.left_padded(rows)
            with torch.no_grad():
                made = loop.model.generate(
                    tokens,
                    attention_mask=mask,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                )
            return made[:, tokens.shape[1] :].tolist()

        found[str(size)] = line = compare(ours, theirs, size * new, turns)
        weights = weight_bytes(model.config, "float32")
        line["step_roofline_seconds"] = weights / line["bytes_per_second"]
        line["share_of_roofline"] = line["step_roofline_seconds"] * new / line["our_seconds"]
        console.print(
            f"batch {size}: {line['our_tokens_per_second']:.1f} tokens/s, transformers"
            f" {line['their_tokens_per_second']:.1f}: {line['ratio']:.2f} times"
            f" ({line['lowest']:.2f} to {line['highest']:.2f} in {turns} turns);"
            f" {line['agreement']:.0%} of rows alike; {line['share_of_roofline']:.2f} of what"
            " reading the weights allows",
            markup=False,
        )
    content = {"model": model.name, "new_tokens": new, "turns": turns, "batch_sizes": found}
    write_json(out / "generation.json", content)


def compare(
    ours: Callable[[], list[list[int]]],
    theirs: Callable[[], list[list[int]]],
    tokens: int,
    turns: int,
) -> dict[str, Any]:
    """Alternates the two and takes medians.

    Args:
      tokens: how many each call makes.
    """
    array = jnp.zeros(FLOATS, jnp.float32)
    total = jax.jit(jnp.sum)
    first, second = ours(), theirs()
    total(array).block_until_ready()
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "memory": []}
    for _ in range(turns):
        for name, call in (
            ("ours", ours),
            ("theirs", theirs),
            ("memory", lambda: total(array).block_until_ready()),
        ):
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    found = ratios(times["theirs"], times["ours"])
    our_seconds, their_seconds = (statistics.median(times[k]) for k in ("ours", "theirs"))
    return {
        "ratio": found["median"],
        "lowest": found["lowest"],
        "highest": found["highest"],
        "our_seconds": our_seconds,
        "their_seconds": their_seconds,
        "our_tokens_per_second": tokens / our_seconds,
        "their_tokens_per_second": tokens / their_seconds,
        "agreement": sum(a == b for a, b in zip(first, second, strict=True)) / len(first),
        "bytes_per_second": 4 * FLOATS / min(times["memory"]),
        "seconds": times,
    }


def _prompts(model: Model, count: int) -> list[list[int]]:
    drawn = sample(
        fit(TASKS[TASK], model.tokenizer),
        seed=0,
        split="test",
        count=count,
        num_demonstrations=5,
        num_dummy_queries=1,
    )
    return model.tokenizer.encode_all([prompt.icl() for prompt in drawn])


def _count(flag: str, word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise TaskVecError(f"--{flag}={word}; allowed: whole numbers from 1, with commas between")
    return int(word)


if __name__ == "__main__":
    command.define_model_flags("float32")
    command.define_list("batch_sizes", ["1", "16"], "How many prompts at once.")
    flags.DEFINE_integer("new_tokens", 64, "How many tokens each prompt goes on by.", 1)
    flags.DEFINE_integer("turns", 5, "How often each is timed, in turns.", 1)
    flags.DEFINE_string("out", "results/bench", "Where generation.json is written.")
    command.run(main)
