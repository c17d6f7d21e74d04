"""Numbers that Hugging Face gave for the default model, to verify it without torch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.model import Model

from ..cli import console
from ..export import export
from .certificate import TOLERANCE, check_run
from .ours import run_ours, texts_to_tokens
from .reference import run_hugging_face

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN_COLUMNS = 24  # of the residual stream, spread over its width


def _golden_columns(width: int) -> np.ndarray:
    return np.linspace(0, width - 1, min(GOLDEN_COLUMNS, width)).astype(np.int64)


def make_goldens(model: Model, path: Path) -> None:
    """Writes what Hugging Face gives in float32, at the last token of each text."""
    rows = texts_to_tokens(model)
    with tempfile.TemporaryDirectory() as scratch:
        export(model.config, model.params, model.tokenizer, Path(scratch))
        run = run_hugging_face(Path(scratch), "float32", rows)
    columns = _golden_columns(model.config.width)
    values: dict[str, np.ndarray] = {"weights_sha256": np.array(model.weights_sha256)}
    for i, row in enumerate(rows):
        last = run.logits[i][-1]
        top = np.argsort(-last, kind="stable")[:10]
        values[f"tokens_{i}"] = np.array(row, np.int32)
        values[f"sites_{i}"] = run.sites[i][:, -1][:, columns].astype(np.float32)
        values[f"sizes_{i}"] = np.abs(run.sites[i][:, -1]).max(axis=-1).astype(np.float32)
        values[f"top_{i}"] = top.astype(np.int32)
        values[f"logits_{i}"] = last[top].astype(np.float32)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **values)  # pyright: ignore[reportArgumentType]


def check_goldens(model: Model) -> float:
    """Compares a model with the numbers that Hugging Face gave for its weights.

    Returns:
      The largest difference, as a share of the largest value at its site.

    Raises:
      TaskVecError: there are no such numbers for these weights, or the model differs.
    """
    for path in sorted(GOLDENS.glob("*.npz")):
        with np.load(path) as file:
            golden = dict(file)
        if str(golden["weights_sha256"]) == model.weights_sha256:
            break
    else:
        raise TaskVecError(
            f"{model.name}: comparing with Hugging Face needs torch (pip install"
            " 'taskvec-jax[torch]'); without it only the default model can be verified"
        )
    rows = [golden[name].tolist() for name in sorted(golden) if name.startswith("tokens_")]
    if rows != texts_to_tokens(model):
        raise TaskVecError(f"{model.name}: its tokenizer reads the texts differently")
    run = run_ours(model, "float32", rows)
    check_run(model.name, run)
    columns, worst = _golden_columns(model.config.width), 0.0
    for i in range(len(rows)):
        differences = np.abs(run.sites[i][:, -1][:, columns] - golden[f"sites_{i}"])
        shares = differences.max(axis=-1) / golden[f"sizes_{i}"]
        if shares.max() > TOLERANCE["float32"]:
            site = int(np.argmax(shares > TOLERANCE["float32"]))
            name = "the embedding" if site == 0 else f"layer {site - 1}"
            raise TaskVecError(
                f"{model.name} differs from Hugging Face's numbers from {name} on, by"
                f" {shares[site]:.1e} of the largest value (allowed {TOLERANCE['float32']:g})"
            )
        logits = run.logits[i][-1]
        share = np.abs(logits[golden[f"top_{i}"]] - golden[f"logits_{i}"]).max()
        share /= np.abs(golden[f"logits_{i}"]).max()
        if share > TOLERANCE["float32"] or int(np.argmax(logits)) != golden[f"top_{i}"][0]:
            raise TaskVecError(f"{model.name} differs from Hugging Face's numbers at the logits")
        worst = max(worst, float(shares.max()), float(share))
    console.print(
        f"{model.name}: equals Hugging Face's numbers on {len(rows)} texts,"
        f" {len(run.sites[0])} sites and the top 10 logits; largest relative difference"
        f" {worst:.1e} (allowed {TOLERANCE['float32']:g}); torch is not here, so this is all",
        markup=False,
    )
    return worst
