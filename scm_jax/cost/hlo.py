"""HLO text as instructions and computations, and how often each computation runs."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    shape: str  # of the result
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def arrays(self) -> list[tuple[str, int]]:
        """Element type and number of elements of each array of the result."""
        return [
            (dtype, math.prod(int(n) for n in dims.split(",") if n))
            for dtype, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", self.shape)
        ]

    @property
    def dtype(self) -> str:
        return self.arrays[0][0]

    @property
    def elements(self) -> int:
        return sum(count for _, count in self.arrays)

    @property
    def bytes(self) -> int:
        # The first number in a type's name is its width; booleans take a byte.
        return sum(
            count * int(_attribute(dtype, r"(\d+)") or 8) // 8
            for dtype, count in self.arrays
        )


class Computation:
    """Instructions by name, in order, and who uses them."""

    def __init__(self, instructions: Sequence[Instruction], entry: bool) -> None:
        self.instructions = {i.name: i for i in instructions}
        self.entry = entry
        self.users = collections.defaultdict(list)
        for i in instructions:
            for operand in dict.fromkeys(i.operands):
                self.users[operand].append(i)

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)


_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")
_OPCODE = re.compile(r"\s([a-z][a-z0-9-]*)\(")


def parse(hlo: str) -> dict[str, Computation]:
    """The computations of a program by name; empty where the text has none."""
    program: dict[str, Computation] = {}
    name, entry = "", False
    body: list[Instruction] = []
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            name, entry, body = header[2], bool(header[1]), []
        elif line.startswith("}") and name:
            program[name] = Computation(body, entry)
            name = ""
        elif name and (found := _LINE.match(line)):
            body.append(_instruction(found[2], found[3], bool(found[1])))
    return program


def _instruction(name: str, text: str, root: bool) -> Instruction:
    opcode = _OPCODE.search(text)
    assert opcode is not None, text
    end, depth = opcode.end(), 1
    while depth and end < len(text):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    inside = text[opcode.end() : end - 1]
    operands = tuple(part.strip().lstrip("%") for part in inside.split(","))
    if opcode[1] != "constant":  # whose value may contain anything
        operands = tuple(o.rsplit("%", 1)[-1] for o in operands)
    return Instruction(
        name, text[: opcode.start()], opcode[1], operands, text[end:], root
    )


def num_partitions(hlo: str) -> int:
    """The number of devices that a program is partitioned for."""
    return int(_attribute(hlo, r"num_partitions=(\d+)") or 1)


def _attribute(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


_CALLEES = re.compile(
    r"\b(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def executions(program: dict[str, Computation]) -> dict[str, int | None]:
    """How often each computation runs, of a conditional all; None where unknown."""
    times: dict[str, int | None] = collections.defaultdict(int)

    def visit(name: str, count: int | None) -> None:
        before = times[name]
        times[name] = None if before is None or count is None else before + count
        for i in program[name].instructions.values():
            inner = count
            if i.opcode == "while" and count is not None:
                length = _trip_count(program, program[name], i)
                inner = None if length is None else count * length
            called = _CALLEES.findall(i.attributes)
            for branches in _BRANCHES.findall(i.attributes):
                called += [b.strip().lstrip("%") for b in branches.split(",")]
            for callee in called:
                if callee in program:
                    visit(callee, inner)

    visit(next(name for name, c in program.items() if c.entry), 1)
    return dict(times)


def _trip_count(
    program: dict[str, Computation], caller: Computation, loop: Instruction
) -> int | None:
    """Length of a loop that counts up by one, as those of ``lax.scan``; else None."""
    inside = program[_attribute(loop.attributes, r"condition=%?([\w.-]+)") or ""]
    compare = inside.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, end = compare.operands
    try:
        if "#" in counter:  # %param#0
            index = counter.rsplit("#", 1)[1]
        else:
            element = _find(inside, counter, "get-tuple-element")
            index = _attribute(element.attributes, r"index=(\d+)") or ""
        begin = _find(caller, loop.operands[0], "tuple").operands[int(index)]
        return max(_constant(inside, end) - _constant(caller, begin), 0)
    except (KeyError, ValueError):
        return None


def _find(computation: Computation, name: str, opcode: str) -> Instruction:
    found = computation.instructions[name]
    while found.opcode in ("copy", "convert"):
        found = computation.instructions[found.operands[0]]
    if found.opcode != opcode:
        raise ValueError(f"{name} is no {opcode}")
    return found


def _constant(computation: Computation, name: str) -> int:
    return int(_find(computation, name, "constant").operands[0])
