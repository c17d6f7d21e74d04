"""`--help`: every flag of a command with its default, grouped by what it is about."""

from __future__ import annotations

import contextlib
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

ASKED = frozenset({"--help", "-help", "-h", "--h", "-?", "--helpshort", "--helpfull"})
OWN = "Flags of this command"
COLUMN = 30  # where explanations begin
WIDTHS = 72, 100  # least and most characters of a line
KINDS = {"bool": "", "int": "=N", "float": "=X", "comma separated list of strings": "=A,B,..."}
_groups: dict[str, list[str]] = {}
_NEEDED = re.compile(r"Flag --(\w+) must have a value other than None")


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """Puts the flags that are defined inside under a title in `--help`; also a decorator.

    A flag that an inner group has already stays there.
    """
    before = set(flags.FLAGS)
    names = _groups.setdefault(title, [])
    yield
    known = {name for names in _groups.values() for name in names}
    names += [name for name in flags.FLAGS if name not in before | known]


def is_asked_for(words: Iterable[str]) -> bool:
    """Whether the words of a command line ask for help."""
    return not ASKED.isdisjoint(words)


def text(about: str) -> str:
    """What a command does, and all its flags.

    Args:
      about: the docstring of the command's module.
    """
    least, most = WIDTHS
    width = min(max(shutil.get_terminal_size().columns, least), most)
    shown = project_flags()
    grouped = {name for names in _groups.values() for name in names}
    order = {OWN: [name for name in shown if name not in grouped], **_groups}
    lines = [about.strip()]
    for title, names in order.items():
        here = [name for name in names if name in shown]
        if here:
            lines += ["", f"{title}:"]
        for name in here:
            lines += _lines(shown[name], width)
    return "\n".join(lines)


def project_flags() -> dict[str, Any]:
    """Name -> flag, of every flag of this project in the order of definition; none of absl's."""
    found = {
        flag.name: flag
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        if not module.startswith("absl")
        for flag in defined
    }
    return {name: found[name] for name in flags.FLAGS if name in found}


def _lines(flag: Any, width: int) -> list[str]:
    kind = flag.flag_type()
    values = KINDS.get(kind, "=TEXT")
    explained = flag.help
    if "enum" in kind:
        values = f"={'|'.join(flag.parser.enum_values)}"
        explained = explained.partition(">: ")[2]  # absl puts the values before it
    written = f"  --{'[no]' if kind == 'bool' else ''}{flag.name}{values}"
    first_word = explained.split()[0]
    if first_word.isalpha():
        explained = explained[0].upper() + explained[1:]
    explained = f"{explained.rstrip('.')}.{_unless_given(flag)}"
    wrapped = textwrap.wrap(explained, width - COLUMN, break_on_hyphens=False)
    if len(written) >= COLUMN:
        return [written, *(" " * COLUMN + line for line in wrapped)]
    first, *rest = wrapped
    return [f"{written:<{COLUMN}}{first}", *(" " * COLUMN + line for line in rest)]


def _unless_given(flag: Any) -> str:
    """What a flag is when it is left out, unless its explanation says so."""
    if _is_needed(flag.name):
        return " (needed)"
    if flag.default is None:
        return ""
    if isinstance(flag.default, bool):
        return " (on)" if flag.default else ""
    default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return f" (default: {default})"


def _is_needed(name: str) -> bool:
    validators = flags.FLAGS[name].validators
    return any(_NEEDED.search(str(validator.message)) for validator in validators)


def explain(error: Exception) -> str:
    """What is wrong with a command line, and the way out, in one line."""
    if isinstance(error, flags.UnrecognizedFlagError):
        close = difflib.get_close_matches(error.flagname, project_flags(), n=1)
        hint = f" (did you mean --{close[0]}?)" if close else ""
        return f"unknown flag --{error.flagname}{hint}; --help lists the flags"
    if missing := _NEEDED.search(str(error)):
        name = missing[1]
        return f"--{name} is needed: {flags.FLAGS[name].help}; --help lists the flags"
    return f"{error}; --help lists the flags"


def show() -> None:
    """Prints the help of the command that is running."""
    print(text(sys.modules["__main__"].__doc__ or ""))
