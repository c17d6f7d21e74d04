"""What a compiled program does, counted in its text: products, bytes moved, collectives.

XLA's own `cost_analysis` counts the body of a loop once, and gives nothing at all for a GPU. Here a
loop counts as often as it turns. Counts are of one device.

* FLOPs: of dots and convolutions (a TPU's products are convolutions), a multiply and an add as two,
  by how they are computed: "bfloat16" (or fewer bits), or float32 at "default", "high", "highest".
* Bytes: what operations read from and write to the device's main memory, padding of tiles
  included. What stays in faster memory (a layout with S(1) on a TPU) costs nothing. Of an operand
  that is only sliced, or a result that only has a slice updated, the slice counts.
* Collectives: kind, bytes of the result, devices that take part, and how often.
"""

from __future__ import annotations

import base64
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from experiments.bench.hlo_convolution import multiplications
from experiments.bench.hlo_text import (
    ARRAY,
    FORMS,
    ITEM_BITS,
    Module,
    Op,
    array_bytes,
    attribute,
    behind_bitcasts,
    called_by,
    dims_of,
    first_call,
    users_of,
)

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that move nothing by themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "domain", "iota"}
SLICES = {"dynamic-slice", "slice", "gather"}
SOFTMAX = "online-softmax"  # a TPU's kernel of scores [..., T, S] and values [..., S, K]
CALLS = {"call", "async-start", "conditional"}


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of what a device has of it in the end.
      devices: that take part in one group.
      times: how often it runs.
      loop: the loop that it stands in; "" outside of loops.
    """

    kind: str
    bytes: int
    devices: int
    times: int
    loop: str


class Work(NamedTuple):
    """What a program does on one device.

    Attributes:
      flops: by how products are computed.
      bytes: read and written.
      collectives: each one once, with how often it runs.
      loops: names of the loops.
    """

    flops: dict[str, int]
    bytes: int
    collectives: list[Collective]
    loops: list[str]


def count(text: str, devices: int = 1) -> Work:
    """The work of a compiled program, from `compiled.as_text()`.

    Args:
      devices: in the mesh; the size of groups that the text does not tell.
    """
    return _Module(text, devices).work()


class _Module(Module):
    def __init__(self, text: str, devices: int) -> None:
        super().__init__(text)
        self.devices = devices

    def work(self) -> Work:
        flops: Counter[str] = Counter()
        moved, found, loops = 0, {}, []
        for part, times, loop in self._runs(self.entry, 1, ""):
            if loop and loop not in loops:
                loops.append(loop)
            for op in self.parts[part].values():
                moved += times * self._moved(part, op)
                for inner, one in self._inside(part, op):
                    if kind := next(
                        (k for k in COLLECTIVES if one.kind in (k, f"{k}-start")), None
                    ):
                        if inner.startswith("all-reduce-scatter"):
                            kind = "reduce-scatter"
                        channel = re.search(r"channel_id=(\d+)", one.rest)
                        key = (loop, kind, channel[1] if channel else one.name)
                        found[key] = self._collective(inner, one, kind, times, loop)
                    elif one.kind in ("dot", "convolution") or _is_product(one):
                        how, number = self._product(inner, one)
                        flops[how] += times * number
        return Work(dict(flops), moved, list(found.values()), loops)

    def _runs(self, part: str, times: int, loop: str) -> Iterator[tuple[str, int, str]]:
        """The computations that run by themselves, how often, and in which loop."""
        yield part, times, loop
        for op in self.parts.get(part, {}).values():
            if op.kind == "while":
                body = attribute(op, "body")
                yield from self._runs(body, times * self._turns(op), body)
            elif op.kind in CALLS:
                for called in called_by(op):
                    if called in self.parts:
                        yield from self._runs(called, times, loop)

    def _turns(self, op: Op) -> int:
        """How often a loop turns: as it says, or the number that its condition compares with."""
        if said := re.search(r'"known_trip_count":\{"n":"(\d+)"', op.rest):
            return int(said[1])
        condition = attribute(op, "condition")
        numbers = [
            int(one.rest)
            for name in {condition, *map(first_call, self.parts.get(condition, {}).values())}
            for one in self.parts.get(name, {}).values()
            if one.kind == "constant" and one.type.startswith("s32[]") and one.rest.isdecimal()
        ]
        return max(numbers, default=1) or 1

    def _inside(self, part: str, op: Op) -> Iterator[tuple[str, Op]]:
        """An operation and, of a fusion, those in it."""
        yield part, op
        if op.kind == "fusion":
            called = first_call(op)
            for one in self.parts.get(called, {}).values():
                yield from self._inside(called, one)

    def _collective(self, part: str, op: Op, kind: str, times: int, loop: str) -> Collective:
        size = sum(array_bytes(array, everywhere=True) for array in ARRAY.findall(op.type))
        if op.kind.endswith("-start") and kind in ("all-gather", "collective-permute"):
            given = sum(self.type_size(part, name, everywhere=True) for name in op.operands)
            size -= given  # the type of a start holds the operands too
        group = _group(op.rest, self.devices)
        if kind == "reduce-scatter" and op.kind.startswith("all-reduce"):
            size //= group
        return Collective(kind, size, group, times, loop)

    def _moved(self, part: str, op: Op) -> int:
        """Bytes that an operation of a computation that runs by itself reads and writes."""
        if op.kind in FREE or op.kind in CALLS or op.kind == "while" or op.kind.endswith("-done"):
            return 0
        if op.kind == "custom-call" and re.search('custom_call_target="(Async|Allocate)', op.rest):
            return 0
        arrays = ARRAY.findall(op.type)
        if op.kind in ("copy-start", "slice-start", "dynamic-slice-start"):
            read = array_bytes(arrays[0], everywhere=True) if op.kind != "copy-start" else 0
            read = read or self.type_size(part, op.operands[0])
            return read + array_bytes(arrays[0])
        if op.kind in SLICES:
            return 2 * sum(map(array_bytes, arrays))
        if op.kind == "dynamic-update-slice":
            return 2 * self.type_size(part, op.operands[1])
        if op.kind == "fusion":
            return self._moved_by_fusion(part, op)
        if any(op.kind == f"{kind}-start" for kind in COLLECTIVES):
            return 2 * sum(self.type_size(part, name) for name in op.operands)
        return sum(map(array_bytes, arrays)) + sum(
            self.type_size(part, name) for name in op.operands
        )

    def _moved_by_fusion(self, part: str, op: Op) -> int:
        called = first_call(op)
        inside = self.parts.get(called, {})
        root = inside.get(self.roots.get(called, ""))
        written = sum(map(array_bytes, ARRAY.findall(op.type)))
        updated = set()
        ends = [] if root is None else [root]
        if root is not None and root.kind == "tuple":
            ends = [inside[name] for name in root.operands if name in inside]
        for end in map(functools.partial(behind_bitcasts, inside), ends):
            if end.kind == "dynamic-update-slice":
                written -= self.type_size(called, end.name)
                written += self.type_size(called, end.operands[1])
                updated.add(behind_bitcasts(inside, inside[end.operands[0]]).name)
        read = 0
        for one in inside.values():
            if one.kind != "parameter" or not one.rest.isdecimal() or one.name in updated:
                continue
            given = op.operands[int(one.rest)] if int(one.rest) < len(op.operands) else ""
            whole = self.type_size(part, given)
            sliced = self._sliced(called, one.name)
            read += whole if sliced is None else min(whole, sliced)
        return max(written, 0) + read

    def _sliced(self, part: str, name: str) -> int | None:
        """Bytes of the slices that a fusion takes of a value; None: it reads all of it."""
        total = 0
        users = users_of(self.parts[part], name)
        for user, names in users:
            if user.kind in SLICES and user.operands[0] in names:
                # As much as the slice has numbers, in the type that they are kept in.
                kept = ARRAY.findall(self.parts[part][name].type)[0][0]
                for array in ARRAY.findall(user.type):
                    size = array_bytes(array, everywhere=True)
                    total += size * ITEM_BITS[kept] // ITEM_BITS[array[0]]
                continue
            if user.kind != "fusion":
                return None
            called = first_call(user)
            ops = self.parts.get(called, {}).values()
            if all(one.kind == "parameter" or one.kind in FORMS for one in ops):
                inner = self._sliced(part, user.name)  # the same numbers in another form
                if inner is None:
                    return None
                total += inner
                continue
            for one in ops:
                if one.kind != "parameter" or user.operands[int(one.rest)] not in names:
                    continue
                inner = self._sliced(called, one.name)
                if inner is None:
                    return None
                total += inner
        return total if users else None

    def _product(self, part: str, op: Op) -> tuple[str, int]:
        """How a product is computed, and its FLOPs."""
        types = [
            self.parts[part][name].type for name in op.operands[:2] if name in self.parts[part]
        ]
        arrays = [ARRAY.findall(text)[0] for text in types]
        left, right = (dims_of(array) for array in arrays)
        out = math.prod(dims_of(ARRAY.findall(op.type)[0]))
        if op.name.startswith(SOFTMAX):
            number = 2 * out * left[-1]
        elif op.kind == "convolution":
            number = 2 * multiplications(op, left, right, dims_of(ARRAY.findall(op.type)[0]))
        else:
            axes = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)', op.rest)
            summed = [int(n) for n in re.findall(r"\d+", axes[1])] if axes else []
            number = 2 * out * math.prod(left[axis] for axis in summed)
        if any(array[0] not in ("f32", "f64") for array in arrays):
            return "bfloat16", number
        if op.name.startswith(SOFTMAX):
            return _precision_of_kernel(op), number
        said = re.search(r'operand_precision"?[=:][{\[]"?(\w+)', op.rest)
        return (said[1].lower() if said else "default"), number


def _is_product(op: Op) -> bool:
    """Whether a custom call is a product of cuBLAS, or a TPU's softmax and the product after it."""
    calls = '"__cublas$' in op.rest or op.name.startswith(SOFTMAX)
    return op.kind == "custom-call" and calls


def _precision_of_kernel(op: Op) -> str:
    """How a kernel for TPUs computes products: its text is in its attributes, in base 64."""
    body = re.search(r'"body":"([\w+/=]+)"', op.rest)
    text = base64.b64decode(body[1] + "===") if body else b""
    return "highest" if b"contract_precision<fp32>" in text else "default"


def _group(rest: str, devices: int) -> int:
    """How many devices a group of a collective has."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if shaped := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(shaped[2])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", meshed[1]))
        return math.prod(int(sizes.get(name, 1)) for name in re.findall(r"'([^']+)'", meshed[2]))
    return devices
