"""A model's own chat template (Jinja) as a `Template`: each pair is a user's turn and an answer.

The template is rendered with marks in place of the texts, and what stands between the marks is the
pair, the separator and the header. So a prompt is what the model's own chat format would be for a
conversation of the demonstrations, ending where the assistant is to answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from taskvec_jax.errors import TaskVecError, first_line

MARKS = ("QUESTION0", "ANSWER0", "QUESTION1", "ANSWER1", "QUESTION2")


def read_chat_template(path: Path, system: str = "") -> tuple[str, str, str]:
    """pair, separator and header of the chat template in a file.

    Args:
      path: a chat_template.jinja, or a tokenizer_config.json that holds one. The EOS that some
        templates write is that of the tokenizer_config.json; BOS is left to the tokenizer.
      system: the system message; "" for none.

    Raises:
      TaskVecError: there is none in the file, or it cannot be taken apart.
      OSError, ValueError: the file cannot be read.
    """
    settings_path = path if path.suffix == ".json" else path.with_name("tokenizer_config.json")
    settings = {}
    if settings_path.is_file():
        settings = json.loads(settings_path.read_text(encoding="utf-8"))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        text = settings.get("chat_template") if isinstance(settings, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise TaskVecError(f"{path}: it holds no chat template; allowed: a text of Jinja")
    eos = settings.get("eos_token") or ""
    return parts_of(text, str(path), system, eos if isinstance(eos, str) else eos["content"])


def parts_of(source: str, where: str, system: str = "", eos: str = "") -> tuple[str, str, str]:
    """pair, separator and header of a chat template.

    Args:
      source: the text of the template.
      where: what it is called in messages.

    Raises:
      TaskVecError: it fails, or it writes one turn otherwise than another.
    """

    def refuse(message: str) -> NoReturn:
        raise TaskVecError(f"{where}: the template refuses such a conversation ({message})")

    roles = ("user", "assistant", "user", "assistant", "user")
    messages = [{"role": r, "content": mark} for r, mark in zip(roles, MARKS, strict=True)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    known: dict[str, Any] = {"bos_token": "", "eos_token": eos, "raise_exception": refuse}
    try:
        text = environment.from_string(source).render(
            messages=messages, add_generation_prompt=True, **known
        )
    except jinja2.TemplateError as error:
        raise TaskVecError(f"{where}: not a chat template ({first_line(error)})") from None
    places = [text.find(mark) for mark in MARKS]
    if min(places) < 0 or places != sorted(places):
        raise TaskVecError(f"{where}: it leaves out or rewrites the texts of a conversation")
    ends = [place + len(mark) for place, mark in zip(places, MARKS, strict=True)]
    gaps = [text[end:place] for end, place in zip(ends, places[1:], strict=False)]
    cue, turn, again, turn_again = gaps
    if cue != again or turn != turn_again or text[ends[-1] :] != cue:
        raise TaskVecError(
            f"{where}: it writes the turns of a conversation in several ways"
            f" ({again!r}, then {text[ends[-1] :]!r}); write the pair by hand, with {{x}} and {{y}}"
        )
    return f"{{x}}{cue}{{y}}", turn, text[: places[0]]
