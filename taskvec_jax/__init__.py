"""Task vectors in JAX: extract theta, inject it, sweep all layers at once.

    from taskvec_jax import load_model, Override
    model = load_model("smollm2-135m-instruct")
    tokens, last = model.tokenizer.pad([model.tokenizer.encode("example:Plum->")])
    logits = model.decoder.apply(model.params, tokens, Override(14, last, theta))

Imports only go down: words (tasks, prompts, tokenizer) and arrays (config, layers, blocks,
decoder) know nothing of each other and meet in `evaluation`.
"""

from taskvec_jax.distributed import backend as _backend  # first: it sets up the compiler  # noqa: F401
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.protocol import Settings, evaluate_task
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS
from taskvec_jax.tasks import TASKS
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Override
from taskvec_jax.vectors.task_vectors import extract_theta, inject_theta, layer_sweep

__all__ = [
    "DEFAULT_MODEL",
    "NAMED_MODELS",
    "TASKS",
    "Decoder",
    "DecoderConfig",
    "Model",
    "Override",
    "Settings",
    "TaskVecError",
    "evaluate_task",
    "extract_theta",
    "inject_theta",
    "layer_sweep",
    "load_model",
]
