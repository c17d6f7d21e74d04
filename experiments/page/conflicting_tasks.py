"""How `experiments.conflicting_tasks` is shown: its words, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.page import about
from experiments.page.section import (
    Cell,
    Section,
    Table,
    left_out,
    number,
    score,
    task_cell,
    text,
)

NAME = "conflicting_tasks"
MANY_PAIRS = 12  # more are drawn as two matrices
MANY_ROWS = 30  # more pairs are tables of A by B on the page
EXAMPLES = 3
FEW_NAMES = 8


def section(result: dict[str, Any]) -> Section:
    """What wins, the prompt or the vector."""
    pairs, titles = result["pairs"], about.titles_of(result)
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
            f" in {_some(already)}: there a high B-rate is no credit to the vector."
        )
    if unable := [
        f"{titles[pair['a']]} / {titles[pair['b']]}"
        for pair in pairs.values()
        if pair["theta"]["neither"]["accuracy"] > 0.5
    ]:
        words.append(
            f"Mostly neither task is done in {_some(unable)}: such a pair says nothing about"
            " which of the two wins."
        )
    words += left_out(result["notes"])
    rows = []
    for key, pair in pairs.items():
        a, b = pair["a"], pair["b"]
        theirs = pair["published"] or {}
        won = "good" if key in follows else ""
        rows.append(
            [
                task_cell(titles, a),
                task_cell(titles, b),
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
    columns = [
        *("prompt (A)", "vector (B)", "plain: A", "plain: B", "with θ: A", "with θ: B"),
        *("with θ: neither", "random: A", "other θ of A: A", "θ of C: A", "θ of C: B"),
        *("p, B-rate above θ of C's", "distinct queries", "layer", "LLaMA 13B: A", "LLaMA 13B: B"),
    ]
    tables = [
        Table("Prompt of A with theta of B at its last token", columns, rows),
        _examples(result, follows),
    ]
    return Section(
        "Prompt against vector: which task wins?",
        words,
        tables,
        {
            NAME: "Share of answers right for A, for B and for neither: the plain prompt of A"
            " (upper bar) and with theta of B at its last token (lower bar)."
            if len(pairs) <= MANY_PAIRS
            else "Share of answers right for the task of the prompt and for that of the vector."
        },
        [*_matrices(result), tables[1]] if len(pairs) > MANY_ROWS else (),
    )


def _some(names: Sequence[str]) -> str:
    """All of a few names; of many their number and the first ones."""
    if len(names) <= FEW_NAMES:
        return ", ".join(names)
    return f"{len(names)} pairs, {', '.join(names[:FEW_NAMES])} among them"


def _examples(result: dict[str, Any], follows: Sequence[str]) -> Table:
    """A row a pair; of many pairs the first of those in which the vector wins."""
    pairs, titles = result["pairs"], about.titles_of(result)
    shown = list(pairs) if len(pairs) <= MANY_ROWS else list(follows)[:MANY_ROWS]
    rows = []
    for key in shown:
        said = [
            text(
                f"{example['query'].strip()} → {example['said'] or '(nothing)'}; A:"
                f" {example['answer_a'].strip()}; B: {example['answer_b'].strip()}"
            )
            for example in pairs[key]["examples"][:EXAMPLES]
        ]
        sides = [task_cell(titles, pairs[key][side]) for side in ("a", "b")]
        rows.append([*sides, *said, *[text("")] * (EXAMPLES - len(said))])
    some = "" if len(shown) == len(pairs) else f", for {len(shown)} pairs in which the vector wins"
    return Table(
        f"What the model says with theta of B, and the answers that A and B want{some}",
        ["prompt (A)", "vector (B)", *(f"example {i + 1}" for i in range(EXAMPLES))],
        rows,
    )


def _matrices(result: dict[str, Any]) -> list[Table]:
    """What a row for each of many pairs says, as tables of A by B."""
    pairs, titles = result["pairs"], about.titles_of(result)
    rows, columns = (sorted({pair[side] for pair in pairs.values()}) for side in ("a", "b"))
    follows = {key for key, pair in pairs.items() if _follows_vector(pair)}

    def matrix(caption: str, cell: Callable[[str, dict[str, Any]], Cell]) -> Table:
        return Table(
            f"{caption}; rows: the prompt's task A, columns: the vector's task B",
            ["prompt (A)", *(titles[name] for name in columns)],
            [
                [
                    task_cell(titles, a),
                    *(
                        cell(key, pairs[key]) if (key := f"{a}-{b}") in pairs else number(None)
                        for b in columns
                    ),
                ]
                for a in rows
            ],
        )

    return [
        matrix(
            "With theta of B: share right for B",
            lambda key, pair: score(pair["theta"]["b"], "good" if key in follows else ""),
        ),
        matrix("With theta of B: share right for A", lambda _, pair: score(pair["theta"]["a"])),
        matrix("Plain prompt: share right for A", lambda _, pair: score(pair["plain"]["a"])),
        matrix("Plain prompt: share right for B", lambda _, pair: score(pair["plain"]["b"])),
        matrix(
            "p: B-rate above that of theta of C, or of a random vector",
            lambda _, pair: number(pair["b_rate_above"]["p"], 4),
        ),
    ]


def _follows_vector(pair: dict[str, Any]) -> bool:
    theta, plain = pair["theta"], pair["plain"]
    return theta["b"]["low"] > max(theta["a"]["high"], plain["b"]["high"])


def draw_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Bars for a few pairs, two matrices for many."""
    if not result["pairs"]:
        return {}
    many = len(result["pairs"]) > MANY_PAIRS
    return {NAME: (_draw_matrices if many else _draw_bars)(result)}


def _title(result: dict[str, Any]) -> str:
    pairs = list(result["pairs"].values())
    won = sum(_follows_vector(pair) for pair in pairs)
    return (
        f"With theta of task B written into a prompt of task A, the vector wins in {won} of"
        f" {len(pairs)} pairs"
    )


def _draw_bars(result: dict[str, Any]) -> Any:
    from experiments.page import figures

    pairs, titles = result["pairs"], about.titles_of(result)
    figure, (axes,) = figures.canvas(9, 0.62 * len(pairs) + 0.6)
    kinds = {"a": "icl", "b": "task_vector", "neither": "neither"}
    names, places = [], []
    for i, pair in enumerate(pairs.values()):
        for shift, prompt in ((0.0, "plain"), (0.42, "theta")):
            start = 0.0
            for kind, look in kinds.items():
                width = pair[prompt][kind]["accuracy"]
                colour = figures.LOOKS[look].colour
                axes.barh(i + shift, width, 0.36, left=start, color=colour)
                start += width
            places.append(i + shift)
        names += [f"{titles[pair['a']]}", f"+ theta of {titles[pair['b']]}"]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of answers; upper bar the plain prompt of A, lower bar with theta of B")
    key = [
        figures.swatch(title, figures.LOOKS[kinds[kind]].colour)
        for kind, title in (
            ("a", "right for A, which the prompt shows"),
            ("b", "right for B, whose theta is written"),
            ("neither", "neither"),
        )
    ]
    return figures.finish(figure, result, _title(result), key)


def _draw_matrices(result: dict[str, Any]) -> Any:
    from experiments.page import charts, figures

    pairs, titles = result["pairs"], about.titles_of(result)
    rows, columns = (sorted({pair[side] for pair in pairs.values()}) for side in ("a", "b"))
    beside = len(columns) <= 20
    panel = 0.17 * len(rows) + 1.9
    shape = (1, 2) if beside else (2, 1)
    figure, axes = figures.canvas(figures.WIDTH, panel * shape[0], *shape)
    for axis, kind, title in (
        (axes[0], "a", "share of answers of A, the prompt (row)"),
        (axes[1], "b", "share of answers of B, the vector (column)"),
    ):
        grid = [
            [
                pairs[f"{a}-{b}"]["theta"][kind]["accuracy"] if f"{a}-{b}" in pairs else None
                for b in columns
            ]
            for a in rows
        ]
        names = [[titles[name] for name in some] for some in (rows, columns)]
        charts.heat_map(axis, grid, *names, label="share", upright=True)
        axis.set_title(title)
    return figures.finish(figure, result, _title(result))
