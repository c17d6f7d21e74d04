"""How a tensor of a file is laid out, and how this project's parameter for it is.

Each function takes a config and a tensor, and returns the leaves made of it as a tuple; its inverse
takes the leaves. They make views where NumPy can, so they cost no memory.

Shapes: D width, H heads, G key/value heads, K head size; "heads" stands for H or G.
"""

from __future__ import annotations

import numpy as np

from taskvec_jax.transformer.config import DecoderConfig


def same(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """Stored as we keep it."""
    del config
    return (x,)


def unsame(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `same`."""
    del config
    return x


def transposed(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[out, in] -> [in, out]."""
    del config
    return (x.T,)


def untransposed(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `transposed`."""
    del config
    return x.T


def heads_out(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[heads * K, D] -> [D, heads, K]."""
    return (x.reshape(-1, config.head_dim, x.shape[1]).transpose(2, 0, 1),)


def unheads_out(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `heads_out`."""
    del config
    return x.reshape(x.shape[0], -1).T


def heads_in(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[D, H * K] -> [H, K, D]."""
    return (x.reshape(x.shape[0], -1, config.head_dim).transpose(1, 2, 0),)


def unheads_in(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `heads_in`."""
    del config
    return x.reshape(-1, x.shape[-1]).T


def heads_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """[heads * K] -> [heads, K]."""
    return (x.reshape(-1, config.head_dim),)


def unheads_bias(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `heads_bias`."""
    del config
    return x.reshape(-1)


def _unpermuted(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """Query and key rows of GGUF and of Meta in Hugging Face's order.

    They interleave the two halves of each head's rotary dimensions: row (h, i, half) of the file
    is row (h, half, i) of Hugging Face.
    """
    heads = x.reshape(-1, config.head_dim // 2, 2, *x.shape[1:])
    return heads.swapaxes(1, 2).reshape(x.shape)


def _permuted(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `_unpermuted`."""
    heads = x.reshape(-1, 2, config.head_dim // 2, *x.shape[1:])
    return heads.swapaxes(1, 2).reshape(x.shape)


def gguf_heads_out(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """`heads_out` of queries and keys whose rotary dimensions interleave, in GGUF and of Meta."""
    return heads_out(config, _unpermuted(config, x))


def ungguf_heads_out(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `gguf_heads_out`."""
    return _permuted(config, unheads_out(config, x))


def gguf_heads_bias(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """`heads_bias` of queries and keys whose rotary dimensions interleave."""
    return heads_bias(config, _unpermuted(config, x))


def ungguf_heads_bias(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `gguf_heads_bias`."""
    return _permuted(config, unheads_bias(config, x))


def fused_heads(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[(H + 2 G) * K, D], all queries, then all keys, then all values -> [D, H or G, K] each."""
    heads = x.reshape(-1, config.head_dim, x.shape[1]).transpose(2, 0, 1)
    first, second = config.num_heads, config.num_heads + config.num_kv_heads
    return heads[:, :first], heads[:, first:second], heads[:, second:]


def unfused_heads(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `fused_heads`."""
    return np.concatenate([unheads_out(config, leaf) for leaf in leaves])


def fused_mlp(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[2 * F, D], the gate's rows before the other's -> two [D, F]."""
    return x[: config.mlp_width].T, x[config.mlp_width :].T


def unfused_mlp(config: DecoderConfig, *leaves: np.ndarray) -> np.ndarray:
    """The inverse of `fused_mlp`."""
    del config
    return np.concatenate([leaf.T for leaf in leaves])


def less_one(config: DecoderConfig, x: np.ndarray) -> tuple[np.ndarray]:
    """A norm's scale, of which the parameter is the difference from one."""
    del config
    return (x - 1,)


def plus_one(config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """The inverse of `less_one`."""
    del config
    return x + 1
