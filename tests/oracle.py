"""An independent decoder in float64 NumPy, one row and one head at a time, written from the papers.

Shares nothing with the library but the names of the parameters.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf


def run(config, leaves, tokens, override=None):
    """Residual stream after every layer [L, T, D] and logits [T, V] of one row of tokens."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}
    x = p["embed/embedding"][tokens]
    residuals = []
    for layer in range(config.num_layers):
        w = {k.removeprefix("layers/"): v[layer] for k, v in p.items() if k.startswith("layers/")}
        attended = x + attention(config, w, norm(config, w, "attn_norm", x))
        if config.family == "pythia" and config.parallel_residual:
            x = attended + mlp(config, w, norm(config, w, "mlp_norm", x))
        else:
            x = attended + mlp(config, w, norm(config, w, "mlp_norm", attended))
        if override is not None and override[0] == layer:
            x = x.copy()
            x[override[1]] = override[2]
        residuals.append(x)
    x = norm(config, p, "final_norm", x)
    unembed = p["embed/embedding"].T if config.tied_unembed else p["unembed/kernel"]
    return np.stack(residuals), x @ unembed


def norm(config, w, name, x):
    rows = []
    for row in x:
        if config.family == "pythia":
            centred = row - row.mean()
            row = centred / math.sqrt((centred**2).mean() + config.norm_eps)
            rows.append(row * w[f"{name}/scale"] + w[f"{name}/bias"])
        else:
            rows.append(row / math.sqrt((row**2).mean() + config.norm_eps) * w[f"{name}/scale"])
    return np.stack(rows)


def rotated(config, vector, position):
    half = config.rope_dim // 2
    out = vector.copy()
    for i in range(half):
        angle = position * config.rope_base ** (-2 * i / config.rope_dim)
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(config, w, x):
    bias = config.attention_bias
    out = np.zeros_like(x)
    group = config.num_heads // config.num_kv_heads
    for head in range(config.num_heads):

        def projected(name, h):
            y = x @ w[f"attn/{name}/kernel"][:, h]
            return y + w[f"attn/{name}/bias"][h] if bias else y

        q, k = projected("query", head), projected("key", head // group)
        v = projected("value", head // group)
        q = np.stack([rotated(config, row, i) for i, row in enumerate(q)])
        k = np.stack([rotated(config, row, i) for i, row in enumerate(k)])
        for i in range(len(x)):
            scores = k[: i + 1] @ q[i] / math.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out[i] += weights @ v[: i + 1] @ w["attn/out/kernel"][head]
    return out + w["attn/out/bias"] if bias else out


def mlp(config, w, x):
    def linear(name, y):
        y = y @ w[f"mlp/{name}/kernel"]
        return y + w[f"mlp/{name}/bias"] if config.mlp_bias else y

    if config.family == "pythia":
        up = linear("up", x)
        if config.gelu == "exact":
            hidden = up * 0.5 * (1 + erf(up / math.sqrt(2)))
        else:
            hidden = up * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    else:
        gate = linear("gate", x)
        hidden = gate / (1 + np.exp(-gate)) * linear("up", x)
    return linear("down", hidden)
