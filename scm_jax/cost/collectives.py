"""What a partitioned program communicates, read from its HLO.

The text is that of the program right after XLA's SPMD partitioner: later passes of the
CPU backend widen 16-bit collectives to 32 bits and never make reduce-scatters.

Convention: bytes are those that one device receives in a ring, per execution of the
program. With ``n`` devices in a group and ``B`` bytes of the whole (gathered or not yet
scattered) array, an all-gather, reduce-scatter or all-to-all costs ``B (n-1)/n``, an
all-reduce ``2 B (n-1)/n``, a collective-permute ``B``.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import pathlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
)

# LLVM's effort is wasted on a program that never runs; buffers are assigned before.
_CHEAP = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# Operations that only move or convert elements: a slice may be taken before them.
_ELEMENTWISE = ("copy", "transpose", "reshape", "bitcast", "convert", "opt-barrier")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a program.

    Attributes:
      kind: one of ``KINDS``.
      dtype: element type, such as ``bf16``.
      whole_bytes: bytes of the whole array: gathered, or not yet scattered.
      group: ids of the devices that take part with device 0's group.
      times: executions per run of the program: trip counts of enclosing loops.
    """

    kind: str
    dtype: str
    whole_bytes: int
    group: tuple[int, ...]
    times: int

    @property
    def received_bytes(self) -> float:
        """Bytes one device receives per run of the program, in a ring."""
        return self.times * self.whole_bytes * ring_factor(self.kind, len(self.group))


def ring_factor(kind: str, size: int) -> float:
    """Received bytes of a device over bytes of the whole array, ``size`` devices."""
    if kind == "collective-permute":
        return 1.0
    return (2.0 if kind == "all-reduce" else 1.0) * (size - 1) / size


def compile_partitioned(lowered: Any) -> tuple[Any, str]:
    """Compiles for accounts, not for speed.

    Args:
      lowered: what ``jax.jit(fn).lower(...)`` returns, for CPU devices.

    Returns:
      The compiled program, for its ``memory_analysis``, and its HLO after partitioning;
      empty for a program on one device.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd.*"}
        compiled = lowered.compile(compiler_options={**_CHEAP, **options})
        texts = list(pathlib.Path(folder).glob("*after_spmd-partitioning*"))
        return compiled, texts[0].read_text() if texts else ""


def read_collectives(hlo: str) -> list[Collective]:
    """Every collective that a program executes.

    An all-reduce of which each device keeps only its own shard is what GPU and TPU
    compilers turn into a reduce-scatter. It counts as one where the text proves it: its
    only users, through operations that merely move or convert elements, are
    dynamic-slices to one part in ``n`` of it.

    Args:
      hlo: text after the SPMD partitioner.

    Raises:
      ValueError: a collective stands in a loop whose length the text does not show.
    """
    program = _parse(hlo)
    if not program:
        return []
    devices = _num_partitions(hlo)
    found = []
    for name, times in _executions(program).items():
        computation = program[name]
        for instruction in computation.instructions.values():
            if instruction.opcode not in KINDS:
                continue
            if times is None:
                raise ValueError(
                    f"{instruction.name} of {name} runs in a loop of unknown length"
                )
            group = _group(instruction, devices)
            if len(group) < 2:
                continue
            kind = instruction.opcode
            whole = instruction.bytes
            if kind == "reduce-scatter":
                whole *= len(group)
            if kind == "all-reduce" and _only_sliced(
                computation, instruction, len(group)
            ):
                kind = "reduce-scatter"
            found.append(Collective(kind, instruction.dtype, whole, group, times=times))
    return found


def summarize(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Rows ``kind``, ``dtype``, ``executions`` and ``received_bytes``, by kind."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in sorted(found, key=lambda c: (KINDS.index(c.kind), c.dtype)):
        empty = {"executions": 0, "received_bytes": 0.0}
        row = rows.setdefault((one.kind, one.dtype), empty)
        row["executions"] += one.times
        row["received_bytes"] += one.received_bytes
    return [{"kind": k, "dtype": d, **row} for (k, d), row in rows.items()]


# --- Reading HLO text -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
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
        return sum(count * _bits(dtype) // 8 for dtype, count in self.arrays)


class _Computation:
    """Instructions by name, in order, and who uses them."""

    def __init__(self, instructions: Sequence[_Instruction], entry: bool) -> None:
        self.instructions = {i.name: i for i in instructions}
        self.entry = entry
        self.users = collections.defaultdict(list)
        for i in instructions:
            for operand in dict.fromkeys(i.operands):
                self.users[operand].append(i)

    @property
    def root(self) -> _Instruction:
        return next(i for i in self.instructions.values() if i.root)


def _bits(dtype: str) -> int:
    """Width of an element: the first number in its name; booleans take a byte."""
    digits = re.search(r"\d+", dtype)
    return int(digits.group()) if digits else 8


_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")
_OPCODE = re.compile(r"\s([a-z][a-z0-9-]*)\(")


def _parse(hlo: str) -> dict[str, _Computation]:
    program: dict[str, _Computation] = {}
    name, entry = "", False
    body: list[_Instruction] = []
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            name, entry, body = header[2], bool(header[1]), []
        elif line.startswith("}") and name:
            program[name] = _Computation(body, entry)
            name = ""
        elif name and (found := _LINE.match(line)):
            body.append(_instruction(found[2], found[3], bool(found[1])))
    return program


def _instruction(name: str, text: str, root: bool) -> _Instruction:
    opcode = _OPCODE.search(text)
    assert opcode is not None, text
    # A constant's value may contain anything but is one operand for our purposes.
    end, depth = opcode.end(), 1
    while depth and end < len(text):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    inside = text[opcode.end() : end - 1]
    operands = tuple(part.strip().lstrip("%") for part in inside.split(","))
    if opcode[1] != "constant":
        operands = tuple(o.rsplit("%", 1)[-1] for o in operands)
    return _Instruction(
        name, text[: opcode.start()], opcode[1], operands, text[end:], root
    )


def _num_partitions(hlo: str) -> int:
    found = re.search(r"num_partitions=(\d+)", hlo)
    return int(found[1]) if found else 1


_CALLEES = re.compile(
    r"\b(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def _executions(program: dict[str, _Computation]) -> dict[str, int | None]:
    """How often each computation runs; None where a loop's length is not known.

    All branches of a conditional count.
    """
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
    program: dict[str, _Computation], caller: _Computation, loop: _Instruction
) -> int | None:
    """Length of a loop that counts up by one, as those of ``lax.scan``; else None."""
    condition = re.search(r"condition=%?([\w.-]+)", loop.attributes)
    assert condition is not None, loop
    inside = program[condition[1]]
    compare = inside.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    index = _counter_index(inside, compare.operands[0])
    if index is None:
        return None
    start = _constant(_tuple_element(caller, loop.operands[0], index))
    end = _constant(inside.instructions.get(compare.operands[1]))
    return None if end is None or start is None else max(end - start, 0)


def _counter_index(condition: _Computation, name: str) -> int | None:
    """Which element of the loop's tuple ``name`` is: ``%param#0``, or an operation."""
    if "#" in name:
        return int(name.rsplit("#", 1)[1])
    counter = condition.instructions.get(name)
    if counter is None or counter.opcode != "get-tuple-element":
        return None
    found = re.search(r"index=(\d+)", counter.attributes)
    return int(found[1]) if found else None


def _tuple_element(
    computation: _Computation, name: str, index: int
) -> _Instruction | None:
    source = computation.instructions.get(name)
    if source is None or source.opcode != "tuple":
        return None
    element = computation.instructions.get(source.operands[index])
    while element is not None and element.opcode in ("copy", "convert"):
        element = computation.instructions.get(element.operands[0])
    return element


def _constant(instruction: _Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    text = instruction.operands[0]
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _only_sliced(computation: _Computation, reduced: _Instruction, size: int) -> bool:
    """Whether every use of an all-reduce is a slice to one part in ``size``."""
    waiting, seen = [reduced], 0
    while waiting:
        current = waiting.pop()
        users = computation.users[current.name]
        if current.root or not users:
            return False
        for user in users:
            if user.opcode == "dynamic-slice" and user.operands[0] == current.name:
                if user.elements * size != reduced.elements:
                    return False
                seen += 1
            elif user.opcode in _ELEMENTWISE:
                waiting.append(user)
            else:
                return False
    return seen > 0


def _group(instruction: _Instruction, devices: int) -> tuple[int, ...]:
    """Devices that communicate with the first one of the first group."""
    if instruction.opcode == "collective-permute":
        pairs = re.search(
            r"source_target_pairs=\{(\{[^=]*\})\}", instruction.attributes
        )
        text = pairs[1] if pairs else ""
        moving = re.findall(r"\{(\d+),(\d+)\}", text)
        return next(((int(a), int(b)) for a, b in moving if a != b), ())
    text = re.search(r"replica_groups=(.*)", instruction.attributes)
    found = text[1] if text else ""
    if match := re.match(r"\{\{([\d,]+)\}", found):
        return tuple(int(n) for n in match[1].split(","))
    if match := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", found):
        shape, source, order = (_ints(part) for part in match.groups())
        ids = np.arange(math.prod(source)).reshape(source)
        ids = ids.transpose(order) if order else ids
        return tuple(int(n) for n in ids.reshape(shape)[0])
    if match := _MESH.match(found):
        return _mesh_group(*match.groups())
    return tuple(range(devices))  # {}: all of them


def _ints(text: str | None) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",")) if text else ()


_MESH = re.compile(
    r"mesh\[([^\]]*)\](?:, ?device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+)\))?"
    r" ?\{([^}]*)\}"
)


def _mesh_group(mesh: str, order: str | None, axes: str) -> tuple[int, ...]:
    """Group of the first device in ``mesh['a'=2,'b'=4], device_ids=(...) {'b'}``.

    ``order`` is a list of ids, or ``[2,4]T(1,0)``: counted in another mesh. Of an axis
    ``'b':(pre)size`` only a part belongs to the group: ``pre`` outer parts and what is
    inside stay fixed.
    """
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    strides, stride = {}, 1
    for name in reversed(sizes):
        strides[name] = stride
        stride *= sizes[name]
    offsets: list[Sequence[int]] = []
    for name, pre, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        count = int(part) if part else sizes[name]
        inner = sizes[name] // (int(pre) * count) if part else 1
        offsets.append([i * inner * strides[name] for i in range(count)])
    places = sorted(sum(choice) for choice in itertools.product(*offsets))
    ids = _device_order(order, stride)
    return tuple(int(ids[place]) for place in places)


def _device_order(order: str | None, count: int) -> np.ndarray:
    if not order:
        return np.arange(count)
    if match := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        ids = np.arange(count).reshape(_ints(match[1]))
        return (ids.transpose(_ints(match[2])) if match[2] else ids).ravel()
    return np.asarray(_ints(order))
