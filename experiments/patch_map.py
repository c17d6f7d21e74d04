"""Where the task can be read and where it can be written: layer x position (beyond the paper).

    python -m experiments.patch_map
    python -m experiments.patch_map --patches="arrow:arrow,last answer:arrow"

Two maps. By position: the residual stream is read after each layer at one place of a prompt with a
dummy query, and written after the same layer at a place of the zero-shot query; --patches lists
the places as read:write. By layer: theta is read after each layer (32 of more) and written after
every layer, both at the arrow. Places: `prefix` (the token before the query), `query first`,
`query last`, `arrow`; to read only, `last arrow` and `last answer` of the last demonstration.
The layer, or the pair of layers, is chosen on dev prompts and scored on test prompts, by first
tokens; the maps show the dev prompts. Besides accuracy, KL in nats of the full prompt's next-token
distribution from the patched one, on the first 10 test prompts. Runs on one task of each category
unless --tasks names others.

Writes patch_map.json and patch_map_positions, patch_map_tasks, patch_map_layers (.png/.svg) under
--out.
Expected: the task travels from an arrow to the arrow and from nowhere else.

Time: 13 minutes (4 tasks, 2 cores).
"""

# Long because: two maps share their prompts and places.

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.commands.options import option
from experiments.commands.runner import main
from experiments.dose import TASKS
from experiments.run import study as studies
from experiments.run.study import Study
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.layers import best_layer
from taskvec_jax.evaluation.reading import draw_prompts, read_theta
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import accuracy
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.places import token_at
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.prompting.templates import PAPER, Template
from taskvec_jax.prompting.tokenizer import PAD, Tokenizer
from taskvec_jax.tasks import Task
from taskvec_jax.vectors.patching import read_states, write_states
from taskvec_jax.vectors.position_patching import layer_windows, patch_last, patch_windows
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
KL_PROMPTS = 10
# Rows of the second map: every layer of most models. Of 10 layers of 30 none lay in the band of
# three or four where theta works, and the map seemed to say that two layers are worse than one.
READ_LAYERS = 32


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
    settings = study.settings
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
        scored_by="paper",
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
    """One read place and one write place, the layer the same.

    Returns:
      accuracy: [L] on dev prompts; kl: [L] in nats; layer: the best of dev; test: the accuracy of
      test prompts there, with its interval.
    """
    scorer = scorer_of(study.model, task, settings)
    right = {}
    for split in ("dev", "test"):
        places = _places(study.model, scorer, settings, split, read, write)
        said = _write_everywhere(study.model, places, settings.batch_size)
        right[split] = scorer.by_first_token(places.prompts, said)  # [N, L]
    by_layer = right["dev"].mean(axis=0)
    layer = best_layer(by_layer)
    queries = [prompt.query.input for prompt in places.prompts]
    return {
        "accuracy": by_layer.tolist(),
        "kl": _divergence(study.model, places.first(KL_PROMPTS)),
        "layer": layer,
        "test": vars(accuracy(right["test"][:, layer], queries)),
    }


class Places(NamedTuple):
    """N prompts, and what is written where in their zero-shot queries.

    Attributes:
      queries: token ids of each query.
      targets: [N], the token index that is written.
      at_end: whether that is the last token of every query.
      states: [N, L, D], what was read after each layer.
    """

    prompts: list[Prompt]
    queries: list[list[int]]
    targets: np.ndarray
    at_end: bool
    states: np.ndarray

    def first(self, count: int) -> Places:
        """Those of the first prompts alone."""
        return self._replace(
            prompts=self.prompts[:count],
            queries=self.queries[:count],
            targets=self.targets[:count],
            states=self.states[:count],
        )


def _places(
    model: Model, scorer: Scorer, settings: Settings, split: str, read: str, write: str
) -> Places:
    tokenizer, template = model.tokenizer, settings.template
    prompts = draw_prompts(scorer.fitted, settings, split)
    sources = [prompt.dummies()[0] for prompt in prompts]
    tokens, _ = _pad(tokenizer, sources)
    places = np.array([[find_place(tokenizer, text, read, template)] for text in sources])
    states = [
        read_states(model.decoder, model.params, tokens[rows], places[rows])[0][:, 0]
        for rows in _batches(len(prompts), settings.batch_size)
    ]
    texts = [prompt.zero_shot() for prompt in prompts]
    queries = tokenizer.encode_all(texts)
    targets = np.array([find_place(tokenizer, text, write, template) for text in texts])
    at_end = all(at == len(ids) - 1 for at, ids in zip(targets, queries, strict=True))
    return Places(prompts, queries, targets, at_end, np.concatenate(states))


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _write_everywhere(model: Model, places: Places, batch_size: int) -> np.ndarray:
    """The next token of each query with its states written after each layer: [N, L]."""
    layers = range(model.config.num_layers)
    if places.at_end:
        return patch_last(model, places.queries, places.states, layers, batch_size)[:, 1:]
    targets = [[int(at)] for at in places.targets]
    states = list(places.states[:, None])
    windows = layer_windows(len(layers))
    return patch_windows(model, places.queries, targets, states, windows, batch_size)[:, 1:]


def _divergence(model: Model, places: Places) -> list[float]:
    """KL by layer, a mean over the prompts."""
    tokenizer, layers = model.tokenizer, np.arange(model.config.num_layers)
    whole, ends = _pad(tokenizer, [prompt.icl() for prompt in places.prompts])
    _, wanted = read_states(model.decoder, model.params, whole, ends[:, None])
    tokens, last = _pad(tokenizer, [prompt.zero_shot() for prompt in places.prompts])
    patched = write_states(
        model.decoder,
        model.params,
        tokens,
        last,
        wanted,
        layers,
        np.repeat(places.targets[:, None], len(layers), axis=1),
        places.states,
    )
    return np.round(patched.divergence.astype(float).mean(axis=0), 5).tolist()


def _pad(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `Tokenizer.pad`, to a multiple of 4 tokens, to keep compiled shapes few."""
    tokens, last = tokenizer.pad(tokenizer.encode_all(texts))
    return np.pad(tokens, ((0, 0), (0, -tokens.shape[1] % 4)), constant_values=PAD), last


def map_layers(study: Study, task: Task, settings: Settings) -> dict[str, Any]:
    """Theta read after one layer (row) and written after another (column), at the arrow.

    Returns:
      read_layers: of the rows; accuracy: rows x L on dev prompts; best: the pair of layers chosen
      there; test: the accuracy of test prompts with that pair, with its interval.
    """
    model, scorer = study.model, scorer_of(study.model, task, settings)
    num_layers = model.config.num_layers
    rows = sorted(set(np.linspace(0, num_layers - 1, READ_LAYERS).round().astype(int).tolist()))

    def right(split: str, read_layers: Sequence[int]) -> tuple[list[Prompt], np.ndarray]:
        """Of each prompt: rows x L."""
        prompts = draw_prompts(scorer.fitted, settings, split)
        theta = read_theta(model, prompts, settings.batch_size)  # [N, L, D]
        queries = model.tokenizer.encode_all([prompt.zero_shot() for prompt in prompts])
        grid = []
        for layer in read_layers:
            everywhere = np.repeat(theta[:, layer : layer + 1], num_layers, axis=1)
            said = sweep_layers(model, queries, everywhere, settings.batch_size).tokens
            grid.append(scorer.by_first_token(prompts, said[:, 1:]))
        return prompts, np.stack(grid, axis=1)

    grid = right("dev", rows)[1].mean(axis=0)
    row, write = np.unravel_index(grid.argmax(), grid.shape)
    prompts, of_test = right("test", [rows[row]])
    scored = accuracy(of_test[:, 0, write], [prompt.query.input for prompt in prompts])
    return {
        "read_layers": rows,
        "accuracy": grid.tolist(),
        "best": [rows[row], int(write)],
        "test": vars(scored),
    }


if __name__ == "__main__":
    main(NAME)
