"""What transformers, with torch, computes on the texts of the certificate."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import taskvec_jax.models.checkpoint as checkpoint
from taskvec_jax.models.model import Model

from ..export import export
from .certificate import Run


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Lets transformers compute in float64 throughout, if that is the dtype.

    Its norms, softmax, rotary angles and the divisors of "longrope" are cast to float32 whatever
    the model's dtype, which would hide a difference of 1e-7 behind the reference's own rounding.
    """
    if dtype != "float64":
        yield
        return
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            del types
            name = getattr(func, "__name__", "")
            if name == "float":
                return args[0].double()
            if name in ("to", "softmax", "arange", "tensor"):
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {
                    k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()
                }
            return func(*args, **(kwargs or {}))

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Wide():
            yield
    finally:
        torch.set_default_dtype(before)


def run_hugging_face(directory: Path, dtype: str, rows: Sequence[Sequence[int]]) -> Run:
    """transformers on a directory; residuals by hooks on its blocks."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with _precision(dtype), torch.no_grad():
        return _run_hugging_face(directory, dtype, rows)


def _run_hugging_face(directory: Path, dtype: str, rows: Sequence[Sequence[int]]) -> Run:
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), local_files_only=True
    ).eval()
    inner: Any = theirs.base_model
    blocks = inner.h if hasattr(inner, "h") else inner.layers
    kept: list[np.ndarray] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        del module, inputs
        value = output[0] if isinstance(output, tuple) else output
        kept.append(value[0].detach().double().numpy())

    def keep_first(module: Any, inputs: Any) -> None:  # scaled, and with learned positions
        keep(module, (), inputs[0])

    handles = [blocks[0].register_forward_pre_hook(keep_first)]
    handles += [module.register_forward_hook(keep) for module in blocks]
    run = Run([], [])
    for row in rows:
        kept.clear()
        logits = theirs(torch.tensor([list(row)])).logits[0]
        run.sites.append(np.stack(kept))
        run.logits.append(logits.double().numpy())
    for handle in handles:
        handle.remove()
    return run


@contextlib.contextmanager
def reference_directory(name_or_path: str, model: Model) -> Iterator[Path]:
    """A directory that transformers reads: the model's own, or one exported for the occasion."""
    path = Path(name_or_path)
    if (path / "config.json").is_file() and not checkpoint.is_checkpoint(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        export(model.config, model.params, model.tokenizer, Path(scratch))
        yield Path(scratch)


def write_random_model(raw: dict[str, Any], kind: str, directory: Path) -> None:
    """A random model in which every tensor matters, as transformers saves it, and a tokenizer."""
    import tokenizers
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    without = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = transformers.AutoConfig.for_model(kind, **json.loads(json.dumps({**without, **raw})))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(0.0, 0.15)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor += 1.0
    model.save_pretrained(directory)
    vocab = {f"w{i}": i for i in range(config.vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(directory / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
