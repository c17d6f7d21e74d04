"""Our parameters -> a Hugging Face directory again: the tables of the families, read backwards.

    python -m convert.export --model=smollm2-135m-instruct --out=/tmp/smollm2

The directory (config.json, model.safetensors, tokenizer.json) loads in transformers and here; in
the dtype the model is in, bit for bit. A Mistral model comes back as the LLaMA it computes.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from taskvec_jax.config import DecoderConfig
from taskvec_jax.decoder import Params
from taskvec_jax.errors import TaskVecError
from taskvec_jax.loading import load_model
from taskvec_jax.tokenizer import Tokenizer

from . import HF_FAMILIES, command, safetensors_file
from .family import Family
from .rules import from_tree

FAMILIES: dict[str, Family] = {  # family of our config ->
    "llama": HF_FAMILIES["llama"],
    "pythia": HF_FAMILIES["gpt_neox"],
    "gptj": HF_FAMILIES["gptj"],
}


def export(config: DecoderConfig, params: Params, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes a model as a Hugging Face directory.

    Args:
      config: its shapes; the dtype says how the weights are written.
      params: {"params": ...}.
      tokenizer: the model's own.
      directory: made if it is not there; what it holds of the same names is replaced.

    Raises:
      TaskVecError: a model that Hugging Face has no words for, or no room to write.
    """
    family = FAMILIES[config.family]
    raw = family.config_to_hf(config) | {"dtype": config.dtype}
    if config.family == "pythia" and not config.mlp_bias:
        raise TaskVecError("a GPT-NeoX without biases in its MLP cannot be a Hugging Face model")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        tokenizer.save(directory / "tokenizer.json")
        (directory / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n"
        )
    except OSError as error:
        raise TaskVecError(
            f"{directory}: cannot be written ({error.strerror}); choose another directory"
        ) from None
    tensors = from_tree(family.hf, config, params)
    safetensors_file.write(directory / "model.safetensors", config.dtype, tensors)


def main() -> None:
    """Exports the model the flags ask for."""
    model = load_model(command.FLAGS.model, command.FLAGS.dtype or "float32")
    out = Path(command.FLAGS.out)
    export(model.config, model.params, model.tokenizer, out)
    command.console.print(f"wrote {out}")


if __name__ == "__main__":
    command.define_model_flags(None)
    flags.DEFINE_string("out", None, "directory to write", required=True)
    command.run(main)
