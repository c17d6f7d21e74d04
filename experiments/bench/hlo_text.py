"""The text of a compiled program, taken apart: computations, operations, arrays and their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16}
ITEM_BITS |= {"u16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
FORMS = {"bitcast", "copy", "convert", "reshape", "transpose"}  # the same numbers in another form
# Of a type: item type, sizes, layout.
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


class Op(NamedTuple):
    """One operation.

    Attributes:
      name: without %.
      type: of its result, as it stands.
      kind: such as "fusion".
      operands: names.
      rest: attributes; of constants and parameters, what stands in the parentheses.
    """

    name: str
    type: str
    kind: str
    operands: list[str]
    rest: str


class Module:
    """The computations of a program.

    Attributes:
      parts: name of a computation -> name -> operation, in order of definition.
      roots: name of a computation -> name of the operation that is its result.
      entry: name of the computation that runs first.
    """

    def __init__(self, text: str) -> None:
        self.parts: dict[str, dict[str, Op]] = {}
        self.roots: dict[str, str] = {}
        self.entry = ""
        name = ""
        for line in text.splitlines():
            if not line.startswith(" ") and (head := _HEAD.match(line)):
                name = head[1]
                self.parts[name] = {}
                if line.startswith("ENTRY"):
                    self.entry = name
            elif name and " = " in line and (op := parsed(line)):
                self.parts[name][op.name] = op
                if line.lstrip().startswith("ROOT "):
                    self.roots[name] = op.name

    def type_size(self, part: str, name: str, *, everywhere: bool = False) -> int:
        """Bytes of the result of an operation in main memory, or in any."""
        op = self.parts[part].get(name)
        if op is None:
            return 0
        return sum(array_bytes(array, everywhere=everywhere) for array in ARRAY.findall(op.type))


def parsed(line: str) -> Op | None:
    """An operation from a line of text; None: the line is none."""
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, _, after = rest[end:].lstrip().partition("(")
    if end <= 0 or not re.fullmatch(r"[\w\-]+", kind):
        return None
    close = _closing("(" + after, 0)
    inner, attributes = after[: close - 1], after[close:]
    operands = re.findall(r"%([\w.\-]+)", inner)
    if kind in ("constant", "parameter"):
        attributes = inner
    return Op(name.removeprefix("%"), rest[:end], kind, operands, attributes)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return start + place.start()
    return len(text) - 1


def attribute(op: Op, name: str) -> str:
    """The name of a computation that an attribute holds; empty without one."""
    found = re.search(rf"{name}=%?([\w.\-]+)", op.rest)
    return found[1] if found else ""


def called_by(op: Op) -> list[str]:
    """The computations that an operation calls, those of its loop aside."""
    if branches := re.search(r"branch_computations=\{([^}]*)\}", op.rest):
        return re.findall(r"%?([\w.\-]+)", branches[1])
    names = [attribute(op, name) for name in ("to_apply", "calls", "true_computation")]
    return [name for name in names if name]


def first_call(op: Op) -> str:
    """The first of `called_by`; empty without one."""
    return next(iter(called_by(op)), "")


def dims_of(array: Sequence[str]) -> list[int]:
    """The shape of a match of `ARRAY`."""
    return [int(size) for size in array[1].split(",") if size]


def array_bytes(array: Sequence[str], *, everywhere: bool = False) -> int:
    """Bytes of an array in main memory, whole tiles; in any memory if `everywhere`."""
    kind, _, layout = array
    if kind not in ITEM_BITS or (not everywhere and re.search(r"S\([1-9]", layout)):
        return 0
    dims = dims_of(array)
    order, _, tiling = layout.partition(":")
    if (tile := re.match(r"T\(([\d,]+)\)", tiling)) and order:
        sizes = [int(n) for n in tile[1].split(",")]
        minor = [int(n) for n in order.split(",")][: len(sizes)]
        for axis, size in zip(minor, reversed(sizes), strict=False):
            dims[axis] = -(-dims[axis] // size) * size
    return math.prod(dims) * ITEM_BITS[kind] // 8


def behind_bitcasts(inside: Mapping[str, Op], op: Op) -> Op:
    """The operation whose result another one passes on, in another form at most."""
    while op.kind in FORMS and op.operands and op.operands[0] in inside:
        op = inside[op.operands[0]]
    return op


def users_of(inside: Mapping[str, Op], name: str) -> list[tuple[Op, set[str]]]:
    """Operations that use a value, in other forms too, and the names it has there."""
    seen, found = {name}, []
    for op in inside.values():  # in order of definition
        if seen & set(op.operands):
            if op.kind in FORMS:
                seen.add(op.name)
            else:
                found.append((op, seen))
    return found
