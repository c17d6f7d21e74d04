"""The blocks, one module for each family of models; `DecoderConfig.family` is the module's name.

The import below is the one list of families: `convert.families` and the decoder derive theirs from
it. It names the modules, because what decides a number in a journal is found by reading imports.
"""

from taskvec_jax.transformer.blocks import (  # noqa: F401
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gptj,
    granite,
    llama,
    olmo,
    olmo2,
    phi3,
    pythia,
    qwen2,
    qwen3,
)
