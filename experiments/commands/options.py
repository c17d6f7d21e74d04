"""Options of an experiment: a dataclass whose fields are its arguments in Python and its flags."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from absl import flags

from convert.cli import FLAGS, define_list

T = TypeVar("T")


def option(default: Any, explained: str, check: Callable[[str], object] = str) -> Any:
    """A field of an `Options` dataclass.

    Args:
      default: the value when it is not given.
      explained: a sentence for `--help`.
      check: for a list of words: refuses a word with a TaskVecError.
    """
    return dataclasses.field(default=default, metadata={"help": explained, "check": check})


def define(options: type[Any]) -> None:
    """Defines one flag for each field of an `Options` dataclass.

    A field of type bool, int, float or str (each also `| None`), `Literal[...]` of strings, or
    `tuple[str, ...]` becomes a flag of that kind and of the field's name.

    Raises:
      TypeError: a field of another type.
    """
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kind, explained = hints[field.name], field.metadata["help"]
        default: Any = field.default
        if isinstance(kind, types.UnionType):
            (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
        if typing.get_origin(kind) is Literal:
            flags.DEFINE_enum(field.name, default, list(typing.get_args(kind)), explained)
        elif typing.get_origin(kind) is tuple:
            define_list(field.name, default, explained, field.metadata["check"])
        elif kind in _DEFINE:
            _DEFINE[kind](field.name, default, explained)
        else:
            raise TypeError(f"{options.__name__}.{field.name}: no flag of type {kind}")


_DEFINE: dict[type, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def from_flags(options: type[T]) -> T:
    """The options that the command line gives."""
    values = {}
    for field in dataclasses.fields(typing.cast(Any, options)):
        value = FLAGS[field.name].value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)
