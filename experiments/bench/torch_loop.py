"""The paper's way in PyTorch, for the benchmark only: Hugging Face's model, one call a layer.

The demonstrations run in full for every text; the zero-shot query's tokens before its last are
cached, and each layer's injection is a call on the last token alone, with a hook that replaces the
block's output.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from convert import export
from convert.families import FAMILIES
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.config import DecoderConfig

if TYPE_CHECKING:
    from experiments.bench.stages import Part


def exported(model: Model, dtype: str = "float32") -> Any:
    """Hugging Face's model around our weights."""
    with tempfile.TemporaryDirectory() as directory:
        export.export(model.config, model.params, model.tokenizer, Path(directory))
        kind = getattr(torch, dtype)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=kind).eval()


def compile_blocks(loop: TorchLoop) -> None:
    """Puts torch.compile round each block; hooks stay outside of what is compiled."""
    torch._dynamo.config.recompile_limit = 8 * len(loop.blocks)  # each block is another program
    for block in loop.blocks:
        block.forward = torch.compile(block.forward, dynamic=True)


class TorchLoop:
    """A layer loop over Hugging Face's model.

    Args:
      model: theirs.
      logits_to_keep: of how many last tokens logits are computed; 0: of every token, as the
        paper's code does.
    """

    def __init__(self, model: Any, logits_to_keep: int) -> None:
        self.model = model
        self.blocks: Any = (
            self.model.model.layers if hasattr(self.model, "model") else self.model.gpt_neox.layers
        )
        self.pad = 0
        self.logits_to_keep = logits_to_keep

    def left_padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask [B, T], padded on the left as the paper's code does."""
        length = max(map(len, rows))
        tokens = [[self.pad] * (length - len(row)) + row for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(tokens), torch.tensor(mask)

    def whole(self, rows: list[list[int]]) -> dict[str, Any]:
        """What the model is called with to run texts whole, without a cache."""
        tokens, mask = self.left_padded(rows)
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "use_cache": False,
            "logits_to_keep": self.logits_to_keep,
        }

    def read(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Residuals [B, L, D] at the last token and the next token [B]."""
        kept: list[torch.Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            kept.append(hidden[:, -1].float())

        hooks = [block.register_forward_hook(keep) for block in self.blocks]
        logits = self.model(**self.whole(rows)).logits[:, -1]
        for hook in hooks:
            hook.remove()
        return torch.stack(kept, dim=1).numpy(), logits.argmax(-1).numpy()

    def inject(self, rows: list[list[int]], theta: np.ndarray, layers: list[int]) -> np.ndarray:
        """Next tokens [B, layers] with theta [B, L, D] injected, from one prefix cache."""
        vectors = torch.from_numpy(theta).to(self.model.dtype)
        return self.swept(*self.left_padded(rows), vectors, layers).numpy()

    def swept(
        self, tokens: torch.Tensor, mask: torch.Tensor, vectors: torch.Tensor, layers: list[int]
    ) -> torch.Tensor:
        """Next tokens [B, layers] of padded rows [B, T] with vectors [B, L, D] injected."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        length = tokens.shape[1]
        cache: Any = None
        if length > 1:
            cache = self.model(
                input_ids=tokens[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions[:, :-1],
                use_cache=True,
                logits_to_keep=self.logits_to_keep,
            ).past_key_values
        answers = []
        for layer in layers:

            def replace(module: Any, args: Any, output: Any, layer: int = layer) -> Any:
                if isinstance(output, tuple):
                    return (vectors[:, layer][:, None], *output[1:])
                return vectors[:, layer][:, None].expand_as(output)

            hook = self.blocks[layer].register_forward_hook(replace)
            logits = self.model(
                input_ids=tokens[:, -1:],
                attention_mask=mask,
                position_ids=positions[:, -1:],
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits[:, -1]
            hook.remove()
            if cache is not None:
                cache.crop(-1)
            answers.append(logits.argmax(-1))
        return torch.stack(answers, dim=1)


def run(loop: TorchLoop, part: Part, batch_size: int) -> tuple[Any, Any, Any, int]:
    """One task: ICL answers [N], dev answers [N, L], test answers [N] and the layer they used."""
    half, dummies = part.half, len(part.texts[0])
    theta, icl, swept, test = [], [], [], []
    with torch.no_grad():
        for i in range(0, len(part.texts), batch_size):
            rows = part.texts[i : i + batch_size]
            read = [loop.read([row[d] for row in rows])[0] for d in range(dummies)]
            theta.append(np.mean(read, axis=0))
        for i in range(half, len(part.texts), batch_size):
            icl.append(loop.read([row[-1] for row in part.texts[i : i + batch_size]])[1])
        vectors = np.concatenate(theta)
        every = list(range(vectors.shape[1]))
        for i in range(0, half, batch_size):
            rows = slice(i, min(half, i + batch_size))
            swept.append(loop.inject(part.queries[rows], vectors[rows], every))
        dev_answers = np.concatenate(swept)
        layer = part.choose_layer(dev_answers)
        for i in range(half, 2 * half, batch_size):
            rows = slice(i, min(2 * half, i + batch_size))
            test.append(loop.inject(part.queries[rows], vectors[rows], [layer])[:, 0])
    return np.concatenate(icl), dev_answers, np.concatenate(test), layer


def random_loop_seconds(
    config: DecoderConfig, rows: int, length: int, repeats: int
) -> float | None:
    """Seconds of a layer loop over random tokens, in bfloat16, on the first GPU that torch sees.

    The model has Hugging Face's code, this config's shape and random weights. Every row has
    `length` tokens; all but the last are read once and cached, and the last is run once for each
    layer with the output of that layer replaced.

    Returns:
      The median of some turns after the first; None without a GPU.
    """
    if not torch.cuda.is_available():
        return None
    raw = FAMILIES[config.family].config_to_hf(config)
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**raw), dtype=torch.bfloat16
        ).eval()
        tokens = torch.randint(0, config.vocab_size, (rows, length))
        vectors = torch.randn(rows, config.num_layers, config.width, dtype=torch.bfloat16)
    loop = TorchLoop(model, 1)
    turns = []
    with torch.no_grad():
        for _ in range(1 + repeats):
            torch.cuda.synchronize()
            start = time.perf_counter()
            loop.swept(tokens, torch.ones_like(tokens), vectors, list(range(config.num_layers)))
            torch.cuda.synchronize()
            turns.append(time.perf_counter() - start)
    return statistics.median(turns[1:])
