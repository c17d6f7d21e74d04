"""Phi-3's block (Abdin et al. 2024, arXiv 2404.14219) is LLaMA's; its files hold it otherwise."""

from taskvec_jax.transformer.blocks.llama import Block, Norm

__all__ = ["Block", "Norm"]
