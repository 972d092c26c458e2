"""The state of all runs of a sweep, as a table for 80 columns and as JSON."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.runs.directory.labels import (
    short_count,
    short_names,
    short_value,
    varying_keys,
)
from scm_jax.sweeps import submissions
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import states
from scm_jax.sweeps.state.states import RunState

if TYPE_CHECKING:
    from rich.text import Text

logger = logging.getLogger(__name__)

# What needs a look comes first, and what is cut off is done or waits.
_ORDER = (
    states.RUNNING,
    states.FAILED,
    states.STALE,
    states.PREEMPTED,
    states.MISSING,
    states.QUEUED,
    states.DONE,
)
_STYLES = {
    states.DONE: "green",
    states.RUNNING: "bold cyan",
    states.STALE: "yellow",
    states.PREEMPTED: "yellow",
    states.FAILED: "bold red",
    states.QUEUED: "blue",
    states.MISSING: "dim",
}
# Title -> width.
_COLUMNS = {
    "state": 9,
    "done": 4,
    "img/s": 5,
    "left": 6,
    "beat": 5,
    "try": 3,
}
DEFAULT_LIMIT = 30


@dataclasses.dataclass(frozen=True)
class Row:
    """A run: its state, what its sweep changed, and how often it may fail.

    Attributes:
      state: from its directory.
      label: its name in the sweep file, or "".
      variant: argument of its experiment file, where runs differ in it, or "".
      overrides: what the sweep changed.
      tags: of the sweep file.
      max_attempts: failures after which it is not started again.
    """

    state: RunState
    label: str
    variant: str
    overrides: Mapping[str, Any]
    tags: tuple[str, ...]
    max_attempts: int


@dataclasses.dataclass(frozen=True)
class Overview:
    """All runs below ``root`` at one moment."""

    root: str
    rows: tuple[Row, ...]

    @property
    def states(self) -> list[RunState]:
        return [row.state for row in self.rows]


def gather(root: str | os.PathLike, now: float | None = None) -> Overview:
    """Reads every run of a sweep, and asks the schedulers that have some of them.

    Raises:
      FileNotFoundError: there are no runs of a sweep in ``root``.
    """
    run_dirs = submissions.run_dirs(root)
    found = states.read_states(run_dirs, now, submissions.queue(root))
    facts = [_facts(run_dir) for run_dir in run_dirs]
    bases = {fact.get("base") for fact in facts}
    rows = [
        Row(
            state,
            fact.get("label") or "",
            (fact.get("base") or "").rpartition(":")[2] if len(bases) > 1 else "",
            fact.get("overrides") or {},
            tuple(fact.get("tags") or ()),
            fact.get("max_attempts", planned.PlannedRun.max_attempts),
        )
        for state, fact in zip(found, facts, strict=True)
    ]
    return Overview(os.fspath(root), tuple(rows))


def _facts(run_dir: Path) -> dict[str, Any]:
    """``run.json``; nothing, with a warning, where that is damaged."""
    try:
        return states.facts(run_dir)
    except ValueError as error:
        logger.warning("%s", error)
        return {}


def to_json(overview: Overview) -> str:
    """Counts and every field of every run, for scripts."""
    runs = [
        {
            **dataclasses.asdict(row.state),
            "eta_seconds": row.state.eta_seconds,
            "label": row.label,
            "overrides": row.overrides,
            "tags": row.tags,
            "max_attempts": row.max_attempts,
        }
        for row in overview.rows
    ]
    counts = collections.Counter(state.state for state in overview.states)
    whole = {"root": overview.root, "counts": dict(counts), "runs": runs}
    return json.dumps(whole, indent=1)


def render(overview: Overview, limit: int = DEFAULT_LIMIT, width: int = 80) -> Text:
    """Counts, a line per run (two for an error), and a sentence on what is hidden.

    Args:
      overview: what to show.
      limit: lines of runs; 0 for all.
      width: of a line.
    """
    from rich.text import Text

    rows = sorted(overview.rows, key=lambda row: _ORDER.index(row.state.state))
    shown = _first(rows, limit)
    names = short_names(varying_keys([row.overrides for row in overview.rows]))
    lines = [Text(_line(_COLUMNS) + "run", style="dim")]
    for row in shown:
        line = Text(_line(_cells(row)) + _name(row, names))
        line.stylize(_STYLES[row.state.state], 0, len(row.state.state))
        lines.append(line)
        if error := _error_line(row):
            lines.append(Text(f"  {error}", style="red"))
    if hidden := rows[len(shown) :]:
        count = submissions.count_states(row.state for row in hidden)
        lines.append(Text(f"{len(hidden)} more not shown: {count}", style="dim"))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join([_heading(overview), *lines])


def show(root: str | os.PathLike, limit: int = DEFAULT_LIMIT) -> None:
    """Prints the table."""
    from rich.console import Console

    console = Console(highlight=False)
    text = render(gather(root), limit, console.width)
    console.print(text, soft_wrap=True)


def watch(root: str | os.PathLike, limit: int = 0, seconds: float = 2.0) -> None:
    """Shows the table and renews it, until nothing runs or waits, or Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False) as live,
    ):
        while True:
            overview = gather(root)
            room = limit or max(3, console.height - 5)
            live.update(render(overview, room, console.width), refresh=True)
            active = (states.RUNNING, states.QUEUED)
            if not any(state.state in active for state in overview.states):
                return
            time.sleep(seconds)


# ------------------------------------------------------------------ cells


def duration(seconds: float | None) -> str:
    """Seconds in at most six characters.

    Example:
      >>> [duration(s) for s in (5, 75, 3700, 200000)]
      ['5s', '1:15', '1h01m', '2d07h']
    """
    if seconds is None:
        return ""
    whole = round(max(seconds, 0.0))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{minutes}:{whole % 60:02d}"
    if whole < 86400:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h" if days < 100 else f"{days}d"


def _cells(row: Row) -> list[str]:
    state = row.state
    begun = state.state in (states.RUNNING, states.STALE)
    return [
        state.state,
        _percent(state),
        "" if state.images_per_second is None else short_count(state.images_per_second),
        duration(state.eta_seconds),
        duration(state.heartbeat_age if begun else None),
        f"{state.attempt}" if state.attempt else "",
    ]


def _line(cells: Iterable[str]) -> str:
    """The state at the left of its column, the others at the right of theirs."""
    first, *rest = zip(cells, _COLUMNS.values(), strict=True)
    parts = [f"{first[0]:<{first[1]}}"] + [f"{text:>{size}}" for text, size in rest]
    return " ".join(parts) + " "


def _name(row: Row, names: Mapping[str, str]) -> str:
    """Digits of the id, by which ``--only`` knows the run, and what is special."""
    digits = row.state.id.rpartition("-")[2]
    if digits != row.state.id:
        digits = digits[: submissions.SHOWN_DIGITS]
    if row.label:
        return f"{digits} {row.label}"
    changed = [
        f"{names[key]}={short_value(value)}"
        for key, value in row.overrides.items()
        if key in names
    ]
    return " ".join(filter(None, [digits, row.variant, *changed]))


def _percent(state: RunState) -> str:
    if state.state == states.DONE:
        return "100%"
    if state.step is None or not state.steps:
        return ""
    return f"{state.step / state.steps:.0%}"


def _error_line(row: Row) -> str:
    state = row.state
    lines = (state.error or "").strip().splitlines()
    if not lines:
        return ""
    count = f"{state.failures} of {row.max_attempts} times: " if state.failures else ""
    return f"{count}{lines[0]}"


def _first(rows: Sequence[Row], limit: int) -> list[Row]:
    """The rows that fit on ``limit`` lines; a row with an error has two."""
    if not limit:
        return list(rows)
    shown, lines = [], 0
    for row in rows:
        lines += 2 if _error_line(row) else 1
        if lines > limit:
            break
        shown.append(row)
    return shown


def _heading(overview: Overview) -> Text:
    from rich.text import Text

    found = collections.Counter(state.state for state in overview.states)
    parts = [
        Text(f"{found[name]} {name}", style=_STYLES[name])
        for name in states.STATES
        if found[name]
    ]
    title = Text(f"{overview.root}: {len(overview.rows)} runs\n", style="bold")
    return Text.assemble(title, Text("  ").join(parts), "\n")
