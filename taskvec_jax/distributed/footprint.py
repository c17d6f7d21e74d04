"""Memory that the programs of a layer sweep take on one device, from the arrays that live at once.

A program needs its arguments (parameters, rows), what it carries through the loop over layers, and
at its largest moment the arrays of one part of a layer, or the logits at the end. Which arrays
there are depends on the compiler:

* On a GPU, products are kernels of their own: their results are written to memory, and a layer's
  kernels are first copied out of the stack. Softmax is part of attention's products.
* On a TPU, what is done to each number of a product's result is part of the product, kernels are
  read where they lie, and the residuals that are read are written into the result at once. Arrays
  of up to 32 MiB stay in memory on the chip (seen of v5e's compiler, whose chip has 128 MiB).
* On a CPU, the count is an upper one: larger arrays count more than once.

The compilers' own figures stand beside these in tests/distributed/test_footprint.py.

Shapes, on one device: N tokens of all rows, D width, H heads, G key/value heads, K head size, F MLP
width, V vocabulary, L layers, R places of a row that are read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

from taskvec_jax.distributed.sharding import MeshShape, axes_of, head_axes, split_of
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import leaf_types

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
PLANNED_BATCH = 50  # prompts a call
PROMPT_TOKENS = 128  # of a row: 5 demonstrations, a query and 2 dummy queries, as a rule below 100
QUERY_TOKENS = 16  # of a zero-shot query
READS = 3  # places a row is read at: after the query and after 2 dummy queries
PROGRAMS = ("read", "inject", "graded_read", "graded_inject")
TILE = 8  # a TPU keeps arrays in tiles of 8 x 128 numbers
ON_CHIP = 32 * 2**20  # bytes of the largest array that a TPU keeps on the chip


class RowSizes(NamedTuple):
    """What decides the memory of one row of a layer sweep, beside the model.

    Attributes:
      prompt: tokens of the longest row that is read: demonstrations, query and dummy queries.
      query: tokens of the longest zero-shot query.
      reads: places a row is read at.
    """

    prompt: int = PROMPT_TOKENS
    query: int = QUERY_TOKENS
    reads: int = READS


PLANNED_ROWS = RowSizes()


class _Sizes(NamedTuple):
    """Bytes of the arrays of one layer on one device; of activations float32 unless said."""

    stream: int  # [N, D]
    hidden: int  # [N, F]
    narrow_hidden: int  # [N, F] in the parameter dtype
    attention: int  # queries, keys and values [N, (H + 2 G) K]
    scores: int  # [B, H, T, T]
    logits: int  # [B, R, V]
    residuals: int  # [B, R, L, D] that are read, or [B, L, D] that are written
    mlp_in: int  # one kernel [D, F] as it is kept
    mlp_kernels: int  # how many of the three or two there are
    unpacked: int  # the kernels of one layer in the parameter dtype, where they are quantized


@functools.cache
def parameter_bytes(config: DecoderConfig, devices: int) -> int:
    """Bytes of the parameters that each of some devices along `model` holds.

    As `sharding.SPLITS` says. LLaMA 30B's 52 heads do not divide among 8: two devices each hold the
    same quarter of its attention there.
    """
    return sum(
        leaf.size // shards(config, path, leaf.shape, devices) * leaf.dtype.itemsize
        for path, leaf in leaf_types(config).items()
    )


def shards(config: DecoderConfig, path: str, shape: tuple[int, ...], devices: int) -> int:
    """In how many parts a parameter lies on devices along `model`."""
    split = split_of(config, path, shape, devices)
    return split.shards if split else 1


def program_bytes(
    config: DecoderConfig,
    program: str,
    batch_size: int = PLANNED_BATCH,
    mesh: MeshShape | None = None,
    sizes: RowSizes = PLANNED_ROWS,
    kind: str = "cpu",
) -> int:
    """What one of the sweep's programs needs on each device of a mesh, parameters included.

    Args:
      program: one of `PROGRAMS`: reading rows of demonstrations, or injecting L copies of the last
        token into rows of zero-shot queries; graded: with graded scores.
      kind: of the device: "cpu", "gpu" or "tpu".
    """
    mesh = mesh or MeshShape()
    held = parameter_bytes(config, mesh.model)
    reads, graded = program.endswith("read"), program.startswith("graded")
    if reads:
        tokens, answers = sizes.prompt, sizes.reads
    else:
        tokens, answers = sizes.query + config.num_layers, 1 + config.num_layers
    rows = -(-batch_size // mesh.data)
    read_or_written = sizes.reads if reads else 1  # states of a layer and a row
    s = _sizes(config, rows, tokens, answers, read_or_written, mesh.model, tiled=kind == "tpu")
    if kind == "cpu":
        return held + _on_cpu(s, reads=reads)
    if kind == "tpu":  # beside what is read, or the vectors to be written
        return held + s.residuals + _at_once_on_tpu(config, s, mesh, reads=reads, graded=graded)
    # What is read, twice; or the vectors, and the row of the group before, that copies join.
    beside = 2 * s.residuals if reads else s.residuals + s.stream
    return held + beside + _at_once_on_gpu(config, s, mesh)


def sweep_bytes(
    config: DecoderConfig,
    batch_size: int = PLANNED_BATCH,
    mesh: MeshShape | None = None,
    sizes: RowSizes = PLANNED_ROWS,
    kind: str = "cpu",
) -> int:
    """What a layer sweep needs beside the parameters: the larger of its two programs."""
    most = max(
        program_bytes(config, program, batch_size, mesh, sizes, kind) for program in PROGRAMS
    )
    return most - parameter_bytes(config, (mesh or MeshShape()).model)


def _at_once_on_gpu(c: DecoderConfig, s: _Sizes, mesh: MeshShape) -> int:
    """The largest moment of a GPU's program."""
    gated = s.mlp_kernels > 2
    carried = 2 * s.stream  # before and after attention
    moments = [
        carried + s.attention + s.scores,
        carried + s.narrow_hidden + s.mlp_kernels * s.mlp_in,  # the first product of the MLP
        carried + (2 + gated) * s.narrow_hidden + s.mlp_in,  # before its last one
        s.logits,
    ]
    if mesh.model > 1:  # a sum over devices is written apart from what is summed
        moments.append(carried + s.stream + _normed(c, s))
    return max(moments)


def _at_once_on_tpu(
    c: DecoderConfig, s: _Sizes, mesh: MeshShape, *, reads: bool, graded: bool
) -> int:
    """The largest moment of a TPU's program.

    The largest logit and its place are part of the unembedding, so that logits exist only where
    graded scores want more of them. The row that copies join is gone when the first sum over
    devices begins. The vectors to be written are there once more, in another order, until the last
    copies have joined.
    """
    s = _off_chip(s)
    joined, reordered = (0, 0) if reads else (s.stream, s.residuals)
    normed_after = any("post_norm" in path for path in leaf_types(c))  # a sum, before it is added
    if c.dtype != c.stream_dtype:
        hidden = s.hidden + s.narrow_hidden
    elif normed_after:  # the last product multiplies the two factors as it reads them
        hidden = 2 * s.hidden + 2 * s.stream
    else:  # the hidden layer takes the place of its last factor
        hidden = s.hidden
    moments = [
        joined + s.stream + s.attention + s.scores,
        joined + s.stream + hidden,
        reordered,
        s.logits if graded else 0,
    ]
    if mesh.model > 1:  # each sum over devices beside what is summed; in a parallel block, of two
        sums = 2 if c.parallel_residual or c.family == "gptj" else 1
        moments.append((1 + 2 * sums + normed_after) * s.stream + _normed(c, s))
    return max(moments)


def _off_chip(s: _Sizes) -> _Sizes:
    """The same without the activations that fit on the chip."""
    return s._replace(
        **{
            name: 0
            for name in ("stream", "hidden", "narrow_hidden", "attention", "scores")
            if getattr(s, name) <= ON_CHIP
        }
    )


def _normed(c: DecoderConfig, s: _Sizes) -> int:
    """The normed stream, where it is written: as an operand of float32 products."""
    return s.stream if c.dtype == c.stream_dtype else 0


def _on_cpu(s: _Sizes, *, reads: bool) -> int:
    """The residual stream twice, scores and weights of attention, the MLP's hidden layer three
    times, logits once more than needed; and the residuals that are read."""
    cells = 2 * s.stream + 2 * s.scores + 3 * s.hidden + 3 * s.attention + 2 * s.logits
    return cells + s.unpacked + (s.residuals if reads else 0)


def _sizes(
    c: DecoderConfig,
    rows: int,
    tokens: int,
    answers: int,
    states: int,
    model: int,
    *,
    tiled: bool,
) -> _Sizes:
    wide, narrow = ITEM_BYTES[c.stream_dtype], ITEM_BYTES[c.dtype]
    cells, layers = rows * tokens, c.num_layers
    if tiled:  # the last axis but one is a multiple of 8; which one that is, the compiler chooses
        cells = min(_whole_tiles(rows) * tokens, rows * _whole_tiles(tokens))
        layers = _whole_tiles(layers)

    def part(size: int, over: Mapping[str, int] | None = None) -> int:
        over = axes_of(size, model) if over is None else over
        return size // math.prod(over.values())

    over, kv_over = head_axes(c, model)
    heads, kv_heads = part(c.num_heads, over), part(c.num_kv_heads, kv_over)
    leaves = leaf_types(c)
    mlp = {p: leaf for p, leaf in leaves.items() if "/mlp/" in p and p.endswith("/kernel")}
    path, largest = max(mlp.items(), key=lambda item: item[1].size)
    kept = largest.size // c.num_layers // shards(c, path, largest.shape, model)
    unpacked = 0
    if c.quantization != "none":
        for path, leaf in leaves.items():
            numbers = 2 if leaf.dtype == "uint8" else 1  # in a byte
            if path.startswith("layers/"):
                held = leaf.size // c.num_layers // shards(c, path, leaf.shape, model)
                unpacked += held * numbers * narrow
    return _Sizes(
        stream=cells * c.width * wide,
        hidden=cells * part(c.mlp_width) * wide,
        narrow_hidden=cells * part(c.mlp_width) * narrow,
        attention=cells * (heads + 2 * kv_heads) * c.head_dim * wide,
        scores=rows * heads * tokens**2 * wide,
        logits=rows * answers * part(c.vocab_size) * wide,
        residuals=rows * states * layers * c.width * wide,
        mlp_in=kept * largest.dtype.itemsize,
        mlp_kernels=len(mlp),
        unpacked=unpacked,
    )


def _whole_tiles(size: int) -> int:
    return -(-size // TILE) * TILE
