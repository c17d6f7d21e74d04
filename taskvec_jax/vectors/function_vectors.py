"""Function vectors: mean outputs of a few attention heads, summed in the residual stream.

Todd et al. 2023 (arXiv 2310.15213): a head's output, averaged over in-context prompts of a task and
sent through the output projection, is what the head writes into the residual stream at the last
token. The sum of that over the heads of largest average indirect effect (head_map.py) is the task's
function vector. Biases of the projection belong to no head and are left out. What stands between
the projection and the residual stream counts: Granite's multiplier, and the norm of Gemma 2 and 3
and OLMo 2 and 3. The norm divides by the root mean square of what all heads of the layer give
together; here that is of the heads' mean outputs. So what the heads of a layer write sums to the
norm of their summed mean outputs.

Shapes: N prompts, L layers, H heads, K head size, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from taskvec_jax.distributed.processes import to_host
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model
from taskvec_jax.tasks.sampling import draw, seeded
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Params
from taskvec_jax.transformer.linear import project

Head = tuple[int, int]  # layer, head; both 0-based


def mean_outputs(model: Model, texts: Sequence[str] | Sequence[Sequence[int]]) -> np.ndarray:
    """Output of every head at the last token, averaged over texts: float32 [L, H, K].

    Raises:
      TaskVecError: texts that the model cannot read, or outputs that are not finite.
    """
    outputs = model.read(texts, site="head")  # [N, L, H, K]
    finite = np.isfinite(outputs).all(axis=(0, 2, 3))
    if not finite.all():
        raise TaskVecError(
            f"the output of a head of layer {int(np.argmin(finite))} is not finite; the weights are"
            " damaged, or overflow in this dtype: try --dtype=float32"
        )
    return outputs.astype(np.float64).mean(axis=0).astype(np.float32)


def written_by(model: Model, outputs: np.ndarray) -> np.ndarray:
    """What each head writes into the residual stream: outputs [L, H, K] -> float32 [L, H, D].

    Raises:
      TaskVecError: outputs of another shape.
    """
    c = model.config
    shape = (c.num_layers, c.num_heads, c.head_dim)
    if np.shape(outputs) != shape:
        raise TaskVecError(
            f"outputs of heads have shape {np.shape(outputs)}; allowed: {shape}, layers x heads x"
            " the size of a head"
        )
    return to_host(_project(c, model.params, jnp.asarray(outputs, jnp.float32)))


@functools.partial(jax.jit, static_argnames="config")
def _project(config: DecoderConfig, params: Params, outputs: jax.Array) -> jax.Array:
    layers = params["params"]["layers"]
    out = {name: leaf for name, leaf in layers["attn"]["out"].items() if name != "bias"}
    projection = project(config, config.width, False, axes=2)()  # however its kernel is kept
    alone = outputs[:, None] * jnp.eye(config.num_heads)[:, :, None]  # [L, H, H, K], each head's
    written = jax.vmap(lambda own, given: projection.apply({"params": own}, given))(out, alone)
    written = written.astype(jnp.float32)
    if "attn_post_norm" in layers:
        norm = FAMILY_MODULES[config.family].Norm(config)  # x * gain / size, its root mean square
        ones = jnp.ones((1, config.width), jnp.float32)
        of_ones = jax.vmap(lambda own: norm.apply({"params": own}, ones))(layers["attn_post_norm"])
        gain = of_ones * jnp.sqrt(1 + config.norm_eps)  # [L, 1, D]
        total = written.sum(axis=1, keepdims=True)
        size = jnp.sqrt(jnp.square(total).mean(axis=-1, keepdims=True) + config.norm_eps)
        written *= gain / size
    return written * config.residual_scale


def rank_heads(effects: np.ndarray) -> list[Head]:
    """All heads, [L, H], by falling effect; ties go to the lower layer, then the lower head."""
    order = np.argsort(-np.asarray(effects, np.float64).reshape(-1), kind="stable")
    return [(int(at) // effects.shape[1], int(at) % effects.shape[1]) for at in order]


def function_vector(written: np.ndarray, heads: Sequence[Head]) -> np.ndarray:
    """Sum over some heads of what each writes, [L, H, D] -> float32 [D]."""
    layers, numbers = np.array(heads).T
    return written[layers, numbers].astype(np.float64).sum(axis=0).astype(np.float32)


def heads_beside(heads: Sequence[Head], num_heads: int, *seed: object) -> list[Head]:
    """As many random heads of each layer as are given, others than those where there are enough.

    What is special about given heads is not only the layers they stand in: the control for them
    takes its heads from the same layers.
    """
    chosen: list[Head] = []
    for layer in sorted({layer for layer, _ in heads}):
        taken = [head for at, head in heads if at == layer]
        free = [head for head in range(num_heads) if head not in taken]
        rng = seeded("random heads", *seed, layer)
        picked = draw(rng, free, min(len(taken), len(free)))
        picked += draw(rng, taken, len(taken) - len(picked))
        chosen += [(layer, head) for head in picked]
    return chosen
