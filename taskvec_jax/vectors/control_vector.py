"""A GGUF control vector, which llama.cpp and repeng read.

Such a file has general.architecture "controlvector" and tensors `direction.N`, float32 [D]. What N
means was read from llama.cpp (common.cpp `common_control_vector_load_one`, llama-adapter.cpp
`llama_adapter_cvec::apply` and `apply_to`, llama-graph.cpp `build_cvec`): the loader puts
direction.N at row N - 1 and refuses N = 0; `apply` gives row il - 1 to layer il; each model's graph
adds it to the stream after block il, counted from 0, just before that block's `l_out`. So N is our
layer, the output of block N, and the output of block 0 cannot be written. repeng numbers alike: its
direction.N was read from hidden state N + 1, the output of block N. A slow test holds it against
llama.cpp itself.

Both ADD, at every position of the text and of what is generated.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.vectors.vector_file import write

ARCHITECTURES = {"pythia": "gptneox"}  # GGUF's names, where they are not the family's
FIRST_LAYER = 1  # that llama.cpp has a direction for


def save(
    path: Path,
    directions: Mapping[int, np.ndarray],
    *,
    family: str,
    description: str,
    about: Mapping[str, str],
) -> None:
    """Writes the file whole, or not at all.

    Args:
      directions: layer -> float [D].
      family: of the model's config; readers take it for a hint.
      description, about: what else the file says; keys of `about` are written after "taskvec_jax.".

    Raises:
      TaskVecError: a layer that such a file cannot say, or it cannot be written.
    """
    if min(directions) < FIRST_LAYER:
        raise TaskVecError(
            f"layer {min(directions)} cannot be exported: llama.cpp has no direction there;"
            f" allowed: layers {FIRST_LAYER} and above"
        )
    import gguf  # imports slowly

    handle, scratch = tempfile.mkstemp(suffix=".gguf")  # the package writes to paths alone
    os.close(handle)
    try:
        writer = gguf.GGUFWriter(scratch, "controlvector")
        writer.add_string("controlvector.model_hint", ARCHITECTURES.get(family, family))
        writer.add_uint32("controlvector.layer_count", len(directions))
        writer.add_description(description)
        for key, value in about.items():
            writer.add_string(f"taskvec_jax.{key}", value)
        for layer, row in directions.items():
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(row, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write(path, Path(scratch).read_bytes())
    finally:
        os.unlink(scratch)
