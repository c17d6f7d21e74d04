"""How `experiments.conflicting_tasks` is shown: its words, tables and figures."""

from __future__ import annotations

from typing import Any

from experiments.page.section import Section, Table, number, score, text

NAME = "conflicting_tasks"


def section(result: dict[str, Any]) -> Section:
    """What wins, the prompt or the vector."""
    pairs, titles = result["pairs"], _titles(result)
    follows = [key for key, pair in pairs.items() if _follows_vector(pair)]
    stays = [
        key for key, pair in pairs.items() if pair["theta"]["a"]["low"] > pair["theta"]["b"]["high"]
    ]
    words = [
        f"With theta of B written into a prompt that shows A, {result['model']} follows the vector"
        f" in {len(follows)} of {len(pairs)} pairs and the prompt in {len(stays)}. (It follows the"
        " vector when the whole interval of the B-rate is above that of the A-rate, and above"
        " that of the B-rate of the plain prompt.)",
        "p in the table is exact and paired, over distinct queries; where there is no task C the"
        " B-rate is held against that of a random vector.",
        "In the paper (LLaMA 13B) the vector wins in all but the translation pair, where the"
        " prompt keeps .91.",
    ]
    if already := [
        f"{titles[pair['a']]} / {titles[pair['b']]}"
        for pair in pairs.values()
        if pair["plain"]["b"]["accuracy"] > pair["plain"]["a"]["accuracy"]
    ]:
        words.append(
            "Without any injection the prompt of A is already answered as B more often than as A"
            f" in {', '.join(already)}: there a high B-rate is no credit to the vector."
        )
    if unable := [
        f"{titles[pair['a']]} / {titles[pair['b']]}"
        for pair in pairs.values()
        if pair["theta"]["neither"]["accuracy"] > 0.5
    ]:
        words.append(
            f"Mostly neither task is done in {', '.join(unable)}: such a pair says nothing about"
            " which of the two wins."
        )
    words += result["notes"]
    rows = []
    for key, pair in pairs.items():
        a, b = pair["a"], pair["b"]
        theirs = pair["published"] or {}
        won = "good" if key in follows else "bad" if key in stays else ""
        rows.append(
            [
                text(titles[a]),
                text(titles[b]),
                score(pair["plain"]["a"]),
                score(pair["plain"]["b"]),
                score(pair["theta"]["a"]),
                score(pair["theta"]["b"], won),
                score(pair["theta"]["neither"]),
                score(pair["random"]["a"]),
                score(pair["theta_of_a"]["a"]),
                *(score((pair.get("theta_of_c") or {}).get(kind)) for kind in ("a", "b")),
                number(pair["b_rate_above"]["p"], 4),
                number(pair["num_queries"], 0),
                number(pair["layer"], 0),
                number(theirs.get("tv_accuracy_original")),
                number(theirs.get("tv_accuracy_patched")),
            ]
        )
    examples = [
        [
            text(titles[pair["a"]]),
            text(titles[pair["b"]]),
            text(example["query"].strip()),
            text(example["answer_a"].strip()),
            text(example["answer_b"].strip()),
            text(example["said"] or "(nothing)"),
        ]
        for pair in pairs.values()
        for example in pair["examples"][: 6 if len(pairs) < 10 else 2]
    ]
    return Section(
        "Prompt against vector: which task wins?",
        words,
        [
            Table(
                "Prompt of A with theta of B at its last token",
                [
                    "prompt (A)",
                    "vector (B)",
                    "plain: A",
                    "plain: B",
                    "with θ: A",
                    "with θ: B",
                    "with θ: neither",
                    "random: A",
                    "other θ of A: A",
                    "θ of C: A",
                    "θ of C: B",
                    "p, B-rate above θ of C's",
                    "distinct queries",
                    "layer",
                    "LLaMA 13B: A",
                    "LLaMA 13B: B",
                ],
                rows,
            ),
            Table(
                "What the model says with theta of B",
                ["prompt (A)", "vector (B)", "query", "A's answer", "B's answer", "said"],
                examples,
            ),
        ],
        {
            NAME: "Share of answers right for A, for B and for neither: the plain prompt of A (left"
            " bar) and with theta of B at its last token (right bar)."
        },
    )


def _follows_vector(pair: dict[str, Any]) -> bool:
    theta, plain = pair["theta"], pair["plain"]
    return theta["b"]["low"] > max(theta["a"]["high"], plain["b"]["high"])


def _titles(result: dict[str, Any]) -> dict[str, str]:
    """Each task's name without its category."""
    return {
        name: name.removeprefix(f"{category}_").replace("_", " ")
        for name, category in result["categories"].items()
    }


def draw_figure(result: dict[str, Any]) -> Any:
    """Stacked bars, two a pair."""
    from experiments.page import figures

    pairs, tasks = result["pairs"], _titles(result)
    if len(pairs) > 12:
        return _draw_matrix(result)
    figure, (axes,) = figures.canvas(max(6.0, 1.7 * len(pairs) + 1.5), 4.2)
    colours = {"a": "#b9bec6", "b": "#4269d0", "neither": "#ff725c"}
    titles = {
        "a": "right for A (the prompt)",
        "b": "right for B (the vector)",
        "neither": "neither",
    }
    for x, pair in enumerate(pairs.values()):
        for offset, name in ((-0.2, "plain"), (0.2, "theta")):
            base = 0.0
            for kind, colour in colours.items():
                height = pair[name][kind]["accuracy"]
                axes.bar(x + offset, height, 0.36, bottom=base, color=colour)
                base += height
    for kind, colour in colours.items():
        axes.bar(0, 0, color=colour, label=titles[kind])
    labels = [f"{tasks[pair['a']]}\n← {tasks[pair['b']]}" for pair in pairs.values()]
    axes.set_xticks(range(len(pairs)), labels)
    axes.set(ylim=(0, 1.02), ylabel="share of answers")
    axes.set_title(f"{result['model']}: prompt of A (top), theta of B (bottom)")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _draw_matrix(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    names = sorted({pair[side] for pair in result["pairs"].values() for side in ("a", "b")})
    figure, axes = figures.canvas(15, 0.36 * len(names) + 2.2, 1, 2)
    for axis, kind, title in (
        (axes[0], "a", "answers of A, the prompt (row)"),
        (axes[1], "b", "answers of B, the vector (column)"),
    ):
        grid = [
            [
                result["pairs"][f"{a}-{b}"]["theta"][kind]["accuracy"]
                if f"{a}-{b}" in result["pairs"]
                else None
                for b in names
            ]
            for a in names
        ]
        shown = [_titles(result)[name] for name in names]
        figures.heat_map(axis, grid, shown, shown, write=".1f")
        axis.set_xticks(range(len(names)), shown, rotation=60, ha="right")
        axis.set_title(title)
    return figure


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Bars for a few pairs, two matrices for many."""
    return {NAME: draw_figure(result)} if result["pairs"] else {}
