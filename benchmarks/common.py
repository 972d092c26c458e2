"""What all benchmarks share: how they print, time and compare.

    python -m benchmarks.NAME [--quick]

Every benchmark prints JSON lines, each with the device, the versions and the commit,
and as its last line the ratio that it is about and the limit this is held against.
Times are compared within one run only, and in turns, since machines are noisy.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import textwrap
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from scm_jax.runs.directory import layout

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@functools.cache
def environment() -> dict[str, Any]:
    """Device, number of devices and CPUs, versions, commit (``+dirty`` if changed)."""
    found = layout.environment()
    versions = found["versions"]
    return {
        "device": found["device"],
        "device_count": found["device_count"],
        "cpu_count": os.cpu_count(),
        "versions": {
            "python": found["python"],
            **{name: versions[name] for name in ("jax", "jaxlib", "flax")},
        },
        "commit": f"{found['commit']}{'+dirty' if found['dirty'] else ''}",
    }


def emit(**row: Any) -> dict[str, Any]:
    """Prints one JSON line, the environment at its end; returns what it printed."""
    row = _rounded(row)
    print(json.dumps({**row, **environment()}), flush=True)
    return row


def ratio(
    name: str, value: float, *, limit: float | None = None, **more: Any
) -> dict[str, Any]:
    """Prints the last line of a benchmark: the ratio it is about.

    Args:
      name: what is divided by what, such as ``blocked/copy``.
      value: the ratio.
      limit: the most it may be; None where there is nothing to hold it against.
      **more: further entries of the line.
    """
    held = {} if limit is None else {"limit": limit, "held": bool(value <= limit)}
    return emit(ratio=name, value=value, **held, **more)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return value


def seconds(
    fn: Callable[[], Any], repeats: int = 5, *, warmup: int = 1, clock: str = "wall"
) -> float:
    """Median time of ``fn()``, waiting for the arrays it returns.

    Args:
      fn: what to time.
      repeats: timed calls.
      warmup: calls before these, which compile.
      clock: ``wall``, or ``cpu`` for the CPU time of all threads of this process,
        which other processes on the machine disturb less.
    """
    for _ in range(warmup):
        jax.block_until_ready(fn())
    return statistics.median(_time(fn, clock) for _ in range(repeats))


class Paired(NamedTuple):
    """Two functions timed in turns.

    Attributes:
      a: median seconds of the first.
      b: median seconds of the second.
      ratio: median of ``a / b`` over the pairs.
      spread: quartiles of these ratios.
    """

    a: float
    b: float
    ratio: float
    spread: tuple[float, float]


def paired(
    a: Callable[[], Any],
    b: Callable[[], Any],
    repeats: int = 10,
    *,
    warmup: int = 1,
    clock: str = "wall",
) -> Paired:
    """Times ``a()`` and ``b()`` in turns: a b, b a, a b, ...

    A change of the machine's speed hits both of a pair, so the median of the ratios is
    steadier than the ratio of the medians. For the arguments see ``seconds``.
    """
    for fn in (a, b):
        for _ in range(warmup):
            jax.block_until_ready(fn())
    times: dict[str, list[float]] = {"a": [], "b": []}
    for i in range(repeats):
        order = [("a", a), ("b", b)]
        for name, fn in reversed(order) if i % 2 else order:
            times[name].append(_time(fn, clock))
    ratios = [x / y for x, y in zip(times["a"], times["b"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if repeats > 1 else ratios * 3
    return Paired(
        statistics.median(times["a"]),
        statistics.median(times["b"]),
        statistics.median(ratios),
        (low, high),
    )


def _time(fn: Callable[[], Any], clock: str) -> float:
    now = CLOCKS[clock]
    began = now()
    jax.block_until_ready(fn())
    return now() - began


def wrapped(lines: list[str]) -> list[str]:
    """The lines with paragraphs and items of lists filled up to 80 columns."""
    out: list[str] = []
    paragraph: list[str] = []
    fenced = False
    for line in [*lines, ""]:
        as_it_is = fenced or not line or line.startswith(("|", "#", "```"))
        if paragraph and (as_it_is or line.startswith("- ")):
            indent = "  " if paragraph[0] == "-" else ""
            out += textwrap.wrap(
                " ".join(paragraph),
                80,
                subsequent_indent=indent,
                break_on_hyphens=False,
                break_long_words=False,
            )
            paragraph = []
        fenced ^= line.startswith("```")
        if as_it_is:
            out.append(line)
        else:
            paragraph += line.split()
    return out
