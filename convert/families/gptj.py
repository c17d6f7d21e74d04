"""GPT-J weights: Hugging Face names, and the config that comes with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig

from .family import Family
from .hf_keys import GELUS, gpt2_keys
from .layouts import (
    heads_in,
    heads_out,
    same,
    transposed,
    unheads_in,
    unheads_out,
    unsame,
    untransposed,
)
from .rules import Rule

# Buffers that old releases wrote beside the weights.
_IGNORED = re.compile(r"attn\.(masked_)?bias$|attn\.embed_positions$")

_B = "transformer.h.{layer}."

HF: tuple[Rule, ...] = (
    Rule("transformer.wte.weight", ("embed/embedding",), same, unsame),
    Rule(_B + "ln_1.weight", ("layers/attn_norm/scale",), same, unsame),
    Rule(_B + "ln_1.bias", ("layers/attn_norm/bias",), same, unsame),
    Rule(_B + "attn.q_proj.weight", ("layers/attn/query/kernel",), heads_out, unheads_out),
    Rule(_B + "attn.k_proj.weight", ("layers/attn/key/kernel",), heads_out, unheads_out),
    Rule(_B + "attn.v_proj.weight", ("layers/attn/value/kernel",), heads_out, unheads_out),
    Rule(_B + "attn.out_proj.weight", ("layers/attn/out/kernel",), heads_in, unheads_in),
    Rule(_B + "mlp.fc_in.weight", ("layers/mlp/up/kernel",), transposed, untransposed),
    Rule(_B + "mlp.fc_in.bias", ("layers/mlp/up/bias",), same, unsame),
    Rule(_B + "mlp.fc_out.weight", ("layers/mlp/down/kernel",), transposed, untransposed),
    Rule(_B + "mlp.fc_out.bias", ("layers/mlp/down/bias",), same, unsame),
    Rule("transformer.ln_f.weight", ("final_norm/scale",), same, unsame),
    Rule("transformer.ln_f.bias", ("final_norm/bias",), same, unsame),
    Rule("lm_head.weight", ("unembed/kernel",), transposed, untransposed),
    Rule("lm_head.bias", ("unembed/bias",), same, unsame),
)

# model_type -> the keys that transformers reads for it beside those of every model (read_keys.py).
MODEL_TYPES = {
    "gptj": (
        "activation_function attn_pdrop embd_pdrop layer_norm_epsilon n_embd n_head n_inner n_layer"
        " n_positions resid_pdrop rotary_dim vocab_size"
    )
}


def config_from_hf(raw: Mapping[str, Any], where: str, dtype: str) -> DecoderConfig:
    """Reads a raw config.json of `model_type: gptj`.

    Raises:
      TaskVecError: a key is missing or unsupported, or transformers reads it and we do not.
    """
    keys = gpt2_keys(raw, where)
    heads, width = keys.need_size("n_head"), keys.need_size("n_embd")
    config = DecoderConfig(
        family="gptj",
        vocab_size=keys.need_size("vocab_size"),
        num_layers=keys.need_size("n_layer"),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=max(1, width // heads),
        mlp_width=keys.get_size("n_inner", 4 * width, null=True),
        norm_eps=keys.get("layer_norm_epsilon", float, 1e-5),
        rope_base=10_000.0,
        rope_dim=keys.get_size("rotary_dim", 64),
        max_length=keys.get_size("n_positions", 2048),
        mlp_bias=True,
        unembed_bias=True,
        gelu=GELUS[keys.require("activation_function", "gelu_new", tuple(GELUS))],
        dtype=dtype,
    )
    keys.require("tie_word_embeddings", False, (False,))
    keys.agree("rope_theta", 10_000.0)
    keys.finish("gptj", MODEL_TYPES["gptj"])
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of this model."""
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "activation_function": "gelu" if config.gelu == "exact" else "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "rotary_dim": config.rope_dim,
        "n_positions": config.max_length,
        "tie_word_embeddings": False,
    }


FAMILY = Family(
    name="gptj",
    model_types=MODEL_TYPES,
    hf=HF,
    ignored=_IGNORED,
    tied=("lm_head.weight", "transformer.wte.weight"),
    prefix="transformer.",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
)
