# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
r"""Task vectors in JAX: extract theta, inject it, sweep all layers at once. The table of contents.

>>> from taskvec_jax import load_model, replace
>>> model = load_model("pythia-icl-small")  # ships with the project; others are fetched
>>> shown = "example:a->b\nexample:c->d\nexample:f->g\nexample:k->l\nexample:r->s\n"
>>> theta = model.read(shown + "example:t->")[0]  # [L, D], at the last arrow
>>> theta.shape
(6, 128)
>>> model.generate("example:h->", max_new_tokens=1)
['15']
>>> edit = replace(theta[2], layer=2, position=-1)
>>> model.generate("example:h->", max_new_tokens=1, edits=edit)
['i']

* models: `load_model` gives a `Model`; `NAMED_MODELS` and `DEFAULT_MODEL` are those with a name.
* tasks: `TASKS`, or a `Task` of your own, made of `Pair`s (`Task.from_pairs`, `read_own_tasks`);
  `Template` says how they are written.
* the decoder: `Decoder`, `DecoderConfig`; edits `replace`, `add`, `scale`, `ablate`, `Override`.
* vectors to keep: `extract_vector` makes a `TaskVector`, which is saved, loaded, exported, added.
* the definition: `extract_theta`, `inject_theta`, `layer_sweep`.
* experiments: `Settings`, `evaluate_task`, `evaluate_with_controls`; `learn_vector` trains vectors;
  `load_result` reads a result file.
* errors: `TaskVecError`.

Words (tasks, prompts, tokenizer) and arrays (config, layers, blocks, decoder) know nothing of each
other and meet in `vectors` and `evaluation`.
"""

from typing import TYPE_CHECKING, Any

# First, because it sets up the compiler.
import taskvec_jax.distributed.backend  # noqa: F401  # pyright: ignore[reportUnusedImport]
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.controlled import evaluate_with_controls
from taskvec_jax.evaluation.extraction import extract_vector
from taskvec_jax.evaluation.protocol import evaluate_task
from taskvec_jax.evaluation.records import load_result
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS
from taskvec_jax.prompting.templates import Template
from taskvec_jax.tasks import TASKS, Pair, Task, read_own_tasks
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, Override
from taskvec_jax.transformer.edits import ablate, add, replace, scale
from taskvec_jax.vectors.task_vectors import extract_theta, inject_theta, layer_sweep
from taskvec_jax.vectors.vector import TaskVector

if TYPE_CHECKING:
    from taskvec_jax.vectors.learning import learn_vector

__all__ = [
    "DEFAULT_MODEL",
    "NAMED_MODELS",
    "TASKS",
    "Decoder",
    "DecoderConfig",
    "Model",
    "Override",
    "Pair",
    "Settings",
    "Task",
    "TaskVecError",
    "TaskVector",
    "Template",
    "ablate",
    "add",
    "evaluate_task",
    "evaluate_with_controls",
    "extract_theta",
    "extract_vector",
    "inject_theta",
    "layer_sweep",
    "learn_vector",
    "load_model",
    "load_result",
    "read_own_tasks",
    "replace",
    "scale",
]


def __getattr__(name: str) -> Any:
    """`learn_vector`, imported at its first use: its optimiser takes half a second to import."""
    if name == "learn_vector":
        from taskvec_jax.vectors.learning import learn_vector

        return learn_vector
    raise AttributeError(f"module 'taskvec_jax' has no attribute {name!r}")
