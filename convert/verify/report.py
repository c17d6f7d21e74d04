"""Makes the certificate of a model, prints it, and refuses a model that differs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import taskvec_jax.models.checkpoint as checkpoint
from taskvec_jax.distributed.plan import parameter_count
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.hashing import hash_leaves
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model

from ..cli import console
from .certificate import TOLERANCE, certificate_lines, compare
from .goldens import check_goldens
from .ours import run_ours, texts_to_tokens
from .reference import reference_directory, run_hugging_face

MAX_FLOAT64_PARAMETERS = 2_000_000_000  # above it the float64 test is left out, and a line says so


def report(name_or_path: str, dtype: str, revision: str | None = None) -> None:
    """Prints the certificate of a model.

    Raises:
      TaskVecError: the model differs from Hugging Face, cannot be compared on this machine, or
        gives numbers that are not finite.
    """
    model = load_model(name_or_path, "float32", revision=revision)
    path = Path(name_or_path)
    if checkpoint.is_checkpoint(path):
        check_hashes(path, model)
    if importlib.util.find_spec("torch") is None:
        check_goldens(model)
        return
    rows = texts_to_tokens(model)
    with reference_directory(name_or_path, model) as directory:
        reference = run_hugging_face(directory, "float32", rows)
        mine = f"{model.name} in "
        ours = compare(run_ours(model, "float32", rows), reference, mine + "float32")
        half = compare(run_ours(model, dtype, rows), reference, mine + dtype)
        theirs = run_hugging_face(directory, dtype, rows)
        theirs = compare(theirs, reference, f"Hugging Face's {model.name} in {dtype}")
        double = None
        if parameter_count(model.config) <= MAX_FLOAT64_PARAMETERS:
            double = compare(
                run_ours(model, "float64", rows),
                run_hugging_face(directory, "float64", rows),
                mine + "float64",
            )
    for line in certificate_lines(dtype, ours, half, theirs, double):
        console.print(line, markup=False)
    site = ours.first_diverging(TOLERANCE["float32"])
    if site is not None:
        raise TaskVecError(
            f"{model.name} differs from Hugging Face from {site} on (float32, allowed"
            f" {TOLERANCE['float32']:g} of the largest value); see the table"
        )


def check_hashes(path: Path, model: Model) -> None:
    """Compares a converted model with the hashes of its manifest, if it is in their dtype.

    Raises:
      TaskVecError: a parameter is not what was written.
    """
    if checkpoint.read_config(path).dtype != model.config.dtype:
        return
    expected = checkpoint.read_manifest(path).get("leaves_sha256", {})
    wrong = [
        name for name, value in hash_leaves(model.params).items() if expected.get(name) != value
    ]
    if expected and wrong:
        raise TaskVecError(
            f"{path}: {', '.join(wrong[:6])} are not what was converted; delete it and convert"
            " again"
        )
