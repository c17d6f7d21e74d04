"""The paper's experiment as one writes it with nnsight, for the benchmark only.

A trace for each batch of texts that is read, and one for each layer that theta is written after,
each over the whole text: what one gets from the library without adding a cache.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from experiments.bench.torch_loop import TorchLoop

# By its name, because it is none of the packages that the project or its tests install.
nnsight: Any = importlib.import_module("nnsight")


class NnsightLoop(TorchLoop):
    """`TorchLoop` with traces instead of hooks and a cache.

    Args:
      model: Hugging Face's.
      logits_to_keep: of how many last tokens logits are computed; 0: of every token.
    """

    def __init__(self, model: Any, logits_to_keep: int) -> None:
        super().__init__(model, logits_to_keep)
        self.traced: Any = nnsight.NNsight(model)
        decoder = self.traced.model if hasattr(model, "model") else self.traced.gpt_neox
        self.envoys: Any = decoder.layers

    def read(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """As `TorchLoop.read`."""
        with self.traced.trace(**self.whole(rows)):
            kept = nnsight.save([])
            for envoy in self.envoys:
                kept.append(envoy.output[:, -1])
            said = self.traced.output.logits[:, -1].argmax(-1).save()
        return torch.stack(kept, dim=1).numpy(), said.numpy()

    def inject(self, rows: list[list[int]], theta: np.ndarray, layers: list[int]) -> np.ndarray:
        """As `TorchLoop.inject`, a trace a layer."""
        vectors, given = torch.from_numpy(theta), self.whole(rows)
        answers = []
        for layer in layers:
            vector = vectors[:, layer]
            with self.traced.trace(**given):
                self.envoys[layer].output[:, -1] = vector
                said = self.traced.output.logits[:, -1].argmax(-1).save()
            answers.append(said)
        return torch.stack(answers, dim=1).numpy()
