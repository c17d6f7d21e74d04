"""What the model says with a vector and without it, side by side.

    python -m experiments.steer --task=linguistic_antonyms --prompt='example: fast->'
    python -m experiments.steer --task=linguistic_antonyms --layers=10,17 --scales=1,2 \\
        --prompt='example: fast->' --save=antonyms.safetensors --export=antonyms.gguf
    python -m experiments.steer --vector=antonyms.safetensors --layers=17 \\
        --inputs=prompts.txt --out=said.jsonl

The vector is the mean theta of a task (--task, read now, at the layer of highest dev accuracy
unless --layers names some), or a file (--vector): of TaskVector.save, or one of a run's
vectors/<task>/. It replaces the state at the last token of the prompt, or is added
(--operation=add: theta minus the mean zero-shot state, at --position). Every layer and scale is
tried on every prompt, and printed with the continuation and the likeliest next tokens. --inputs is
a file with a prompt a line, or JSON lines with "prompt"; then the answers go to --out, a JSON line
for each prompt, layer and scale.

Expected on the default model: " slow" after 'example: fast->'.

Time: half a minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from convert.cli import define_list
from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from experiments.run.writing import write_whole
from taskvec_jax.errors import TaskVecError, first_line
from taskvec_jax.evaluation.extraction import extract_vector
from taskvec_jax.evaluation.measuring import choose_layer
from taskvec_jax.models.generating import EDITED
from taskvec_jax.models.model import Model
from taskvec_jax.transformer.edits import ALL
from taskvec_jax.vectors.placed import OPERATIONS
from taskvec_jax.vectors.vector import TaskVector

Record = dict[str, Any]


def main() -> None:
    """Steers as the flags ask for."""
    prompts = prompts_from_flags()
    position = _position(FLAGS.position)
    if (FLAGS.vector is None) == (FLAGS.task is None):
        raise TaskVecError("name a vector with --vector=FILE, or a task with --task=NAME, not both")
    layers, scales = _numbers("layers", int), _numbers("scales", float)
    loaded = None if FLAGS.vector is None else TaskVector.load(FLAGS.vector)
    settings = command.settings_from_flags()
    tasks = [] if FLAGS.task is None else command.tasks_from_flags([FLAGS.task])
    model = command.model_from_flags()
    if loaded is not None:
        vector = loaded.on(model) if FLAGS.any_model else loaded
        vector.check_model(model)
        layers = layers or list(vector.layers)
    else:
        layers = layers or [choose_layer(model, tasks[0], settings)]
        vector = extract_vector(model, tasks[0], layer="all", settings=settings)
    vectors = [vector.at(layer) for layer in layers]
    operation = FLAGS.operation or vector.operation
    if operation == "add":
        vectors = [one.as_addition(position) for one in vectors]
    elif vector.operation == "add":
        raise TaskVecError("this vector is one to add; --operation=replace cannot be meant")
    console.print(repr(vectors[0] if len(vectors) == 1 else vector), markup=False)
    records = list(steered(model, prompts, vectors, scales))
    if FLAGS.save is not None:
        chosen = vectors[0] if len(vectors) == 1 else vector
        console.print(f"wrote {chosen.save(FLAGS.save)}", markup=False)
    if FLAGS.export is not None:
        written = vectors[0].export(FLAGS.export, as_addition=True)
        console.print(
            f"wrote {written}: a control vector for llama.cpp, which ADDS it at every position"
            + ("; the vector above does something else" if operation == "replace" else ""),
            markup=False,
        )
    if FLAGS.out is not None:
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        write_whole(Path(FLAGS.out), "\n".join(lines) + "\n")
        console.print(f"wrote {len(lines)} answers to {FLAGS.out}", markup=False)
    if FLAGS.inputs is None:
        show(records)


def prompts_from_flags() -> list[str]:
    """The prompts of --prompt, or of the file --inputs.

    Raises:
      TaskVecError: neither or both, or a file that cannot be read.
    """
    if (FLAGS.prompt is None) == (FLAGS.inputs is None):
        raise TaskVecError("give a prompt with --prompt=TEXT, or many with --inputs=FILE, not both")
    if FLAGS.prompt is not None:
        return [FLAGS.prompt.replace("\\n", "\n")]
    if FLAGS.out is None:
        raise TaskVecError("--inputs needs --out=FILE, where a JSON line for each answer goes")
    path = Path(FLAGS.inputs)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TaskVecError(f"{path}: cannot be read ({first_line(error)})") from None
    found = [_prompt(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
    if not found:
        raise TaskVecError(f"{path}: holds no prompt")
    return found


def _prompt(line: str, where: str) -> str:
    """The prompt of a line: the line itself, or what a JSON object on it says."""
    if not line.startswith("{"):
        return line
    try:
        said = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        said = None
    if not isinstance(said, str) or not said:
        raise TaskVecError(f'{where}: not a prompt; a line is text, or {{"prompt": "text"}}')
    return said


def _position(text: str) -> int | str:
    if text == ALL:
        return ALL
    try:
        return int(text)
    except ValueError:
        raise TaskVecError(
            f"--position={text}; allowed: a whole number, negative from the end, or {ALL}"
        ) from None


def _numbers(name: str, kind: type[int] | type[float]) -> list[Any]:
    words: list[str] = FLAGS[name].value or []
    try:
        return [kind(word) for word in words]
    except ValueError:
        raise TaskVecError(
            f"--{name}={','.join(words)}; allowed: numbers with commas between"
        ) from None


def steered(
    model: Model, prompts: Sequence[str], vectors: Sequence[TaskVector], scales: Sequence[float]
) -> Iterator[Record]:
    """A record for each prompt without a vector, and with each vector times each scale."""
    made: list[tuple[Record, Any]] = [({"layer": None, "scale": None}, ())]
    for vector in vectors:
        for scale in scales:
            made.append(({"layer": vector.layer, "scale": scale}, scale * vector))
    found = []
    for about, edits in made:
        said = model.generate(
            prompts, max_new_tokens=FLAGS.max_new_tokens, edits=edits, edit=FLAGS.edit
        )
        following = model.top(prompts, FLAGS.top, edits=edits)
        found.append([(about, text, top) for text, top in zip(said, following, strict=True)])
    for i, prompt in enumerate(prompts):
        for about, text, top in (column[i] for column in found):
            yield {
                "prompt": prompt,
                **about,
                "text": text,
                "next": [{"token": token, "probability": round(p, 6)} for token, p in top],
            }


def show(records: Sequence[Record]) -> None:
    """A table of what was said."""
    table = Table(title=repr(records[0]["prompt"]), title_justify="left", box=SIMPLE)
    for name in ("layer", "scale", "continuation", "next tokens"):
        table.add_column(name, justify="right" if name in ("layer", "scale") else "left")
    for record in records:
        plain = record["layer"] is None
        likely = [f"{one['token']!r} {one['probability']:.2f}" for one in record["next"]]
        table.add_row(
            "none" if plain else str(record["layer"]),
            "" if plain else f"{record['scale']:g}",
            escape(repr(record["text"])),
            escape("  ".join(likely)),
        )
    console.print(table)


def define_flags() -> None:
    """All flags of this command."""
    command.define_model_flags()
    command.define_prompt_flags()
    flags.DEFINE_string("vector", None, "File of a vector.")
    flags.DEFINE_string("task", None, "Task whose mean theta is the vector.")
    define_list("layers", None, "Layers to write after, with commas; the vector's, or the best.")
    define_list("scales", ["1"], "Numbers the vector is multiplied with, with commas.")
    flags.DEFINE_enum(
        "operation", None, list(OPERATIONS), "What is done; the vector's own when left out."
    )
    flags.DEFINE_string("position", "-1", "Where it is added: a token of the prompt, or all.")
    flags.DEFINE_enum(
        "edit", "prompt", list(EDITED), "Which tokens: the prompt's, or always each new one too."
    )
    flags.DEFINE_bool("any_model", False, "Use a vector of another model.")
    flags.DEFINE_string("prompt", None, "A text to continue; \\n is a line break.")
    flags.DEFINE_string("inputs", None, 'File with a prompt a line, or JSON lines with "prompt".')
    flags.DEFINE_string("out", None, "File for the answers, JSON lines.")
    flags.DEFINE_integer("max_new_tokens", 8, "Most tokens of a continuation.")
    flags.DEFINE_integer("top", 3, "How many next tokens are shown.")
    flags.DEFINE_string("save", None, "File to write the vector to (safetensors).")
    flags.DEFINE_string("export", None, "File to write a control vector for llama.cpp to (GGUF).")


if __name__ == "__main__":
    define_flags()
    command.run(main)
