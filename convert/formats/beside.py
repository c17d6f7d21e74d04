"""Refuses what changes a model beyond its plain tensors: adapters, quantized weights.

None of these is applied. Each is refused by its own name, with what to do instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskvec_jax.errors import TaskVecError

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # and PEFT's config beside them
MERGE = (
    "Merge it and give the merged directory: peft.AutoPeftModelForCausalLM.from_pretrained(DIR)"
    ".merge_and_unload().save_pretrained(MERGED), with the tokenizer's files copied there"
)
_ORIGINAL = (
    "quantized Hugging Face weights are not supported. Use the original weights of this model, in"
    " 16 or 32 bits, or a GGUF file of it"
)
_QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
_QUANTIZED_NAMES = {  # how the tensors are called that each way of quantizing adds
    r"\.weight_scale_inv$": "FP8",
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(SCB|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$": "bitsandbytes",
    r"\.weight_(packed|shape|zero_point|g_idx)$": "compressed-tensors",
    r"\.(weight_scale|input_scale)$": "FP8 or compressed-tensors",
    r"_(blocks|scales)$": "MXFP4",
    r"\.(W_q|_data|_scale|_qdata)$": "HQQ, Quanto or torchao",
}
_ENCODER = "the image or audio encoder of a multimodal model; give the language model's own file"
# What a GGUF file holds that is no model: general.type or general.architecture ->
_NO_MODEL = {
    "adapter": "a LoRA adapter; merge it into its model with llama.cpp's llama-export-lora, and"
    " give the merged file",
    "controlvector": "a control vector, which llama.cpp adds to a model; give the model's own file",
    "imatrix": "an importance matrix, which llama.cpp quantizes models with; give the model's own"
    " file",
    "mmproj": _ENCODER,
    "clip": _ENCODER,
}


def refuse_adapter(directory: Path, name: str | None = None) -> None:
    """Refuses a directory with a PEFT adapter: transformers (with peft) would apply it.

    Args:
      directory: of the model, or of the adapter alone.
      name: of the model, for the message; None: the directory.

    Raises:
      TaskVecError: it says how the adapter is merged.
    """
    refuse_adapter_files(
        [p for p in (ADAPTER_CONFIG, *_ADAPTERS) if (directory / p).is_file()],
        name or str(directory),
    )


def refuse_adapter_files(names: Iterable[str], where: str) -> None:
    """Refuses these files if an adapter is among them; see `refuse_adapter`."""
    if found := [name for name in names if name in (ADAPTER_CONFIG, *_ADAPTERS)]:
        raise TaskVecError(
            f"{where}: holds an adapter ({', '.join(found)}), which changes the model and is not"
            f" applied here. {MERGE}; or remove the adapter's files to use the model without it"
        )


def refuse_quantized_config(raw: Mapping[str, Any], where: str) -> None:
    """Refuses a config.json that says that the weights are quantized.

    Raises:
      TaskVecError: it names the method.
    """
    for key in _QUANTIZED_KEYS:
        value = raw.get(key)
        if value is None:
            continue
        method = value.get("quant_method") if isinstance(value, Mapping) else None
        bits = [
            f"{n}-bit"
            for n in (4, 8)
            if isinstance(value, Mapping) and value.get(f"load_in_{n}bit")
        ]
        named = (
            method if isinstance(method, str) else "bitsandbytes" if bits else "an unnamed method"
        )
        shown = " ".join([_SPELLED.get(named, named)[:80], *bits])
        raise TaskVecError(f"{where}: the weights are quantized by {shown} ({key}); {_ORIGINAL}")


_SPELLED = {"fp8": "FP8", "gptq": "GPTQ", "awq": "AWQ", "mxfp4": "MXFP4", "nvfp4": "NVFP4"}


def refuse_quantized_tensors(names: Iterable[str], where: str) -> None:
    """Refuses tensors that only quantized weights have, where config.json says nothing of it.

    Raises:
      TaskVecError: it names the method and a tensor.
    """
    for name in names:
        for pattern, method in _QUANTIZED_NAMES.items():
            if re.search(pattern, name):
                raise TaskVecError(
                    f"{where}: the weights are quantized by {method} (tensor {name}); {_ORIGINAL}"
                )


def refuse_gguf_without_model(meta: Mapping[str, Any], num_tensors: int, where: str) -> None:
    """Refuses a GGUF file that holds something else than a model.

    Raises:
      TaskVecError: it says what the file is.
    """
    for key in ("general.type", "general.architecture"):
        kind = meta.get(key)
        if isinstance(kind, str) and kind in _NO_MODEL:
            raise TaskVecError(f"{where}: is {_NO_MODEL[kind]} ({key} is {kind!r})")
    if any(key.startswith("adapter.") for key in meta):
        raise TaskVecError(f"{where}: is {_NO_MODEL['adapter']} (it has keys adapter.*)")
    kind = meta.get("general.type", "model")
    if kind != "model":
        raise TaskVecError(f"{where}: general.type is {str(kind)[:80]!r}; allowed: 'model'")
    if not num_tensors:
        raise TaskVecError(
            f"{where}: holds no tensors, only metadata and perhaps a tokenizer; give the file of"
            " this model that has the weights"
        )
