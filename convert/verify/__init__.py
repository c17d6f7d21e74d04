"""Parity: a model here against the same weights in Hugging Face's own code.

`report` is the whole of it, and `python -m convert.verify` its command.
"""
