"""The paper's experiment as one writes it with nnsight, for the benchmark only.

A trace for each batch of texts that is read, and one for each layer that theta is written after,
each over the whole text: what a user of the library gets without a cache of his own.
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
        of_blocks = self.traced.model.layers if hasattr(model, "model") else None
        self.envoys: Any = of_blocks or self.traced.gpt_neox.layers

    def given(self, rows: list[list[int]]) -> dict[str, Any]:
        """What the model is called with."""
        tokens, mask = self.left_padded(rows)
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "use_cache": False,
            "logits_to_keep": self.logits_to_keep,
        }

    def read(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """As `TorchLoop.read`."""
        with self.traced.trace(**self.given(rows)):
            kept = nnsight.save([])
            for envoy in self.envoys:
                kept.append(envoy.output[:, -1])
            said = self.traced.output.logits[:, -1].argmax(-1).save()
        return torch.stack(kept, dim=1).numpy(), said.numpy()

    def inject(self, rows: list[list[int]], theta: np.ndarray, layers: list[int]) -> np.ndarray:
        """As `TorchLoop.inject`, a trace a layer."""
        vectors, given = torch.from_numpy(theta), self.given(rows)
        answers = []
        for number, layer in enumerate(layers):
            vector = vectors[:, number if vectors.shape[1] == len(layers) else layer]
            with self.traced.trace(**given):
                self.envoys[layer].output[:, -1] = vector
                said = self.traced.output.logits[:, -1].argmax(-1).save()
            answers.append(said)
        return torch.stack(answers, dim=1).numpy()
