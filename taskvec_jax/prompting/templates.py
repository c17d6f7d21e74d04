# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
r"""Templates: how a pair is written, and where in the text theta is read and written.

>>> Template().zero_shot("hot")  # the paper's
'example:hot->'
>>> template = Template("Q: {x}\nA: {y}", separator="\n\n", header="Give the opposite.\n\n")
>>> template.zero_shot("hot"), template.cue, template.answer_space
('Give the opposite.\n\nQ: hot\nA:', '\nA:', ' ')
>>> Template.of("chatml").zero_shot("hot")  # a turn of a chat
'<|im_start|>user\nhot<|im_end|>\n<|im_start|>assistant\n'

A prompt is the header, the demonstrations with the separator between them, and the query: a pair up
to its answer. Theta is read at the last token of demonstrations + a dummy query, and written at the
last token of header + query. That token must hold the end of the text between {x} and {y} (the cue)
and nothing from before it, which is decided by character offsets (`Tokenizer.ends_in`); spaces
right before {y} belong to the answer, because tokenizers put them there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from taskvec_jax.errors import TaskVecError, first_line, short_repr

X, Y = "{x}", "{y}"
CHAT_FILES = (".jinja", ".json")


@dataclasses.dataclass(frozen=True)
class Template:
    """How prompts are written.

    Attributes:
      pair: one pair, with {x} and then {y} in it, and something else than spaces between.
      separator: between pairs.
      header: before everything, with demonstrations and without: a zero-shot query has it too, so
        that the demonstrations alone make the difference.

    Raises:
      TaskVecError: a part that is no string, or a pair without {x}, {y} or a cue.
    """

    pair: str = "example:{x}->{y}"
    separator: str = "\n"
    header: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not isinstance(got := getattr(self, field.name), str):
                raise TaskVecError(f"template: {field.name} is {short_repr(got)}; must be a string")
        if self.pair.count(X) != 1 or self.pair.count(Y) != 1 or not self.cue:
            raise TaskVecError(
                f"template {self.pair!r}: it must have {X} and then {Y} once each, with something"
                " else than spaces between them, at whose last token theta is read: 'Q: {x}\\nA:"
                " {y}'"
            )
        if not self.separator:
            raise TaskVecError(f"template {self.pair!r}: its separator is empty")

    @property
    def before(self) -> str:
        """What stands before {x}."""
        return self.pair.partition(X)[0]

    @property
    def cue(self) -> str:
        """What stands between {x} and {y}, without the spaces that belong to the answer."""
        return self.pair.partition(X)[2].partition(Y)[0].rstrip(" ")

    @property
    def answer_space(self) -> str:
        """The spaces right before {y}, which are written as part of the answer."""
        between = self.pair.partition(X)[2].partition(Y)[0]
        return between[len(self.cue) :]

    @property
    def after(self) -> str:
        """What stands after {y}."""
        return self.pair.partition(Y)[2]

    def ask(self, x: str) -> str:
        """A query without its header, up to the cue."""
        return f"{self.before}{x}{self.cue}"

    def show(self, x: str, y: str) -> str:
        """A demonstration; `y` has the spaces before it."""
        return f"{self.ask(x)}{y}{self.after}"

    def zero_shot(self, x: str) -> str:
        """The query alone, with the header."""
        return self.header + self.ask(x)

    @property
    def label(self) -> str:
        """A short name: of a named template, else the pair in one line and what differs besides."""
        for name, named in NAMED.items():
            if self == named:
                return name
        rest = [("separator", "\n"), ("header", "")]
        more = [f"{k} {getattr(self, k)!r}" for k, usual in rest if getattr(self, k) != usual]
        return ", ".join([repr(self.pair), *more])

    @classmethod
    def of(cls, text: str, *, separator: str | None = None, header: str | None = None) -> Template:
        """What a command line says: a name of `NAMED`, a pair, or the file of a chat template.

        In all three parts `\\n` and `\\t`, written as two characters, are a newline and a tab.

        Args:
          text: a name, a pair with {x} and {y}, or the path of a model's chat_template.jinja or
            tokenizer_config.json (see `chats.read_chat_template`).
          separator, header: as of `Template`; of a chat, `header` is the system message.

        Raises:
          TaskVecError: none of these, or a pair that will not do.
        """
        said = {
            name: value
            for name, value in (("separator", separator), ("header", header))
            if value is not None
        }
        said = {name: _unescaped(value) for name, value in said.items()}
        if X in text:
            return cls(_unescaped(text), **said)
        if text in CHATS:
            return CHATS[text](**said)
        if text in NAMED:
            return dataclasses.replace(NAMED[text], **said)
        if text.endswith(CHAT_FILES):
            from taskvec_jax.prompting.chats import read_chat_template  # imports Jinja

            try:
                parts = read_chat_template(Path(text), said.get("header", ""))
            except (OSError, ValueError) as error:
                if isinstance(error, TaskVecError):
                    raise
                raise TaskVecError(f"{text}: cannot be read ({first_line(error)})") from None
            said.pop("header", None)
            return dataclasses.replace(cls(*parts), **said)
        raise TaskVecError(
            f"template is {text!r}; allowed: a pair with {X} and {Y}, such as 'Q: {X}\\nA: {Y}',"
            f" {', '.join(NAMED)}, or the path of a chat template (chat_template.jinja, or"
            " tokenizer_config.json)"
        )


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _chatml(header: str = "", separator: str = "\n") -> Template:
    system = f"<|im_start|>system\n{header}<|im_end|>\n" if header else ""
    turns = "<|im_start|>user\n{x}<|im_end|>\n<|im_start|>assistant\n{y}<|im_end|>"
    return Template(turns, separator, system)


def _llama3(header: str = "", separator: str = "<|eot_id|>") -> Template:
    def turn(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}"

    system = f"{turn('system', header)}<|eot_id|>" if header else ""
    return Template(f"{turn('user', X)}<|eot_id|>{turn('assistant', Y)}", separator, system)


def _gemma(header: str = "", separator: str = "\n") -> Template:
    turns = "<start_of_turn>user\n{x}<end_of_turn>\n<start_of_turn>model\n{y}<end_of_turn>"
    return Template(turns, separator, f"{header}\n\n" if header else "")


CHATS = {"chatml": _chatml, "llama3": _llama3, "gemma": _gemma}  # header: the system message
PAPER = Template()
NAMED = {
    "paper": PAPER,
    "equals": Template("{x} = {y}"),
    "qa": Template("Q: {x}\nA: {y}", "\n\n"),
    "io": Template("Input: {x}\nOutput: {y}", "\n\n"),
    **{name: make() for name, make in CHATS.items()},
}
