"""The account of work in words: how many floating-point operations a run needed and did."""

from __future__ import annotations

from taskvec_jax.vectors.account import Account

TERA = 1e12


def in_words(spent: Account) -> str:
    """One line; empty where nothing was computed, because all of it stood in the journal."""
    if not spent.done:
        return ""
    again = f", {spent.again / TERA:.3g} of it for rows computed before" if spent.again else ""
    return (
        f"work: {spent.needed / TERA:.3g} TFLOP needed, {spent.done / TERA:.3g} done"
        f" ({spent.done / max(spent.needed, 1):.2f} times{again})"
    )


def at_rate(spent: Account, rate: float) -> str:
    """How long the needed work takes at a rate in FLOP/s, such as that of a matrix product."""
    seconds = spent.needed / rate
    return (
        f"at the {rate / 1e9:.0f} GFLOP/s of a matrix product of the model's sizes here, what was"
        f" needed takes {seconds:.0f} s"
    )
