"""What a partitioned program communicates, read from its HLO.

Convention: bytes are those that one device receives in a ring, per execution of the
program. With ``n`` devices in a group and ``B`` bytes of the whole (gathered or not yet
scattered) array, an all-gather, reduce-scatter or all-to-all costs ``B (n-1)/n``, an
all-reduce ``2 B (n-1)/n``, a collective-permute ``B``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from scm_jax.cost import hlo

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
    """Collectives of one kind in groups of devices that are numbered node by node."""

    kind: str  # one of KINDS
    whole_bytes: float  # of the whole array: gathered, or not yet scattered
    group: Sequence[int]  # the devices that take part with the first one
    times: int = 1  # executions per run of the program: trip counts of loops
    dtype: str = ""  # element type, such as bf16

    @property
    def received_bytes(self) -> float:
        """Bytes one device receives per run of the program, in a ring."""
        return self.times * self.whole_bytes * _ring(self.kind, len(self.group))

    def node_bytes(self, node_devices: int) -> float:
        """Bytes that a node of so many devices receives from others."""
        # Each array once: the devices of a node share what arrives.
        nodes = len({device // node_devices for device in self.group})
        if nodes == 1:
            return 0.0
        groups = max(node_devices * nodes / len(self.group), 1)
        return groups * self.times * self.whole_bytes * _ring(self.kind, nodes)


def _ring(kind: str, size: int) -> float:
    if kind == "collective-permute":
        return 1.0
    return (2.0 if kind == "all-reduce" else 1.0) * (size - 1) / size


def compile_partitioned(lowered: Any) -> tuple[Any, str]:
    """Compiles ``jax.jit(fn).lower(...)`` for a cost estimate, not for speed.

    Returns:
      The compiled program, for its ``memory_analysis``, and its HLO after partitioning;
      empty for a program on one device.
    """
    # Right after the SPMD partitioner: later passes of the CPU backend widen 16-bit
    # collectives to 32 bits and never make reduce-scatters.
    with tempfile.TemporaryDirectory() as folder, _no_compilation_cache():
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd.*"}
        compiled = lowered.compile(compiler_options={**_CHEAP, **options})
        texts = list(pathlib.Path(folder).glob("*after_spmd-partitioning*"))
        return compiled, texts[0].read_text() if texts else ""


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """A program out of JAX's persistent cache would be dumped by nobody."""
    options: Any = jax.config
    enabled = options.jax_enable_compilation_cache
    options.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once whether there is one
    try:
        yield
    finally:
        options.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def read_collectives(text: str) -> list[Collective]:
    """Every collective that a program executes; ``text`` is HLO after the partitioner.

    An all-reduce of which each device keeps only its own shard counts as the
    reduce-scatter that GPU and TPU compilers make of it.

    Raises:
      ValueError: a collective stands in a loop whose length the text does not show.
    """
    program = hlo.parse(text)
    if not program:
        return []
    devices = hlo.num_partitions(text)
    found = []
    for name, times in hlo.executions(program).items():
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
            kind, whole, size = instruction.opcode, instruction.bytes, len(group)
            if kind == "reduce-scatter":
                whole *= size
            elif kind == "all-reduce" and _only_sliced(computation, instruction, size):
                kind = "reduce-scatter"
            found.append(Collective(kind, whole, group, times, instruction.dtype))
    return found


def summarize(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Rows ``kind``, ``dtype``, ``executions`` and ``received_bytes``, by kind."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in sorted(found, key=lambda c: (KINDS.index(c.kind), c.dtype)):
        empty = {"kind": one.kind, "dtype": one.dtype, "executions": 0}
        row = rows.setdefault((one.kind, one.dtype), empty | {"received_bytes": 0.0})
        row["executions"] += one.times
        row["received_bytes"] += one.received_bytes
    return list(rows.values())


def _only_sliced(
    computation: hlo.Computation, reduced: hlo.Instruction, size: int
) -> bool:
    """Whether every use of an all-reduce is a slice to one part in ``size``.

    Uses are followed through operations that merely move or convert elements.
    """
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


def _group(instruction: hlo.Instruction, devices: int) -> tuple[int, ...]:
    """Devices that communicate with the first one of the first group."""
    if instruction.opcode == "collective-permute":
        pairs = instruction.attributes.partition("source_target_pairs=")[2]
        moving = re.findall(r"\{(\d+),(\d+)\}", pairs.partition("=")[0])
        return next(((int(a), int(b)) for a, b in moving if a != b), ())
    found = instruction.attributes.partition("replica_groups=")[2]
    if match := re.match(r"\{\{([\d,]+)\}", found):
        return _ints(match[1])
    if match := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", found):
        return tuple(_ids(match[2]).reshape(_ints(match[1]))[0].tolist())
    if match := _MESH.match(found):
        return _mesh_group(*match.groups())
    return tuple(range(devices))  # {}: all of them


_MESH = re.compile(
    r"mesh\[([^\]]*)\](?:, ?device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+)\))?"
    r" ?\{([^}]*)\}"
)


def _mesh_group(mesh: str, order: str | None, axes: str) -> tuple[int, ...]:
    """Group of the first device in ``mesh['a'=2,'b'=4], device_ids=(...) {'b'}``.

    Only a part of an axis ``'b':(pre)size`` belongs to the group: ``pre`` outer parts
    and what is inside stay fixed.
    """
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    places = {name: [0] for name in sizes}
    for name, pre, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        count = int(part) if part else sizes[name]
        inner = sizes[name] // (int(pre) * count) if part else 1
        places[name] = [p + i * inner for p in places[name] for i in range(count)]
    ids = _ids(order) if order else np.arange(math.prod(sizes.values()))
    ids = ids.reshape(*sizes.values())
    return tuple(ids[np.ix_(*places.values())].ravel().tolist())


def _ids(text: str) -> np.ndarray:
    """A list of ids, or ``[2,4]T(1,0)``: counted in a mesh, in another order."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match is None:
        return np.asarray(_ints(text))
    ids = np.arange(math.prod(_ints(match[1]))).reshape(_ints(match[1]))
    return (ids.transpose(_ints(match[2])) if match[2] else ids).ravel()


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
