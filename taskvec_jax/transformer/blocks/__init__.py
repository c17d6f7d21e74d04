"""The blocks, one module for each family of models; `DecoderConfig.family` is the module's name.

The import below is the one list of families: `convert.families` and the decoder derive theirs from
it. It names the modules, because what decides a number in a journal is found by reading imports.
"""

from taskvec_jax.transformer.blocks import gptj, llama, pythia  # noqa: F401
