"""Random vectors to stand in theta's place.

Shapes: N prompts, L layers, D width.
"""

from __future__ import annotations

import hashlib

import numpy as np


def random_like(theta: np.ndarray, *seed: object) -> np.ndarray:
    """Random directions with the norms of theta [..., D], float32, all directions alike.

    The stream of NumPy's RandomState is frozen for good, so they repeat everywhere.
    """
    noise = _stream(*seed).standard_normal(theta.shape)
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    return (noise * np.linalg.norm(theta, axis=-1, keepdims=True)).astype(np.float32)


def random_with_covariance(theta: np.ndarray, count: int, *seed: object) -> np.ndarray:
    """Random vectors that vary as thetas do: float32 [count, L, D].

    At each layer they are normal with the covariance of theta [N, L, D] over prompts, scaled to
    the mean norm of theta there. A single theta has no covariance; all directions are then alike.
    """
    varied = theta - theta.mean(axis=0)
    if not varied.any(axis=(0, 2)).all():
        return random_like(np.broadcast_to(theta[:1], (count, *theta.shape[1:])), *seed)
    weights = _stream(*seed).standard_normal((count, len(theta)))
    drawn = np.einsum("cn,nld->cld", weights, varied.astype(np.float64))
    drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
    size = np.linalg.norm(theta.astype(np.float64), axis=-1).mean(axis=0)  # [L]
    return (drawn * size[:, None]).astype(np.float32)


def _stream(*seed: object) -> np.random.RandomState:
    digest = hashlib.sha256("/".join(map(str, seed)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, np.uint32))
