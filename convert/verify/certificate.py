"""Two runs of the same model on the same texts, compared site by site."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taskvec_jax.errors import TaskVecError

# Largest difference at a site, as a share of the largest value there, that passes for rounding.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


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
        finite = [bool(np.isfinite(site).all()) for site in (*sites, logits)]
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
    """Compares a run with a reference, site by site.

    Args:
      name: of the first, for messages.

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
