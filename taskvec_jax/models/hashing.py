"""Hashes of parameters: what names a model's weights in manifests, journals and results.

A parameter is hashed as one line, "path shape dtype", followed by its bytes in C order. The hash of
a model is that of all its parameters in order of path.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.transformer.decoder import Params, flatten

SLICE_BYTES = 64_000_000  # of a parameter on devices that are brought to the host together


def hash_leaves(params: Params) -> dict[str, str]:
    """Path -> sha256 over the path, shape, dtype and bytes of each parameter."""
    return hashes(params)[0]


def hash_params(params: Params) -> str:
    """sha256 over the paths, shapes, dtypes and bytes of all parameters, in order of path."""
    return hashes(params)[1]


def hashes(params: Params) -> tuple[dict[str, str], str]:
    """`hash_leaves` and `hash_params`; of several processes, all must call it."""
    leaves, whole = {}, hashlib.sha256()
    with ThreadPoolExecutor(1) as pool:  # hashlib releases Python's lock: both run at once
        for path, leaf in flatten(params).items():
            alone = hashlib.sha256()
            for part in _hashed(path, leaf):
                both = pool.submit(whole.update, part)
                alone.update(part)
                both.result()
            leaves[path] = alone.hexdigest()
    return leaves, whole.hexdigest()


def _hashed(path: str, leaf: Any) -> Iterator[Any]:
    """What is hashed of a parameter: its header line, then its bytes."""
    yield f"{path} {leaf.shape} {leaf.dtype}\n".encode()
    for part in _slices(leaf):
        yield np.ascontiguousarray(to_host(part)).reshape(-1).view(np.uint8).data


def _slices(leaf: Any) -> Iterator[Any]:
    """A parameter in consecutive slices of its first axis (layers, or the vocabulary).

    One that lies in the host's memory is a single slice. From other devices it is brought over in
    slices of `SLICE_BYTES` or of one entry, because an array keeps the copy that the host was given
    of it, and because several processes gather a slice onto every device before they read it.
    """
    if not isinstance(leaf, jax.Array) or [d.platform for d in leaf.devices()] == ["cpu"]:
        yield leaf
        return
    count = max(1, SLICE_BYTES // max(1, leaf.nbytes // leaf.shape[0]))
    for start in range(0, leaf.shape[0], count):
        yield _slice(leaf, np.int32(start), min(count, leaf.shape[0] - start))


@functools.partial(jax.jit, static_argnums=2)
def _slice(leaf: jax.Array, start: Any, count: int) -> jax.Array:
    """`count` entries of the first axis; `start` is traced, so that it compiles once or twice."""
    return jax.lax.dynamic_slice_in_dim(leaf, start, count)
