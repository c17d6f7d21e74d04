"""One prompt as the model sees it: token ids, BOS, the arrow, where theta is read and written.

    python -m experiments.show --task=knowledge_country_capital
    python -m experiments.show --task=linguistic_antonyms --index=3 --layer=18
    python -m experiments.show --template='Q: {x}\\nA: {y}' --header='Capitals.\\n'

Answers the question users of task-vector code ask most: where exactly is it extracted, and where
injected? The token is found by the characters that it stands for: it must end the text between {x}
and {y} and hold nothing from before it. Beside each answer stand the likeliest next tokens with
their probabilities.

Time: seconds.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from experiments.run import flags as command
from experiments.run.flags import FLAGS, console
from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.answers import Scorer, scorer_of
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.models.model import Model
from taskvec_jax.models.names import describe
from taskvec_jax.prompting.prompts import Prompt
from taskvec_jax.prompting.templates import PAPER
from taskvec_jax.tasks import Task
from taskvec_jax.transformer.edits import replace
from taskvec_jax.vectors.sweep import read_texts, sweep_layers

DEFAULT_TASK = "knowledge_country_capital"


def main() -> None:
    """Shows the prompt the flags ask for."""
    settings = command.settings_from_flags()
    task = task_from_flags()
    if FLAGS.top < 0:
        raise TaskVecError(f"--top={FLAGS.top}; it must be 0 or more")
    if FLAGS.index < 0:
        raise TaskVecError(f"--index={FLAGS.index}; prompts are counted from 0")
    num_layers = describe(FLAGS.model, FLAGS.revision)[1].num_layers
    if FLAGS.layer is not None and not 0 <= FLAGS.layer < num_layers:
        raise TaskVecError(
            f"--layer={FLAGS.layer} is out of range; allowed: 0 to {num_layers - 1}, counted from 0"
        )
    model = command.model_from_flags()
    scorer = scorer_of(model, task, settings)
    fitted = scorer.fitted
    one = dataclasses.replace(settings, num_prompts=1)
    (prompt,) = draw_prompts(fitted, one, "test", FLAGS.index)

    console.print(f"[bold]{task.name}[/bold], test prompt {FLAGS.index}, seed {settings.seed}")
    console.print(
        f"pairs kept by this tokenizer: {len(fitted.pairs)} of {fitted.num_all};"
        f" written {'with' if fitted.leading_space else 'without'} a leading space"
    )
    template = settings.template
    console.print(f"template: {template.label}", markup=False)
    site = "the arrow" if template == PAPER else f"the end of {template.cue!r}"
    for i, text in enumerate(prompt.dummies(), start=1):
        show_text(model, f"dummy prompt {i}", text, f"<- {site}: θ is read here")
    show_text(model, "zero-shot query", prompt.zero_shot(), f"<- {site}: θ is written here")

    texts = [*prompt.dummies(), prompt.icl()]
    encode = model.tokenizer.encode_all
    residuals, read = read_texts(model, [encode(texts)], batch_size=1)
    theta = residuals[:, :-1].mean(axis=1)  # [1, L, D]
    swept = sweep_layers(model, encode([prompt.zero_shot()]), theta, batch_size=1)
    show_answers(
        scorer,
        prompt,
        int(read.tokens[0, -1]),
        swept.tokens[0],
        theta[0],
        likeliest(model, prompt, theta[0]),
    )


def likeliest(model: Model, prompt: Prompt, theta: np.ndarray) -> list[str]:
    """The likeliest next tokens with their probabilities, --top of them, as text: of the zero-shot
    query, of the in-context prompt, and of the query with theta [L, D] after each layer."""
    if not FLAGS.top:
        return [""] * (2 + len(theta))
    query = prompt.zero_shot()
    edit = replace(theta, layer=np.arange(len(theta)), position=-1)
    found = model.top([query, prompt.icl()], FLAGS.top)
    found += model.top([query] * len(theta), FLAGS.top, edits=edit)
    return ["  ".join(f"{token!r} {share:.2f}" for token, share in row) for row in found]


def task_from_flags() -> Task:
    """The one task of --task or --tasks; without either the model's own first, or countries.

    Raises:
      TaskVecError: there is no such task, or more than one is named.
    """
    named = [*([FLAGS.task] if FLAGS.task is not None else []), *(FLAGS.tasks or [])]
    if len(named) > 1:
        raise TaskVecError(f"one task is shown, but {', '.join(named)} are named; name one")
    if not named and FLAGS.tasks is None and not command.own_task_names():
        named = [DEFAULT_TASK]
    return command.tasks_from_flags(named or None)[0]


def show_text(model: Model, title: str, text: str, site: str) -> None:
    """A table of tokens; `site` is said of the last one."""
    pieces = model.tokenizer.pieces(text)
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for column in ("position", "id", "chars", "token", "text", ""):
        number = column in ("position", "id", "chars")
        side = "right" if number else "left"
        table.add_column(column, justify=side, no_wrap=not column, overflow="fold")
    for position, (token_id, token, (start, end)) in enumerate(pieces):
        last = position == len(pieces) - 1
        mark = site if last else ""
        if start == end:
            mark = "<- added by the tokenizer (BOS)"
        table.add_row(
            str(position),
            str(token_id),
            f"{start}-{end}",
            repr(token)[1:-1],  # a newline would break the row
            repr(text[start:end]),
            mark,
            style="bold" if last else "",
        )
    console.print(table)
    if pieces[0][2][0] != pieces[0][2][1]:
        console.print("BOS: none, this tokenizer adds none by default")
    console.print()


def show_answers(
    scorer: Scorer,
    prompt: Prompt,
    icl: int,
    swept: np.ndarray,
    theta: np.ndarray,
    next_tokens: list[str],
) -> None:
    """Expected and predicted answers, without injection, in context, and by layer of injection.

    Args:
      icl: predicted token of the in-context prompt.
      swept: [1 + L] predicted tokens, the first without injection.
      theta: [L, D].
      next_tokens: as `likeliest` gives them.
    """
    table = Table(title="answers", title_justify="left", box=SIMPLE, pad_edge=False)
    for column in ("", "predicted", "correct", "norm of θ", "next tokens" if FLAGS.top else " "):
        table.add_column(column, no_wrap=not column)

    def add(label: str, token: int, following: str, norm: str = "") -> None:
        correct = scorer.by_first_token([prompt], np.array([token]))[0]
        answer = repr(scorer.words(np.array([token]))[0])
        table.add_row(label, answer, "yes" if correct else "", norm, escape(following))

    accepted = ", ".join(map(repr, (prompt.query.output, *prompt.query.accepted)))
    console.print(f"query {prompt.query.input!r}, expected {accepted}")
    add("zero-shot, no injection", int(swept[0]), next_tokens[0])
    add("in context", icl, next_tokens[1])
    layers = range(len(theta)) if FLAGS.layer is None else [FLAGS.layer]
    for layer in layers:
        add(
            f"θ injected after layer {layer}",
            int(swept[1 + layer]),
            next_tokens[2 + layer],
            f"{np.linalg.norm(theta[layer]):.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    command.define_model_flags()
    command.define_prompt_flags()
    flags.DEFINE_string(
        "task", None, f"the task to show; when left out the model's own first, else {DEFAULT_TASK}"
    )
    flags.DEFINE_integer("index", 0, "Which test prompt, counted from 0.")
    flags.DEFINE_integer("layer", None, "Show injection at this layer only.")
    flags.DEFINE_integer("top", 3, "How many next tokens are shown beside each answer.")
    command.run(main)
