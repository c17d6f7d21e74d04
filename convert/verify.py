"""The parity certificate: this model here against the same weights in Hugging Face's own code.

    python -m convert.verify --model=smollm2-135m-instruct
    python -m convert.verify --model=PATH --dtype=float16

For every site of the residual stream (embedding, after each block) and for the logits: largest
difference, the same as a share of the largest value there; for the logits also the mean KL
divergence and the overlap of the top ten. In float32, in --dtype (bfloat16 when left out), where
both are held against Hugging Face in float32, and in float64: rounding shrinks with precision, a
real difference does not. A Hugging Face directory is read by transformers itself; anything else is
exported first, so that then the decoder is verified, and the conversion by its round trip.

Needs torch. Without it the default model is held against numbers that Hugging Face gave
(convert/goldens, made by --make_goldens).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import taskvec_jax.models.checkpoint as checkpoint
from taskvec_jax.distributed.plan import parameter_count
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.hashing import hash_leaves
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.decoder import Decoder

from . import cli as command
from .cli import FLAGS, console
from .export import export

GOLDENS = Path(__file__).parent / "goldens"
TEXTS = (
    "example:France->Paris\nexample:Italy->Rome\nexample:Japan->",
    "The quick brown fox jumps over the lazy dog, and then",
    "example:go->going\nexample:see->seeing\nexample:make->",
)
MAX_TOKENS = 32
# Largest difference at a site, as a share of the largest value there, that passes for rounding.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
MAX_FLOAT64_PARAMETERS = 2_000_000_000  # beyond it the float64 test is left out, and said to be
GOLDEN_COLUMNS = 24  # of the residual stream, spread over its width


class Run(NamedTuple):
    """What one implementation computes on the texts.

    Attributes:
      sites: float64 [1 + L, T, D] for each text: the embedding, then after each block.
      logits: float64 [T, V] for each text.
    """

    sites: list[np.ndarray]
    logits: list[np.ndarray]


class Site(NamedTuple):
    """How far two runs are apart at one place.

    Attributes:
      name: of the place.
      difference: the largest, over texts and positions.
      relative: the same as a share of the largest value of the reference there.
    """

    name: str
    difference: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Two runs compared.

    Attributes:
      sites: the embedding, every layer, the logits.
      kl: mean divergence of the next-token distribution from the reference's, in nats.
      top10: mean share of the reference's ten most likely tokens that are among ours.
      argmax: share of positions with the same most likely token.
    """

    sites: tuple[Site, ...]
    kl: float
    top10: float
    argmax: float

    def first_diverging(self, tolerance: float) -> str | None:
        """The first site that is further apart than the tolerance."""
        return next((s.name for s in self.sites if not s.relative <= tolerance), None)

    @property
    def worst(self) -> float:
        """The largest relative difference of all sites."""
        return float(np.max([site.relative for site in self.sites]))


def check_run(name: str, run: Run) -> None:
    """Refuses a run with numbers that are not finite: it could be compared with nothing.

    Args:
      name: of the run, for the message.

    Raises:
      TaskVecError: it names the first such site and its text.
    """
    for i, (sites, logits) in enumerate(zip(run.sites, run.logits, strict=True)):
        finite = [np.isfinite(site).all() for site in (*sites, logits)]
        if not all(finite):
            places = [_site_name(place) for place in range(len(sites))]
            place = [*places, "logits"][finite.index(False)]
            raise TaskVecError(
                f"{name} is not finite from {place} on, in text {i + 1} of {len(run.sites)}; the"
                " weights are damaged, or overflow in this dtype: verify with another --dtype"
            )


def _site_name(place: int) -> str:
    return "embedding" if place == 0 else f"layer {place - 1}"


def compare(ours: Run, reference: Run, name: str = "this model") -> Certificate:
    """Holds one run, called `name`, against another.

    Raises:
      TaskVecError: one of them is not finite.
    """
    check_run(name, ours)
    check_run("the reference", reference)
    sites = []
    for i in range(len(reference.sites[0])):
        pairs = [(a[i], b[i]) for a, b in zip(ours.sites, reference.sites, strict=True)]
        sites.append(_site(_site_name(i), pairs))
    pairs = list(zip(ours.logits, reference.logits, strict=True))
    sites.append(_site("logits", pairs))
    mine, theirs = np.concatenate(ours.logits), np.concatenate(reference.logits)
    p, q = _log_softmax(theirs), _log_softmax(mine)
    k = min(10, p.shape[-1])
    top = [np.argsort(-x, axis=-1, kind="stable")[:, :k] for x in (theirs, mine)]
    overlap = [len(set(a) & set(b)) / k for a, b in zip(*map(np.ndarray.tolist, top), strict=True)]
    return Certificate(
        tuple(sites),
        kl=float((np.exp(p) * (p - q)).sum(axis=-1).mean()),
        top10=float(np.mean(overlap)),
        argmax=float((top[0][:, 0] == top[1][:, 0]).mean()),
    )


def _site(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Site:
    # NumPy's maximum, because Python's max drops a NaN that is not the first.
    difference = float(np.max([np.abs(a - b).max() for a, b in pairs]))
    size = float(np.max([np.abs(b).max() for _, b in pairs]))
    return Site(name, difference, difference / max(size, 1e-30))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def texts_to_tokens(model: Model) -> list[list[int]]:
    """The texts as this model reads them, cut where it must be; ids, if it cannot read them."""
    limit = min(MAX_TOKENS, model.config.max_length)
    rows = [row[:limit] for row in model.tokenizer.encode_all(TEXTS)]
    return [row or [1] for row in rows]


def run_ours(model: Model, dtype: str, rows: Sequence[Sequence[int]]) -> Run:
    """Our decoder in a dtype; every position is read as the last one of a row of its own."""
    decoder = Decoder(dataclasses.replace(model.config, dtype=dtype))
    wide = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
    with wide:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)

        @jax.jit
        def read(params: Any, tokens: jax.Array, places: jax.Array) -> Any:
            residuals, logits = decoder.apply(params, tokens, places, method="read")
            return decoder.apply(params, tokens[0], method="embed"), residuals, logits

        run = Run([], [])
        for row in rows:
            tokens = np.tile(np.array(row, np.int32), (len(row), 1))
            embedded, residuals, logits = read(params, tokens, np.arange(len(row), dtype=np.int32))
            sites = np.concatenate([np.asarray(embedded)[None], np.asarray(residuals)])
            run.sites.append(sites.astype(np.float64))
            run.logits.append(np.asarray(logits, np.float64))
    return run


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Lets transformers compute in float64 throughout, if that is the dtype.

    Its norms, softmax and rotary angles cast to float32 whatever the model's dtype, which would
    hide a difference of 1e-7 behind the reference's own rounding.
    """
    if dtype != "float64":
        yield
        return
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            del types
            name = getattr(func, "__name__", "")
            if name == "float":
                return args[0].double()
            if name in ("to", "softmax", "arange"):
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {
                    k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()
                }
            return func(*args, **(kwargs or {}))

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Wide():
            yield
    finally:
        torch.set_default_dtype(before)


def run_hugging_face(directory: Path, dtype: str, rows: Sequence[Sequence[int]]) -> Run:
    """transformers on a directory; residuals by hooks on its blocks."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with _precision(dtype), torch.no_grad():
        return _run_hugging_face(directory, dtype, rows)


def _run_hugging_face(directory: Path, dtype: str, rows: Sequence[Sequence[int]]) -> Run:
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), local_files_only=True
    ).eval()
    inner: Any = theirs.base_model
    blocks = inner.h if hasattr(inner, "h") else inner.layers
    kept: list[np.ndarray] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        del module, inputs
        value = output[0] if isinstance(output, tuple) else output
        kept.append(value[0].detach().double().numpy())

    hooked = [theirs.get_input_embeddings(), *blocks]
    handles = [module.register_forward_hook(keep) for module in hooked]
    run = Run([], [])
    for row in rows:
        kept.clear()
        logits = theirs(torch.tensor([list(row)])).logits[0]
        run.sites.append(np.stack(kept))
        run.logits.append(logits.double().numpy())
    for handle in handles:
        handle.remove()
    return run


@contextlib.contextmanager
def reference_directory(name_or_path: str, model: Model) -> Iterator[Path]:
    """A directory that transformers reads: the model's own, or one exported for the occasion."""
    path = Path(name_or_path)
    if (path / "config.json").is_file() and not checkpoint.is_checkpoint(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        export(model.config, model.params, model.tokenizer, Path(scratch))
        yield Path(scratch)


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


def certificate_lines(
    dtype: str,
    ours: Certificate,
    half: Certificate,
    theirs: Certificate,
    double: Certificate | None,
) -> list[str]:
    """The certificate, for people."""
    lines = [
        f"{'site':<12} {'float32: max':>14} {'relative':>10}   {dtype + ': max':>14}"
        f" {'relative':>10}   {'(HF ' + dtype + ')':>14}"
    ]
    for a, b, c in zip(ours.sites, half.sites, theirs.sites, strict=True):
        lines.append(
            f"{a.name:<12} {a.difference:>14.3e} {a.relative:>10.1e}   {b.difference:>14.3e}"
            f" {b.relative:>10.1e}   {c.relative:>14.1e}"
        )
    rows = (("float32", ours, "float32"), (dtype, half, dtype), (f"HF {dtype}", theirs, dtype))
    for name, value, kind in rows:
        site = value.first_diverging(TOLERANCE[kind])
        lines.append(
            f"{name}: KL {value.kl:.2e} nats, top-10 overlap {value.top10:.1%}, same top token"
            f" {value.argmax:.1%}; first diverging site: {site or 'none'}"
            f" (beyond {TOLERANCE[kind]:g})"
        )
    if double is None:
        lines.append("float64: left out, the model is too large")
    else:
        verdict = (
            "the differences above are rounding"
            if double.worst <= TOLERANCE["float64"]
            else f"A REAL DIFFERENCE, first at {double.first_diverging(TOLERANCE['float64'])}"
        )
        lines.append(f"float64: relative difference {double.worst:.1e} at most: {verdict}")
    return lines


def check_hashes(path: Path, model: Model) -> None:
    """Holds a converted model against the hashes of its manifest, if it is in their dtype.

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
    """Holds a model against the numbers that Hugging Face gave for its weights.

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


def main() -> None:
    """Verifies the model the flags ask for."""
    if FLAGS.make_goldens:
        model = load_model(FLAGS.model, "float32")
        make_goldens(model, GOLDENS / f"{Path(FLAGS.model).name}.npz")
        return
    report(FLAGS.model, FLAGS.dtype or "bfloat16", FLAGS.revision)


if __name__ == "__main__":
    command.define_model_flags(None)
    flags.DEFINE_bool("make_goldens", False, "write the numbers of Hugging Face, for maintainers")
    command.run(main)
