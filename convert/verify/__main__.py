"""The parity certificate: this model here against the same weights in Hugging Face's own code.

    python -m convert.verify --model=smollm2-135m-instruct
    python -m convert.verify --model=PATH --dtype=float16
    python -m convert.verify --all_families

For every site of the residual stream (embedding, after each block) and for the logits: largest
difference, the same as a share of the largest value there; for the logits also the mean KL
divergence and the overlap of the top ten. In float32, in --dtype (bfloat16 when left out), where
both are held against Hugging Face in float32, and in float64: rounding shrinks with precision, a
real difference does not. A Hugging Face directory is read by transformers itself; anything else is
exported first, so that then the decoder is verified, and the conversion by its round trip.

With --all_families it is a table: random models of odd sizes of every family, made and saved by
transformers, with the largest norm of a difference as a share of the norm of what it differs from
(residual stream of all layers and tokens, logits) in float32, float64 and bfloat16.

Needs torch. Without it the default model is held against numbers that Hugging Face gave
(convert/verify/goldens, made by --make_goldens).

Time: 2 minutes (default model, 2 cores).
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from taskvec_jax.models.loading import load_model

from .. import cli as command
from ..cli import FLAGS
from . import families
from .goldens import GOLDENS, make_goldens
from .report import report


def main() -> None:
    """Verifies the model that the flags name."""
    if FLAGS.all_families:
        for line in families.table_lines(families.all_families()):
            print(line, flush=True)
        return
    if FLAGS.make_goldens:
        model = load_model(FLAGS.model, "float32")
        make_goldens(model, GOLDENS / f"{Path(FLAGS.model).name}.npz")
        return
    report(FLAGS.model, FLAGS.dtype or "bfloat16", FLAGS.revision)


if __name__ == "__main__":
    command.define_model_flags(None)
    flags.DEFINE_bool("all_families", False, "compare random models of every family instead")
    flags.DEFINE_bool("make_goldens", False, "write the numbers of Hugging Face, for maintainers")
    command.run(main)
