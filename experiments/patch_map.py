"""Where the task can be read and where it can be written: layer x position (beyond the paper).

    python -m experiments.patch_map
    python -m experiments.patch_map --patches="arrow:arrow,last answer:arrow"

Two maps. By position: the residual stream is read after each layer at one place of a prompt with a
dummy query, and written after the same layer at a place of the zero-shot query; --patches lists
the places as read:write. By layer: theta is read after each of several layers and written after
every layer, both at the arrow. Places: `prefix` (the token before the query), `query first`,
`query last`, `arrow`; to read only, `last arrow` and `last answer` of the last demonstration.
Besides accuracy, KL in nats of the full prompt's next-token distribution from the patched one.
Runs on up to 10 prompts of one task of each category unless --tasks names others.

Writes patch_map.json and patch_map_positions, patch_map_layers (.png/.svg) under --out.
Expected on the default model at the paper's settings: .63 read at the last demonstration's arrow,
.53 at the dummy query's, 0 anywhere else.

Time: 5 minutes (2 shared cores).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.commands.options import option
from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import scorer_of
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.prompting.places import token_at
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.prompting.tokenizer import PAD, Tokenizer
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.patching import read_states, write_states
from taskvec_jax.vectors.sweep import sweep_layers

NAME = "patch_map"
WRITE_PLACES = ("prefix", "query first", "query last", "arrow")
READ_PLACES = (*WRITE_PLACES, "last arrow", "last answer")
PATCHES = (
    "prefix:prefix",
    "query last:query last",
    "arrow:arrow",
    "last arrow:arrow",
    "last answer:arrow",
)
MOST_PROMPTS = 10
READ_LAYERS = 10  # layers of the second map's rows


@dataclasses.dataclass(frozen=True)
class Options:
    """What this experiment alone can be asked for."""

    patches: tuple[str, ...] = option(
        PATCHES,
        "Patch map: places of reading and writing, as read:write, with commas between.",
        lambda patch: parse_patch(patch),
    )


def run(study: Study, options: Options) -> dict[str, Any]:
    """Both maps, task by task."""
    patches = [parse_patch(patch) for patch in options.patches]
    settings = dataclasses.replace(
        study.settings, num_prompts=min(MOST_PROMPTS, study.settings.num_prompts)
    )
    tasks = studies.chosen_tasks(study, TASKS)
    results: dict[str, dict[str, Any]] = {}
    with study.bar("patch map", len(tasks) * (len(patches) + 1)) as begin:
        for task in tasks:
            by_position = {}
            for read, write in patches:
                begin(f"{task.name}, {read} to {write}")
                by_position[f"{read}:{write}"] = study.unit(
                    f"{NAME}/positions",
                    task,
                    settings,
                    functools.partial(map_positions, study, task, settings, read, write),
                    read=read,
                    write=write,
                )
            begin(f"{task.name}, layer to layer")
            by_layer = study.unit(
                f"{NAME}/layers",
                task,
                settings,
                functools.partial(map_layers, study, task, settings),
                rows=READ_LAYERS,
            )
            results[task.name] = {"positions": by_position, "layers": by_layer}
    return study.result(
        NAME,
        settings,
        {"tasks": results, "num_layers": study.model.config.num_layers},
    )


def parse_patch(patch: str) -> tuple[str, str]:
    """`read:write` -> its two places.

    Raises:
      TaskVecError: a place there is not.
    """
    read, _, write = patch.strip().partition(":")
    for place, allowed in ((read, READ_PLACES), (write, WRITE_PLACES)):
        if place not in allowed:
            raise TaskVecError(f"{patch!r} has no place {place!r}; allowed: {', '.join(allowed)}")
    return read, write


def find_place(tokenizer: Tokenizer, text: str, place: str, template: Template = PAPER) -> int:
    """The token index of a place in a prompt or a zero-shot query.

    A place is where the token stands that holds a certain character: tokens may straddle.

    Raises:
      TaskVecError: the text has no demonstration to look for.
    """
    gap = template.separator + template.before
    found = text.rfind(gap, len(template.header))
    shown = found >= 0  # a demonstration before the query
    start = found + len(template.separator) if shown else len(template.header)
    query = start + len(template.before)
    answer_end = found - len(template.after)
    while text[query] == " ":  # a leading space belongs to the word after it
        query += 1
    if place in ("last arrow", "last answer") and not shown:
        raise TaskVecError(f"there is no {place} in {text!r}: it shows no demonstration")
    characters = {
        "prefix": max(0, start + len(template.before) - 1),
        "query first": query,
        "query last": len(text) - len(template.cue) - 1,
        "arrow": len(text) - 1,
        "last arrow": text.rfind(template.cue, 0, answer_end) + len(template.cue) - 1,
        "last answer": answer_end - 1,
    }
    at = characters[place]
    return token_at([span for _, _, span in tokenizer.pieces(text)], at)


def map_positions(
    study: Study, task: Task, settings: Settings, read: str, write: str
) -> dict[str, Any]:
    """Accuracy and KL by layer for one read place and one write place, the layer the same."""
    model, template = study.model, study.settings.template
    scorer = scorer_of(model, task, settings)
    prompts = draw_prompts(scorer.fitted, settings, "test")
    tokenizer = model.tokenizer
    sources = [p.dummies()[0] for p in prompts]
    tokens, _ = _pad(tokenizer, sources)
    places = np.array([[find_place(tokenizer, s, read, template)] for s in sources])
    states, _ = read_states(model.decoder, model.params, tokens, places)  # [B, 1, L, D]
    whole, ends = _pad(tokenizer, [p.icl() for p in prompts])
    _, wanted = read_states(model.decoder, model.params, whole, ends[:, None])
    queries = [p.zero_shot() for p in prompts]
    tokens, last = _pad(tokenizer, queries)
    targets = np.array([find_place(tokenizer, q, write, template) for q in queries])
    num_layers = model.config.num_layers
    patched = write_states(
        model.decoder,
        model.params,
        tokens,
        last,
        wanted,
        np.arange(num_layers),
        np.repeat(targets[:, None], num_layers, axis=1),
        states[:, 0],
    )
    return {
        "accuracy": scorer.by_first_token(prompts, patched.tokens).mean(axis=0).tolist(),
        "kl": np.round(patched.divergence.astype(float).mean(axis=0), 5).tolist(),
    }


def _pad(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `Tokenizer.pad`, to a multiple of 4 tokens, to keep compiled shapes few."""
    tokens, last = tokenizer.pad(tokenizer.encode_all(texts))
    return np.pad(tokens, ((0, 0), (0, -tokens.shape[1] % 4)), constant_values=PAD), last


def map_layers(study: Study, task: Task, settings: Settings) -> dict[str, Any]:
    """Accuracy of theta read after one layer (row) and written after another (column)."""
    model, scorer = study.model, scorer_of(study.model, task, settings)
    prompts = draw_prompts(scorer.fitted, settings, "test")
    theta = read_theta(model, prompts, settings.batch_size)  # [N, L, D]
    queries = model.tokenizer.encode_all([p.zero_shot() for p in prompts])
    num_layers = theta.shape[1]
    rows = sorted(set(np.linspace(0, num_layers - 1, READ_LAYERS).round().astype(int).tolist()))
    grid = []
    for layer in rows:
        everywhere = np.repeat(theta[:, layer : layer + 1], num_layers, axis=1)
        said = sweep_layers(model, queries, everywhere, settings.batch_size).tokens
        grid.append(scorer.by_first_token(prompts, said[:, 1:]).mean(axis=0).tolist())
    return {"read_layers": rows, "accuracy": grid}


if __name__ == "__main__":
    main(NAME)
