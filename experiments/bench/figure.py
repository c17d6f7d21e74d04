"""The benchmark's results as a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.page import figures
from experiments.run.flags import console


def print_table(dtype: str, result: dict[str, Any]) -> None:
    """One line a stage."""
    rate, flops = result["gemm_flops_per_second"], result["needed_flops"]
    console.print(
        f"[bold]{dtype}[/bold]: {result['weight_bytes'] / 1e9:.2f} GB of weights, GEMM"
        f" {rate / 1e9:.0f} GFLOP/s, needed {flops / 1e12:.1f} TFLOP"
    )
    console.print(
        f"{'stage':<24}{'steady s':>10}{'compile s':>11}{'of GEMM':>17}{'GB':>7}{'done':>7}  agrees"
    )
    for name, entry in result["stages"].items():
        peak, of_gemm = entry["peak_bytes"], entry["fraction_of_gemm_peak"]
        share = "{median:.2f} ({lowest:.2f}-{highest:.2f})".format(**of_gemm)
        console.print(
            f"{name:<24}{entry['steady_seconds']:>10.1f}{entry['compile_seconds']:>11.1f}"
            f"{share:>17}{(peak or 0) / 1e9:>7.2f}"
            f"{f'{done:.2f}' if (done := entry['done_over_needed']) else '':>7}"
            f"  {entry['agreement_with_packed']:.4f}"
            + (f"  MFU {used:.1%}" if (used := entry["model_flops_utilisation"]) else "")
        )


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Seconds of every step, one bar a dtype, and the sweep alone by depth.

    Args:
      result: the content of benchmark.json.
      stem: path without its ending; .png and .svg are written.
    """
    dtypes = result["dtypes"]
    names = list(dict.fromkeys(name for d in dtypes.values() for name in d["stages"]))
    scaling = {dtype: d["depth_scaling"] for dtype, d in dtypes.items() if d["depth_scaling"]}
    with figures.theme("light"):
        ratios = {"gridspec_kw": {"width_ratios": [2, 1]}} if scaling else {}
        shades = (figures.ink(), figures.quiet(), "#b9bec6")  # dtypes have no colour of their own
        figure, panels = figures.canvas(8 + 4 * bool(scaling), 5, 1, 1 + bool(scaling), **ratios)
        axes, height = panels[0], 0.8 / len(dtypes)
        for i, (dtype, entry) in enumerate(dtypes.items()):
            rows = [row for row, name in enumerate(names) if name in entry["stages"]]
            stages = [entry["stages"][names[row]] for row in rows]
            places = [row + (i - (len(dtypes) - 1) / 2) * height for row in rows]
            bars = axes.barh(
                places,
                [stage["steady_seconds"] for stage in stages],
                height,
                color=shades[i % len(shades)],
                label=dtype,
            )
            axes.bar_label(
                bars,
                [
                    f"{s['steady_seconds']:.1f} s, {s['fraction_of_gemm_peak']['median']:.0%}"
                    for s in stages
                ],
                padding=4,
                fontsize=8,
            )
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlabel("seconds, steady, and the share of the GEMM peak spent on needed work")
        for i, (dtype, rows) in enumerate(scaling.items()):
            panels[1].plot(
                [row["half_square"] for row in rows],
                [row["seconds"] for row in rows],
                "o-",
                color=shades[i % len(shades)],
                label=dtype,
            )
            panels[1].set(
                xlabel="layers² / 2",
                ylabel="seconds",
                title="the sweep alone, by depth",
                xlim=(0, None),
                ylim=(0, None),
            )
        key = [figures.swatch(dtype, shades[i % len(shades)]) for i, dtype in enumerate(dtypes)]
        title = f"Seconds of each step: {len(result['settings']['tasks'])} tasks"
        of_all = result | {"dtype": " and ".join(dtypes)}
        return figures.save(figures.finish(figure, of_all, title, key), stem)
