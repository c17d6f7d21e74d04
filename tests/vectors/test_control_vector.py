"""An exported control vector moves llama.cpp as `add(position="all")` moves the model here.

    pip install xllamacpp
    TASKVEC_SLOW_TESTS=1 python -m pytest tests/vectors/test_control_vector.py

Measured on the default model's own GGUF (Q4_1; llama.cpp also rounds activations to 8 bits, and its
plain logits correlate to .9994): .9906, .9949 and .9994 after layers 1, 9 and 29; .63 to .86 with
the same vector one layer off (2026-11-26).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from llama_cpp import LlamaCpp
from slow import slow

from taskvec_jax import TaskVector, add
from taskvec_jax.models.model import Model

OPTIMISED = True
TEXT = "example: hot-> cold\nexample: up-> down\nexample: fast->"


@slow  # needs llama.cpp
def test_llama_cpp_adds_an_exported_vector_after_the_layer_it_is_of(
    default_model: Model, default_gguf: Path, tmp_path: Path
):
    config = default_model.config
    ids = default_model.tokenizer.encode(TEXT)
    plain, states = default_model.logits([ids])[0], default_model.read([ids])[0]
    rng = np.random.RandomState(0)
    with LlamaCpp(default_gguf) as llama:
        theirs = llama.logits(ids, config.vocab_size)
        assert np.corrcoef(theirs, plain)[0, 1] > 0.99
        for layer in (1, 9, config.num_layers - 1):
            vector = rng.standard_normal(config.width).astype(np.float32)
            vector *= 0.5 * np.linalg.norm(states[layer]) / np.linalg.norm(vector)
            kept = TaskVector(vector, layer, operation="add", position="all")
            path = kept.export(tmp_path / f"{layer}.gguf")
            moved = llama.logits(ids, config.vocab_size, path, config.num_layers) - theirs
            found = {}
            for at in {layer - 1, layer, layer + 1} & {*range(config.num_layers)}:
                edit = add(vector, layer=at, position="all")
                ours = default_model.logits([ids], edits=edit)[0] - plain
                found[at] = np.corrcoef(moved, ours)[0, 1]
            assert found[layer] > 0.99, found
            assert all(value < 0.95 for at, value in found.items() if at != layer), found
